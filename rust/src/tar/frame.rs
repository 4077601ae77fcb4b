//! What of an archive is no file's content: with it and the tree the archive can be written again, bit for bit.
//!
//! The file `frame` is a magic, a zstd frame of segments (bytes as they stood, or "so many bytes of this file from
//! there"), a zstd frame of a table (where each of those files is), and the table's offset. A file that a later entry of
//! the same archive replaced is kept as `lost/<number>`: its content is in the archive all the same.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use zstd::stream::{read::Decoder, write::Encoder};

use super::index::{Index, What};
use super::layers::{BLOCKS, LayerDirectory, PACK, read_index};
use super::nodes::{NodeId, Nodes};
use crate::error::{Error, Result};
use crate::root::Root;

const FILE: &str = "frame";
const LOST: &str = "lost";
const MAGIC: &[u8; 8] = b"pyctrdF1";
/// Headers and zeros: the fastest level makes them a thirtieth of their size.
const LEVEL: i32 = 1;
/// Segments are cut at this many bytes, so that a reader's buffer is small whatever an archive holds.
const RAW_MAX_BYTES: usize = 64 << 10;
/// A path of the table: the longest that an archive can say.
const PATH_MAX_BYTES: usize = 1 << 20;

const RAW: u8 = 0;
const CONTENT: u8 = 1;
const IN_TREE: u8 = 0;
const IN_LOST: u8 = 1;

/// Writes a frame while the archive goes by.
pub(super) struct FrameWriter {
    out: Encoder<'static, File>,
    raw: Vec<u8>,
    /// Content that was not written down yet: file, offset in it, bytes.
    run: Option<(u32, u64, u64)>,
    /// The node that each numbered file was made as; None once it is among the lost ones.
    files: Vec<Option<NodeId>>,
    numbers: HashMap<NodeId, u32>,
    lost: Option<OwnedFd>,
}

impl std::fmt::Debug for FrameWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrameWriter").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

fn wrong(error: &std::io::Error) -> Error {
    Error::io("write", FILE, error)
}

impl FrameWriter {
    /// Starts the file in a layer's directory.
    pub(super) fn create(directory: BorrowedFd<'_>) -> Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = rustix::fs::openat(directory, FILE, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("create", FILE, e))?;
        file.write_all(MAGIC).map_err(|e| wrong(&e))?;
        Ok(Self {
            out: Encoder::new(file, LEVEL).map_err(|e| wrong(&e))?,
            raw: Vec::with_capacity(RAW_MAX_BYTES),
            run: None,
            files: Vec::new(),
            numbers: HashMap::new(),
            lost: None,
        })
    }

    /// Bytes of the archive that are no file's.
    pub(super) fn raw(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.end_run()?;
        while !bytes.is_empty() {
            let count = bytes.len().min(RAW_MAX_BYTES - self.raw.len());
            self.raw.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.raw.len() == RAW_MAX_BYTES {
                self.end_raw()?;
            }
        }
        Ok(())
    }

    /// Bytes of the archive that were written into a file.
    pub(super) fn content(&mut self, node: NodeId, offset: u64, count: u64) -> Result<()> {
        let number = *self.numbers.entry(node).or_insert_with(|| {
            self.files.push(Some(node));
            u32::try_from(self.files.len() - 1).unwrap_or(u32::MAX) // nodes have as many numbers
        });
        match &mut self.run {
            Some((file, start, length)) if *file == number && *start + *length == offset => *length += count,
            _ => {
                self.end_run()?;
                self.end_raw()?;
                self.run = Some((number, offset, count));
            }
        }
        Ok(())
    }

