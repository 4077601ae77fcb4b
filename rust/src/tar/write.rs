//! Archives written: ustar headers where everything fits, PAX records where not. Nothing but what the entry says gets
//! into the bytes: no names of users, no times of its own, one order of fields.

use std::io::{self, Write};
use std::ops::Range;

use super::entry::{Entry, Kind, Time};
use super::header::{
    BLOCK, CHECKSUM, DEVICE_MAJOR, DEVICE_MINOR, GID, LINK, MAGIC, MODE, MTIME, NAME, PREFIX, SIZE, TYPE, UID,
};
use crate::error::{Error, Result};

/// Readers, ours too, refuse longer ones.
const EXTENSION_MAX_BYTES: usize = 1 << 20;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Where a sparse file has data: offset and length of each piece, in order.
pub type Pieces = [(u64, u64)];

/// Writes an archive entry by entry.
#[derive(Debug)]
pub struct TarWriter<W: Write> {
    out: W,
    /// Bytes of the current entry that are still to come.
    left: u64,
    padding: usize,
    extensions: Vec<u8>,
}

impl<W: Write> TarWriter<W> {
    /// Starts with no entries.
    pub fn new(out: W) -> Self {
        Self { out, left: 0, padding: 0, extensions: Vec::new() }
    }

    /// Begins an entry, whose data must follow: `size` bytes of a file, or, where it is sparse, those of its pieces.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for metadata that no reader would take, [`Error::Io`].
    pub fn begin(&mut self, entry: &Entry, pieces: &Pieces) -> Result<()> {
        debug_assert_eq!(self.left, 0, "the entry before has all its data");
        let map = if entry.sparse { sparse_map(pieces) } else { Vec::new() };
        let stored = match (entry.kind, entry.sparse) {
            (Kind::File, false) => entry.size,
            (Kind::File, true) => map.len() as u64 + pieces.iter().map(|piece| piece.1).sum::<u64>(),
            _ => 0,
        };
        let header = self.describe(entry, stored);
        if self.extensions.len() > EXTENSION_MAX_BYTES {
            return Err(Error::Unsupported {
                feature: format!(
                    "{} bytes of metadata: {}",
                    self.extensions.len(),
                    entry.name.escape_ascii()
                ),
                needs: format!("at most {EXTENSION_MAX_BYTES}"),
            });
        }
        if !self.extensions.is_empty() {
            let extension = Header::of_extensions(&entry.name, self.extensions.len());
            let records = std::mem::take(&mut self.extensions);
            self.put(&extension.seal())?;
            self.put(&records)?;
            self.put(&ZEROS[..padding(records.len() as u64)])?;
            self.extensions = records;
        }
        self.put(&header.seal())?;
        self.put(&map)?;
        self.left = stored - map.len() as u64;
        self.padding = padding(stored);
        if self.left == 0 { self.end() } else { Ok(()) }
    }

