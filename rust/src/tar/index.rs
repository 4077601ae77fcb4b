//! A layer's index: every name of the layer with all its metadata, and what it leaves to the layers below.
//!
//! One flat file, little-endian: a header, records (parents before children, names sorted), and the BLAKE3 of all
//! that before it. Read whole: half a megabyte for ten thousand names.

use std::io::Write;

use super::pax::Time;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"PYCTRDL1";
const VERSION: u32 = 4;
/// The first that says where blocks are; the one before is the same without these.
const VERSION_WITH_BLOCKS: u32 = 4;
/// The one before that: every file was in the layer's tree.
const VERSION_WITHOUT_PLACES: u32 = 2;
/// The first, which had no offsets. It is still read: containers keep their layers, and nothing else is missing in it.
const VERSION_WITHOUT_OFFSETS: u32 = 1;
const HEADER_BYTES: usize = 56;
/// What of it says which forms of the layer there are.
pub const FORMS_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;
/// The least that a record has in front of its path, link and xattrs.
const RECORD_BYTES: usize = 56;
const DIGEST_BYTES: usize = 32;

const IMPLIED: u8 = 1;
const OPAQUE: u8 = 2;
const SPARSE: u8 = 4;
const ALONE: u8 = 8;
const HASHED: u8 = 16;
const OBJECT: u8 = 32;
const PACKED: u8 = 64;
const EXTENT: u8 = 128;
/// In the byte behind.
const SHARED: u8 = 1;

/// In the header: the layer has blocks.
const HAS_BLOCKS: u32 = 1;
/// It has a pack.
const HAS_PACK: u32 = 2;
/// Whether it has a pack is told there: it was not at first.
const TELLS_PACK: u32 = 4;

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum What {
    /// A regular file, under the first of its names in the order of the index.
    File = 1,
    /// A directory.
    Directory = 2,
    /// A symbolic link.
    Symlink = 3,
    /// Another name of what `link` names in this layer.
    Hardlink = 4,
    /// A character device.
    Character = 5,
    /// A block device.
    Block = 6,
    /// A named pipe.
    Fifo = 7,
    /// The layers below have nothing here.
    Whiteout = 8,
    /// Another name of the file at `link` in the layers below.
    Foreign = 9,
}

impl What {
    /// The name that Python sees.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Hardlink => "hardlink",
            Self::Character => "character",
            Self::Block => "block",
            Self::Fifo => "fifo",
            Self::Whiteout => "whiteout",
            Self::Foreign => "foreign",
        }
    }

    fn parse(byte: u8) -> Option<Self> {
        [
            Self::File,
            Self::Directory,
            Self::Symlink,
            Self::Hardlink,
            Self::Character,
            Self::Block,
            Self::Fifo,
            Self::Whiteout,
            Self::Foreign,
        ]
        .into_iter()
        .find(|what| *what as u8 == byte)
    }
}

/// What a directory hides of the layers below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hides {
    /// It is merged with theirs.
    Nothing,
    /// What they have in it: it is opaque.
    Content,
    /// What they have at its name, whatever that is: there was a whiteout, or something else in between.
    Name,
}

/// Where a regular file's content is, but for blocks: a layer may have these as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// In the layer's tree, under its name; or nowhere but among its blocks.
    #[default]
    Tree,
    /// In the store's object of this name.
    Object([u8; DIGEST_BYTES]),
    /// In the layer's pack, from this byte on.
    Packed(u64),
}