    /// Keeps the content of a file whose name is about to be taken away: `save` puts it into a directory, under a name.
    pub(super) fn keep(
        &mut self,
        directory: BorrowedFd<'_>,
        node: NodeId,
        save: impl FnOnce(BorrowedFd<'_>, &str) -> Result<()>,
    ) -> Result<()> {
        let Some(number) = self.numbers.remove(&node) else { return Ok(()) };
        self.files[number as usize] = None;
        let lost = if let Some(lost) = &self.lost {
            lost
        } else {
            rustix::fs::mkdirat(directory, LOST, Mode::RWXU)
                .map_err(|e| Error::errno("make directory", LOST, e))?;
            let opened = crate::root::open_directory(directory, LOST.as_bytes())
                .map_err(|e| Error::errno("open", LOST, e))?;
            self.lost.insert(opened)
        };
        save(lost.as_fd(), &number.to_string())
    }

    /// Ends the file with the table of where each file is now.
    pub(super) fn finish(mut self, nodes: &Nodes) -> Result<()> {
        self.end_run()?;
        self.end_raw()?;
        let write = || -> std::io::Result<()> {
            let mut file = self.out.finish()?;
            let offset = file.stream_position()?;
            let mut table = Encoder::new(file, LEVEL)?;
            table.write_all(&(self.files.len() as u64).to_le_bytes())?;
            for node in &self.files {
                let (kind, path) = node.map_or((IN_LOST, Vec::new()), |node| (IN_TREE, nodes.path(node)));
                table.write_all(&[kind])?;
                table.write_all(&u32::try_from(path.len()).unwrap_or(u32::MAX).to_le_bytes())?;
                table.write_all(&path)?;
            }
            table.finish()?.write_all(&offset.to_le_bytes())
        };
        write().map_err(|e| wrong(&e))
    }

    fn end_run(&mut self) -> Result<()> {
        let Some((number, offset, count)) = self.run.take() else { return Ok(()) };
        let mut segment = vec![CONTENT];
        segment.extend_from_slice(&number.to_le_bytes());
        segment.extend_from_slice(&offset.to_le_bytes());
        segment.extend_from_slice(&count.to_le_bytes());
        self.out.write_all(&segment).map_err(|e| wrong(&e))
    }

    fn end_raw(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(self.raw.len()).unwrap_or(u32::MAX); // at most RAW_MAX_BYTES
        let head = [&[RAW], length.to_le_bytes().as_slice()].concat();
        let done = self.out.write_all(&head).and_then(|()| self.out.write_all(&self.raw));
        self.raw.clear();
        done.map_err(|e| wrong(&e))
    }
}

/// How the files of a layer that has no tree are found by their paths.
struct Files {
    directory: LayerDirectory,
    index: Index,
    records: HashMap<Vec<u8>, usize>,
}

impl Files {
    /// None where the layer has a tree.
    fn open(layer: &Root) -> Result<Option<Self>> {
        let has = |part: &str| rustix::fs::statat(layer, part, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if !has(PACK) && !has(BLOCKS) {
            return Ok(None);
        }
        let index = read_index(layer.path())?;
        let directory = LayerDirectory::open_layer(layer.path(), &index)?;
        let records =
            index.records.iter().enumerate().map(|(at, record)| (record.path.clone(), at)).collect();
        Ok(Some(Self { directory, index, records }))
    }

    /// A file that has its content, and where that begins.
    fn open_file(&self, layer: &Root, path: &[u8]) -> Result<(File, u64)> {
        let missing = || damaged(layer, &"names a file that the index has not");
        let find = |path: &[u8]| self.records.get(path).map(|at| &self.index.records[*at]);
        let mut record = find(path).ok_or_else(missing)?;
        if record.what == What::Hardlink {
            record = find(&record.link).ok_or_else(missing)?;
        }
        self.directory.locate(record).map(|(file, start)| (file, start.unwrap_or(0)))
    }
}

/// Where a numbered file is.
#[derive(Debug)]
enum Place {
    Tree(Vec<u8>),
    Lost,
}

/// Writes a layer's archive again. The caller compares its digest: a tree that was changed gives another one.
///
/// # Errors
/// [`Error::NotFound`] for a layer without a frame, [`Error::Invalid`] for a damaged one, [`Error::Io`], and what `to`
/// raises.
pub fn rebuild(layer: &Root, to: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut file = open(layer)?;
    let places = read_places(&mut file).map_err(|e| damaged(layer, &e))?;
    file.seek(SeekFrom::Start(MAGIC.len() as u64)).map_err(|e| damaged(layer, &e))?;
    let segments = Decoder::new(BufReader::new(file)).map_err(|e| damaged(layer, &e))?.single_frame();
    let buffer = vec![0; RAW_MAX_BYTES];
    let files = Files::open(layer)?;
    let mut rebuilder = Rebuilder { layer, segments, places, files, current: None, buffer, to };
    while rebuilder.step()? {}
    Ok(())
}

fn open(layer: &Root) -> Result<File> {
    match layer.resolve_plain(FILE.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => Ok(File::from(file)),
        Err(Errno::NOENT) => {
            Err(Error::NotFound { kind: "layer frame", name: layer.path().display().to_string() })
        }
        Err(e) => Err(Error::errno("open", layer.path().join(FILE), e)),
    }
}

fn damaged(layer: &Root, why: &dyn std::fmt::Display) -> Error {
    Error::Invalid {
        field: "layer frame",
        value: layer.path().display().to_string(),
        reason: format!("{why}; unpack the layer again"),
    }
}

/// The table at the end; checks the magic as well.
fn read_places(file: &mut File) -> std::io::Result<Vec<Place>> {
    let invalid = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if &magic != MAGIC {
        return Err(invalid());
    }
    file.seek(SeekFrom::End(-8))?;
    let offset = u64::from_le_bytes(array(file)?);
    file.seek(SeekFrom::Start(offset))?;
    let mut table = Decoder::new(BufReader::new(file))?.single_frame();
    let count = u64::from_le_bytes(array(&mut table)?);
    let mut places = Vec::new(); // grows by what is there, not by what the count claims
    for _ in 0..count {
        let [kind] = array(&mut table)?;
        let length = u32::from_le_bytes(array(&mut table)?) as usize;
        if length > PATH_MAX_BYTES {
            return Err(invalid());
        }
        let mut path = vec![0; length];
        table.read_exact(&mut path)?;
        places.push(if kind == IN_TREE { Place::Tree(path) } else { Place::Lost });
    }
    Ok(places)
}

fn array<const N: usize>(from: &mut impl Read) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

struct Rebuilder<'a, R: Read, T> {
    layer: &'a Root,
    segments: R,
    places: Vec<Place>,
    files: Option<Files>,
    /// The numbered file that is read, and where its content begins in what has it.
    current: Option<(u32, (File, u64))>,
    buffer: Vec<u8>,
    to: T,
}

impl<R: Read, T: FnMut(&[u8]) -> Result<()>> Rebuilder<'_, R, T> {
    /// One segment; false after the last.
    fn step(&mut self) -> Result<bool> {
        let mut kind = [0];
        if self.segments.read(&mut kind).map_err(|e| damaged(self.layer, &e))? == 0 {
            return Ok(false);
        }
        match kind[0] {
            RAW => self.raw()?,
            CONTENT => self.content()?,
            _ => return Err(damaged(self.layer, &"has an unknown segment")),
        }
        Ok(true)
    }