    /// The next bytes of the entry.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        debug_assert!(bytes.len() as u64 <= self.left, "no more than the entry has");
        self.put(bytes)?;
        self.left -= bytes.len() as u64;
        if self.left == 0 { self.end() } else { Ok(()) }
    }

    /// Writes the end marks; gives back what was written to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(mut self) -> Result<W> {
        debug_assert_eq!(self.left, 0, "the last entry has all its data");
        self.put(&ZEROS)?;
        self.put(&ZEROS)?;
        Ok(self.out)
    }

    fn end(&mut self) -> Result<()> {
        let padding = std::mem::take(&mut self.padding);
        self.put(&ZEROS[..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|e| failed(&e))
    }

    /// The header of an entry; what does not fit it is in `self.extensions` then.
    fn describe(&mut self, entry: &Entry, stored: u64) -> Header {
        let records = &mut self.extensions;
        records.clear();
        let mut header = Header::new(type_flag(entry.kind));
        if entry.sparse {
            // Readers that do not know the form make a file of this name instead of a wrong one.
            header.text(NAME, &plain(&[b"GNUSparseFile.0/", last_part(&entry.name)].concat(), NAME.len()));
        } else if !header.path(&entry.name) {
            record(records, b"path", &entry.name);
            header.text(NAME, &plain(&entry.name, NAME.len()));
        }
        if matches!(entry.kind, Kind::Symlink | Kind::Hardlink) {
            if !entry.link.is_ascii() || entry.link.len() > LINK.len() {
                record(records, b"linkpath", &entry.link);
            }
            header.text(LINK, &plain(&entry.link, LINK.len()));
        }
        header.number(MODE, u64::from(entry.mode & 0o7777));
        for (field, key, value) in
            [(SIZE, "size", stored), (UID, "uid", u64::from(entry.uid)), (GID, "gid", u64::from(entry.gid))]
        {
            if !header.number(field, value) {
                record(records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        let seconds = u64::try_from(entry.mtime.seconds);
        if !seconds.is_ok_and(|seconds| header.number(MTIME, seconds)) || entry.mtime.nanoseconds > 0 {
            record(records, b"mtime", decimal(entry.mtime).as_bytes());
        }
        if matches!(entry.kind, Kind::Character | Kind::Block) {
            header.number(DEVICE_MAJOR, u64::from(entry.device.0));
            header.number(DEVICE_MINOR, u64::from(entry.device.1));
        }
        for (name, value) in &entry.xattrs {
            xattr(records, name, value);
        }
        if entry.sparse {
            record(records, b"GNU.sparse.major", b"1");
            record(records, b"GNU.sparse.minor", b"0");
            record(records, b"GNU.sparse.name", &entry.name);
            record(records, b"GNU.sparse.realsize", entry.size.to_string().as_bytes());
        }
        header
    }
}

/// One block under construction.
struct Header([u8; BLOCK]);

impl Header {
    fn new(kind: u8) -> Self {
        let mut header = Self(ZEROS);
        header.0[TYPE] = kind;
        header.text(MAGIC.start..MAGIC.end + 2, b"ustar\x0000");
        for field in [MODE, UID, GID, SIZE, MTIME] {
            header.number(field, 0);
        }
        header
    }

    /// The header in front of extended records: it says nothing but what they belong to, for people.
    fn of_extensions(name: &[u8], length: usize) -> Self {
        let mut header = Self::new(b'x');
        header.text(NAME, &plain(&[b"PaxHeaders/", last_part(name)].concat(), NAME.len()));
        header.number(MODE, 0o644);
        header.number(SIZE, length as u64);
        header
    }

    fn text(&mut self, field: Range<usize>, text: &[u8]) {
        self.0[field.start..field.start + text.len()].copy_from_slice(text);
    }

    /// Octal digits and a NUL; false, and zero, where they do not fit.
    fn number(&mut self, field: Range<usize>, value: u64) -> bool {
        let digits = field.len() - 1;
        let fits = value >> (3 * digits) == 0;
        let text = format!("{:0digits$o}\0", if fits { value } else { 0 });
        self.text(field, text.as_bytes());
        fits
    }

    /// The name, in two parts where it is long; false where that does not do.
    fn path(&mut self, name: &[u8]) -> bool {
        if !name.is_ascii() {
            return false; // a header has no charset, a PAX record has one
        }
        if name.len() <= NAME.len() {
            self.text(NAME, name);
            return true;
        }
        // The slash at the end of a directory's name is no place to split at.
        let most = name.len().min(PREFIX.len() + 1).min(name.len() - 1);
        match name[..most].iter().rposition(|&b| b == b'/') {
            Some(at) if at > 0 && name.len() - at - 1 <= NAME.len() => {
                self.text(PREFIX, &name[..at]);
                self.text(NAME, &name[at + 1..]);
                true
            }
            _ => false,
        }
    }

    /// With its sum.
    fn seal(mut self) -> [u8; BLOCK] {
        self.text(CHECKSUM, b"        ");
        let sum: u32 = self.0.iter().map(|&byte| u32::from(byte)).sum();
        self.text(CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

fn type_flag(kind: Kind) -> u8 {
    match kind {
        Kind::File => b'0',
        Kind::Hardlink => b'1',
        Kind::Symlink => b'2',
        Kind::Character => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    }
}

/// What of a name a header can hold where a PAX record has all of it.
fn plain(text: &[u8], most: usize) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).take(most).collect()
}

fn last_part(name: &[u8]) -> &[u8] {
    let name = name.strip_suffix(b"/").unwrap_or(name);
    name.iter().rposition(|&b| b == b'/').map_or(name, |at| &name[at + 1..])
}

/// `length key=value\n`, where the length counts its own digits.
fn record(into: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = length.to_string().len() + rest;
    }
    into.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        into.extend_from_slice(part);
    }
}

/// The form that star began and all others read. A name with `=` in it would be cut there: libarchive's form holds it.
fn xattr(into: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    if name.contains(&b'=') {
        record(into, &[&b"LIBARCHIVE.xattr."[..], &percent(name)].concat(), base64(value).as_bytes());
    } else {
        record(into, &[b"SCHILY.xattr.", name].concat(), value);
    }
}

fn percent(name: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    for &byte in name {
        if byte.is_ascii_graphic() && byte != b'%' && byte != b'=' {
            coded.push(byte);
        } else {
            coded.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    coded
}

fn base64(value: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut coded = String::new();
    for chunk in value.chunks(3) {
        let bits =
            chunk.iter().enumerate().fold(0u32, |bits, (at, &byte)| bits | u32::from(byte) << (16 - 8 * at));
        for digit in 0..=chunk.len() {
            coded.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    coded
}

/// Seconds with their fraction, on both sides of 1970.
fn decimal(time: Time) -> String {
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let absolute = nanoseconds.unsigned_abs();
    let text = format!("{sign}{}.{:09}", absolute / 1_000_000_000, absolute % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// GNU's form 1.0: a count and as many pairs, a number a line, filled up to whole blocks.
fn sparse_map(pieces: &Pieces) -> Vec<u8> {
    let mut map = format!("{}\n", pieces.len()).into_bytes();
    for (offset, length) in pieces {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn padding(size: u64) -> usize {
    // Less than a block.
    usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0)
}

fn failed(error: &io::Error) -> Error {
    Error::io("write", "layer", error)
}

#[cfg(test)]
mod tests {
    use super::super::{Sink, Stream};
    use super::*;

    #[derive(Default)]
    struct Seen {
        entries: Vec<String>,
        content: Vec<u8>,
    }

    impl Sink for Seen {
        fn begin(&mut self, entry: &Entry) -> Result<()> {
            self.entries.push(seen(entry));
            Ok(())
        }

        fn data(&mut self, _entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
            let end = usize::try_from(offset).expect("small") + bytes.len();
            self.content.resize(self.content.len().max(end), b'.');
            self.content[end - bytes.len()..end].copy_from_slice(bytes);
            Ok(())
        }

        fn end(&mut self, _entry: &Entry) -> Result<()> {
            Ok(())
        }
    }

    fn seen(entry: &Entry) -> String {
        format!("{:?}", (&entry.name, &entry.link, entry.kind, entry.mode, entry.uid, entry.gid))
            + &format!("{:?}", (entry.mtime, entry.size, entry.device, &entry.xattrs, entry.sparse))
    }

    fn write(entry: &Entry, pieces: &Pieces, data: &[u8]) -> (Vec<u8>, Seen) {
        let mut writer = TarWriter::new(Vec::new());
        writer.begin(entry, pieces).expect("can be said");
        if !data.is_empty() {
            writer.data(data).expect("memory");
        }
        let archive = writer.finish().expect("memory");
        let (mut stream, mut found) = (Stream::new(crate::tar::Limits::default()), Seen::default());
        stream.write(&archive, &mut found).expect("is read again");
        stream.finish().expect("is whole");
        (archive, found)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = [b"directory/".repeat(30), b"name".to_vec()].concat();
        let names = [b"a".to_vec(), b"caf\xc3\xa9".to_vec(), b"\xff\n\x1b".to_vec(), vec![b'x'; 255], long];
        let times = [(0, 0), (1_700_000_000, 1), (-1, 750_000_000), (-5, 0), (1 << 40, 120_000_000)];
        for name in &names {
            for (seconds, nanoseconds) in times {
                let entry = Entry {
                    name: name.clone(),
                    mode: 0o4751,
                    uid: 4_294_967_294,
                    gid: 0o7_777_777,
                    mtime: Time { seconds, nanoseconds },
                    size: 3,
                    xattrs: vec![
                        (b"user.a".to_vec(), b"\0=\n".to_vec()),
                        (b"user.b=%".to_vec(), b"\xff".to_vec()),
                    ],
                    ..Entry::default()
                };
                let (_, found) = write(&entry, &[], b"abc");
                assert_eq!(found.entries, [seen(&entry)]);
                assert_eq!(found.content, b"abc");
                let link = Entry { kind: Kind::Symlink, link: name.clone(), size: 0, ..entry };
                assert_eq!(write(&link, &[], b"").1.entries, [seen(&link)]);
            }
        }
    }

    #[test]
    fn what_fits_a_header_has_no_records() {
        let entry = Entry { name: b"a/b".to_vec(), mode: 0o644, size: 1, ..Entry::default() };
        assert_eq!(write(&entry, &[], b"x").0.len(), 4 * BLOCK);
        let two = [b"p".repeat(155), b"n".repeat(100)].join(&b'/');
        let entry = Entry { name: two, ..Entry::default() };
        let (archive, found) = write(&entry, &[], b"");
        assert_eq!((archive.len(), found.entries), (3 * BLOCK, vec![seen(&entry)]));
    }

    #[test]
    fn holes_stay_holes() {
        let entry = Entry { name: b"dir/sparse".to_vec(), size: 1 << 34, sparse: true, ..Entry::default() };
        let (archive, found) = write(&entry, &[(4, 2), (8, 1), (1 << 34, 0)], b"abc");
        assert!(archive.len() < 10 * BLOCK);
        assert_eq!(found.entries, [seen(&entry)]);
        assert_eq!(found.content, b"....ab..c");
        let empty = Entry { size: 1 << 20, ..entry };
        assert_eq!(write(&empty, &[(1 << 20, 0)], b"").1.entries, [seen(&empty)]);
    }

    #[test]
    fn metadata_that_no_reader_takes_is_refused() {
        let xattrs = vec![(b"user.a".to_vec(), vec![b'x'; EXTENSION_MAX_BYTES])];
        let entry = Entry { name: b"a".to_vec(), xattrs, ..Entry::default() };
        assert!(TarWriter::new(Vec::new()).begin(&entry, &[]).is_err());
    }
}