/// Where a content is among a layer's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Others stand in the same block; else it begins one, and has all that it needs to itself.
    pub shared: bool,
}

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// From the root, without a slash in front; empty for the root itself.
    pub path: Vec<u8>,
    /// What it is.
    pub what: What,
    /// No entry lists this directory: its attributes are the lower layers' where these have it.
    pub implied: bool,
    /// What this directory hides of the lower layers.
    pub hides: Hides,
    /// The file has holes.
    pub sparse: bool,
    /// Permission and set-id bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Major and minor number.
    pub device: (u32, u32),
    /// Bytes, holes included.
    pub size: u64,
    /// Where a regular file's content begins in the uncompressed archive, in bytes: of a sparse file, its first stored
    /// piece. None where nothing is stored, and in an index of the first version.
    pub offset: Option<u64>,
    /// BLAKE3 of a regular file's content, where the layer was made with it.
    pub blake3: Option<[u8; DIGEST_BYTES]>,
    /// Where a regular file's content is.
    pub place: Place,
    /// Where it is among the layer's blocks; nowhere if it is empty.
    pub extent: Option<Extent>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An index, read.
#[derive(Debug)]
pub struct Index {
    /// Parents before what is in them; the first is the root.
    pub records: Vec<Record>,
    /// Directories below the root that no entry lists.
    pub implied: u64,
    /// Names of lower layers' files.
    pub foreign_links: u64,
    /// BLAKE3 of the layer's pack, where it has that in place of a tree.
    pub pack: Option<[u8; DIGEST_BYTES]>,
    /// Bytes of the layer's blocks, where it has such.
    pub blocks: Option<u64>,
}

/// The same layer in the form that another index of it has.
///
/// # Returns
/// Whether it was: the two say the same of every name, and agree on the pack where both have one.
pub fn join(
    records: &mut [Record],
    pack: &mut Option<[u8; DIGEST_BYTES]>,
    blocks: &mut Option<u64>,
    other: &Index,
) -> bool {
    let places =
        |record: &Record| Record { place: Place::Tree, extent: None, blake3: None, ..record.clone() };
    let alike = records.len() == other.records.len()
        && records.iter().zip(&other.records).all(|(one, other)| places(one) == places(other));
    if !alike {
        return false;
    }
    let (adds_pack, adds_blocks) =
        (pack.is_none() && other.pack.is_some(), blocks.is_none() && other.blocks.is_some());
    for (record, other) in records.iter_mut().zip(&other.records) {
        if adds_pack {
            record.place = other.place;
        }
        if adds_blocks {
            record.extent = other.extent;
        }
        record.blake3 = record.blake3.or(other.blake3);
    }
    *pack = pack.or(other.pack);
    *blocks = blocks.or(other.blocks);
    true
}

impl Index {
    /// That of a layer with nothing in it, its root not listed.
    #[must_use]
    pub fn empty() -> Self {
        Self { records: vec![Record::implied_root()], implied: 0, foreign_links: 0, pack: None, blocks: None }
    }
}

impl Record {
    fn implied_root() -> Self {
        Self {
            path: Vec::new(),
            what: What::Directory,
            implied: true,
            hides: Hides::Nothing,
            sparse: false,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            device: (0, 0),
            size: 0,
            offset: None,
            blake3: None,
            place: Place::Tree,
            extent: None,
            link: Vec::new(),
            xattrs: Vec::new(),
        }
    }
}

/// The bytes of an index, with the BLAKE3 of the layer's pack where it has one, and the length of its blocks.
#[must_use]
pub fn encode(records: &[Record], pack: Option<&[u8; DIGEST_BYTES]>, blocks: Option<u64>) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + records.len() * (RECORD_BYTES + 48));
    let counts = [
        records.len() as u64,
        records.iter().filter(|r| r.implied && !r.path.is_empty()).count() as u64,
        records.iter().filter(|r| r.what == What::Foreign).count() as u64,
        records.iter().map(|r| if r.what == What::File { r.size } else { 0 }).fold(0, u64::saturating_add),
    ];
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let facts =
        TELLS_PACK | (u32::from(pack.is_some()) * HAS_PACK) | (u32::from(blocks.is_some()) * HAS_BLOCKS);
    out.extend_from_slice(&facts.to_le_bytes());
    for count in counts {
        out.extend_from_slice(&count.to_le_bytes());
    }
    out.extend_from_slice(&blocks.unwrap_or(0).to_le_bytes());
    for record in records {
        encode_record(record, &mut out);
    }
    out.extend_from_slice(pack.map_or(&[], <[u8; DIGEST_BYTES]>::as_slice));
    let sum = blake3::hash(&out);
    out.extend_from_slice(sum.as_bytes());
    out
}