    fn raw(&mut self) -> Result<()> {
        let length = u32::from_le_bytes(self.field()?) as usize;
        let Some(bytes) = self.buffer.get_mut(..length) else {
            return Err(damaged(self.layer, &"has a segment that is too long"));
        };
        self.segments.read_exact(bytes).map_err(|e| damaged(self.layer, &e))?;
        (self.to)(bytes)
    }

    fn content(&mut self) -> Result<()> {
        let number = u32::from_le_bytes(self.field()?);
        let (offset, mut left) = (u64::from_le_bytes(self.field()?), u64::from_le_bytes(self.field()?));
        let source = match self.current.take() {
            Some((known, source)) if known == number => source,
            _ => self.open(number)?,
        };
        let mut at = source.1.saturating_add(offset);
        while left > 0 {
            let most = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let read = source.0.read_at(&mut self.buffer[..most], at);
            let count = read.map_err(|e| Error::io("read", self.layer.path(), &e))?;
            if count == 0 {
                return Err(damaged(self.layer, &"names bytes that its file has not"));
            }
            (self.to)(&self.buffer[..count])?;
            at += count as u64;
            left -= count as u64;
        }
        self.current = Some((number, source));
        Ok(())
    }

    fn field<const N: usize>(&mut self) -> Result<[u8; N]> {
        array(&mut self.segments).map_err(|e| damaged(self.layer, &e))
    }

    fn open(&self, number: u32) -> Result<(File, u64)> {
        let path = match (self.places.get(number as usize), &self.files) {
            (Some(Place::Tree(path)), Some(files)) => return files.open_file(self.layer, path),
            (Some(Place::Tree(path)), None) => [b"tree/", path.as_slice()].concat(),
            (Some(Place::Lost), _) => format!("{LOST}/{number}").into_bytes(),
            (None, _) => return Err(damaged(self.layer, &"names a file that its table has not")),
        };
        // A fifo in the place of the file would be waited for.
        self.layer
            .resolve_plain(&path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)
            .map(|file| (File::from(file), 0))
            .map_err(|e| Error::errno("open", self.layer.path().join(crate::root::to_path(&path)), e))
    }
}