/// Lengths fit: names, links and xattrs come from extended headers of at most 1 MiB.
fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn encode_record(record: &Record, out: &mut Vec<u8>) {
    let flags = (u8::from(record.implied) * IMPLIED)
        | (u8::from(record.hides >= Hides::Content) * OPAQUE)
        | (u8::from(record.hides == Hides::Name) * ALONE)
        | (u8::from(record.sparse) * SPARSE)
        | (u8::from(record.blake3.is_some()) * HASHED)
        | match record.place {
            Place::Tree => 0,
            Place::Object(_) => OBJECT,
            Place::Packed(_) => PACKED,
        }
        | (u8::from(record.extent.is_some()) * EXTENT);
    let more = u8::from(record.extent.is_some_and(|extent| extent.shared)) * SHARED;
    out.extend_from_slice(&[record.what as u8, flags, more, 0]);
    for number in
        [record.mode, record.uid, record.gid, record.device.0, record.device.1, record.mtime.nanoseconds]
    {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&record.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&record.size.to_le_bytes());
    // A header comes before any content: no content is at 0.
    out.extend_from_slice(&record.offset.unwrap_or(0).to_le_bytes());
    out.extend_from_slice(&length(&record.path));
    out.extend_from_slice(&length(&record.link));
    out.extend_from_slice(&u32::try_from(record.xattrs.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&record.path);
    out.extend_from_slice(&record.link);
    match (record.blake3, record.place) {
        // An object's name is the digest of its content, but for sparse files, which have no such digest here.
        (Some(digest), _) | (None, Place::Object(digest)) => out.extend_from_slice(&digest),
        (None, _) => {}
    }
    if let Place::Packed(offset) = record.place {
        out.extend_from_slice(&offset.to_le_bytes());
    }
    if let Some(extent) = record.extent {
        out.extend_from_slice(&extent.start.to_le_bytes());
    }
    for (name, value) in &record.xattrs {
        out.extend_from_slice(&length(name));
        out.extend_from_slice(&length(value));
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    }
}

/// Whether the layer has a pack and whether it has blocks, by the first bytes of an index; None where they do not say.
#[must_use]
pub fn read_forms(head: &[u8]) -> Option<(bool, bool)> {
    let mut reader = Reader { left: head.strip_prefix(MAGIC)?, version: 0 };
    let (version, facts) = (reader.u32()?, reader.u32()?);
    (version == VERSION && facts & TELLS_PACK != 0)
        .then_some((facts & HAS_PACK != 0, facts & HAS_BLOCKS != 0))
}

/// Reads an index back; every length is checked against what is there.
///
/// # Errors
/// [`Error::Invalid`] where it is none, or is damaged.
pub fn decode(bytes: &[u8], subject: &str) -> Result<Index> {
    let refuse = |reason: &str| Error::Invalid {
        field: "layer index",
        value: subject.to_owned(),
        reason: format!("{reason}; unpack the layer again"),
    };
    if bytes.len() < HEADER_BYTES + CHECKSUM_BYTES || !bytes.starts_with(MAGIC) {
        return Err(refuse("is no index"));
    }
    let (content, sum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES);
    if blake3::hash(content).as_bytes() != sum {
        return Err(refuse("is damaged"));
    }
    let mut reader = Reader { left: &content[MAGIC.len()..], version: 0 };
    reader.version = reader.u32().unwrap_or(0);
    if !(VERSION_WITHOUT_OFFSETS..=VERSION).contains(&reader.version) {
        return Err(Error::Invalid {
            field: "layer index",
            value: subject.to_owned(),
            reason: format!("has version {}, this pyctrd reads up to {VERSION}", reader.version),
        });
    }
    let read = (|| {
        let facts = reader.u32()?;
        let (count, implied, foreign_links) = (reader.u64()?, reader.u64()?, reader.u64()?);
        reader.u64()?;
        let blocks = reader.u64()?;
        let blocks = (reader.version >= VERSION_WITH_BLOCKS && facts & HAS_BLOCKS != 0).then_some(blocks);
        let mut records =
            Vec::with_capacity(usize::try_from(count).ok()?.min(reader.left.len() / RECORD_BYTES));
        for _ in 0..count {
            records.push(reader.record()?);
        }
        let pack = match reader.left {
            [] => None,
            left if reader.version > VERSION_WITHOUT_PLACES => Some(left.try_into().ok()?),
            _ => return None,
        };
        (!records.is_empty()).then_some(Index { records, implied, foreign_links, pack, blocks })
    })();
    read.ok_or_else(|| refuse("is cut off"))
}

struct Reader<'a> {
    left: &'a [u8],
    version: u32,
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.left.split_at_checked(count)?;
        self.left = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    fn record(&mut self) -> Option<Record> {
        let head = self.bytes(4)?;
        let (what, flags) = (What::parse(head[0])?, head[1]);
        let (mode, uid, gid) = (self.u32()?, self.u32()?, self.u32()?);
        let device = (self.u32()?, self.u32()?);
        let nanoseconds = self.u32()?;
        let seconds = self.u64()?.cast_signed();
        let size = self.u64()?;
        let offset = if self.version == VERSION_WITHOUT_OFFSETS { 0 } else { self.u64()? };
        let (path, link, xattrs) = (self.u32()? as usize, self.u32()? as usize, self.u32()?);
        let (path, link) = (self.bytes(path)?.to_vec(), self.bytes(link)?.to_vec());
        let digest = match flags & (HASHED | OBJECT) {
            0 => None,
            _ => Some(self.bytes(DIGEST_BYTES)?.try_into().ok()?),
        };
        let place = match (flags & PACKED, digest) {
            (0, Some(digest)) if flags & OBJECT != 0 => Place::Object(digest),
            (0, _) => Place::Tree,
            _ => Place::Packed(self.u64()?),
        };
        let shared = head[2] & SHARED != 0;
        let extent = if flags & EXTENT == 0 { None } else { Some(Extent { start: self.u64()?, shared }) };
        let mut pairs = Vec::new();
        for _ in 0..xattrs {
            let (name, value) = (self.u32()? as usize, self.u32()? as usize);
            pairs.push((self.bytes(name)?.to_vec(), self.bytes(value)?.to_vec()));
        }
        Some(Record {
            path,
            what,
            implied: flags & IMPLIED != 0,
            hides: match (flags & OPAQUE != 0, flags & ALONE != 0) {
                (false, _) => Hides::Nothing,
                (true, false) => Hides::Content,
                (true, true) => Hides::Name,
            },
            sparse: flags & SPARSE != 0,
            mode,
            uid,
            gid,
            mtime: Time { seconds, nanoseconds },
            device,
            size,
            offset: (offset != 0).then_some(offset),
            blake3: digest.filter(|_| flags & HASHED != 0),
            place,
            extent,
            link,
            xattrs: pairs,
        })
    }
}

/// Writes an index into a file that was just made.
///
/// # Errors
/// [`Error::Io`].
pub fn write(
    file: &mut std::fs::File,
    records: &[Record],
    pack: Option<&[u8; DIGEST_BYTES]>,
    blocks: Option<u64>,
) -> Result<()> {
    file.write_all(&encode(records, pack, blocks)).map_err(|e| Error::io("write", "index", &e))
}

#[cfg(test)]
mod tests;
