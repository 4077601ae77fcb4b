//! What a zstd:chunked layer says of itself: the table of contents and tar-split's record, as JSON behind the archive.
//!
//! The form is that of containers/storage (pkg/chunked/internal/minimal) and of vbatts/tar-split (tar/storage). The table says
//! of each entry what a reader needs to make it and where its content is; the record has all bytes of the archive that are no
//! file's content, so that the tar can be put together again from files.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use zstd::stream::write::Encoder;

use super::measured::Measured;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tar::{Entry, Kind, Time};

/// What containers/storage takes; of a layer with a larger one it would fetch the whole.
const CONTENTS_MAX_BYTES: u64 = 150 << 20;
/// Bytes of the archive in one segment of the record at the most.
const SEGMENT_BYTES: usize = 64 << 10;
/// Go writes no other years, and reads none.
const YEARS: std::ops::RangeInclusive<i64> = 0..=9999;
const DAY_SECONDS: i64 = 86_400;

/// A chunk of a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Of the content.
    pub(super) digest: Digest,
    /// Where its frame begins in the blob.
    pub(super) at: u64,
    /// Bytes of content.
    pub(super) size: u64,
    /// Whether they are all zeros.
    pub(super) hole: bool,
}

/// A JSON text on its way into a file that has no name.
struct Spool {
    out: Encoder<'static, Measured<File>>,
    bytes: u64,
}

/// A JSON text that is done.
pub(super) struct Spooled {
    pub(super) file: File,
    /// Of the compressed text.
    pub(super) digest: Digest,
    pub(super) compressed: u64,
    pub(super) bytes: u64,
}

impl Spool {
    /// `beside`: a file in whose directory there is room.
    fn create(beside: &Path, name: &str, level: i32) -> Result<Self> {
        let path = beside.with_extension(name);
        let make = || -> io::Result<Self> {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            std::fs::remove_file(&path)?;
            let mut out = Encoder::new(Measured::new(file), level)?;
            out.include_checksum(true)?;
            Ok(Self { out, bytes: 0 })
        };
        make().map_err(|e| Error::io("create", &path, &e))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn finish(self) -> io::Result<Spooled> {
        let (mut file, digest, compressed) = self.out.finish()?.finish();
        file.seek(SeekFrom::Start(0))?;
        Ok(Spooled { file, digest, compressed, bytes: self.bytes })
    }
}

/// Writes both while the archive goes by.
pub(super) struct Contents {
    table: Spool,
    record: Spool,
    position: u64,
    entries: u64,
    /// Of the names so far: a table with one twice is refused by its readers.
    names: HashSet<u64>,
    /// Bytes of the archive that are no content and stand in no segment yet.
    raw: Vec<u8>,
    text: Vec<u8>,
}

impl Contents {
    pub(super) fn create(beside: &Path, level: i32) -> Result<Self> {
        let mut table = Spool::create(beside, "table", level)?;
        table.write(b"{\"version\":1,\"entries\":[").map_err(|e| wrong(&e))?;
        Ok(Self {
            table,
            record: Spool::create(beside, "record", level)?,
            position: 0,
            entries: 0,
            names: HashSet::new(),
            raw: Vec::new(),
            text: Vec::new(),
        })
    }

    /// Looks at an entry before it is told: why there can be no table with it.
    pub(super) fn check(&mut self, entry: &Entry) -> std::result::Result<(), &'static str> {
        if let Some(why) = entry.said.unlike_go {
            return Err(why);
        }
        let xattrs = entry.xattrs.iter().map(|(name, _)| name);
        if [&entry.name, &entry.link].into_iter().chain(xattrs).any(|name| str::from_utf8(name).is_err()) {
            return Err("a name that is not UTF-8");
        }
        let times = [Some(entry.mtime), entry.said.atime, entry.said.ctime];
        if times.into_iter().flatten().any(|time| !YEARS.contains(&date_of(time.seconds).0)) {
            return Err("a time that has no year of four digits");
        }
        if self.table.bytes > CONTENTS_MAX_BYTES || self.record.out.get_ref().bytes() > CONTENTS_MAX_BYTES {
            return Err("more entries than a table may have");
        }
        let key = blake3::hash(&entry.name);
        let key = key.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes);
        if self.names.insert(key) { Ok(()) } else { Err("a name that stands twice") }
    }

    /// Bytes of the archive that are no file's content.
    pub(super) fn raw(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let count = bytes.len().min(SEGMENT_BYTES - self.raw.len());
            self.raw.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            if self.raw.len() == SEGMENT_BYTES {
                self.end_segment()?;
            }
        }
        Ok(())
    }

    fn end_segment(&mut self) -> Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.text.clear();
        self.text.extend_from_slice(b"{\"type\":2,\"payload\":\"");
        base64(&self.raw, &mut self.text);
        self.text.push(b'"');
        self.raw.clear();
        self.end_line()
    }

    fn end_line(&mut self) -> Result<()> {
        number(&mut self.text, "position", self.position);
        self.text.extend_from_slice(b"}\n");
        self.position += 1;
        self.record.write(&self.text).map_err(|e| wrong(&e))
    }

    /// An entry goes into the record, behind its headers; of a file that has content, with tar-split's sum of it.
    pub(super) fn record(&mut self, entry: &Described, sum: Option<u64>) -> Result<()> {
        self.end_segment()?;
        self.text.clear();
        self.text.extend_from_slice(b"{\"type\":1");
        if !entry.name.is_empty() {
            text(&mut self.text, "name", &entry.name);
        }
        if entry.size > 0 {
            number(&mut self.text, "size", entry.size);
        }
        self.text.extend_from_slice(b",\"payload\":");
        match sum {
            Some(sum) => {
                self.text.push(b'"');
                base64(&sum.to_be_bytes(), &mut self.text);
                self.text.push(b'"');
            }
            None => self.text.extend_from_slice(b"null"),
        }
        self.end_line()
    }

    /// An entry goes into the table; of a file that has content, with its digest, where its last frame ends, and its chunks.
    pub(super) fn entry(
        &mut self,
        entry: &Described,
        content: Option<(Digest, u64, &[Chunk])>,
    ) -> Result<()> {
        self.text.clear();
        if self.entries > 0 {
            self.text.push(b',');
        }
        self.entries += 1;
        self.text.extend_from_slice(&entry.text);
        if let Some((digest, end, chunks)) = content {
            text(&mut self.text, "digest", digest.to_string().as_bytes());
            self.chunks(&entry.name, end, chunks);
        }
        self.text.push(b'}');
        self.table.write(&self.text).map_err(|e| wrong(&e))
    }

    /// The first chunk's fields belong to the entry itself; of a single one only its place is told.
    fn chunks(&mut self, name: &[u8], end: u64, chunks: &[Chunk]) {
        let mut offset = 0;
        for (at, chunk) in chunks.iter().enumerate() {
            if at > 0 {
                self.text.extend_from_slice(b"},{\"type\":\"chunk\"");
                text(&mut self.text, "name", name);
                number(&mut self.text, "chunkOffset", offset);
            }
            number(&mut self.text, "offset", chunk.at);
            if at == 0 || at + 1 == chunks.len() {
                number(&mut self.text, "endOffset", end);
            }
            if chunks.len() > 1 {
                number(&mut self.text, "chunkSize", chunk.size);
                text(&mut self.text, "chunkDigest", chunk.digest.to_string().as_bytes());
                if chunk.hole {
                    text(&mut self.text, "chunkType", b"zeros");
                }
            }
            offset += chunk.size;
        }
    }

    /// The archive has ended: the table, and tar-split's record.
    pub(super) fn finish(mut self) -> Result<(Spooled, Spooled)> {
        self.end_segment()?;
        let record = self.record.finish().map_err(|e| wrong(&e))?;
        let end = format!("],\"tarSplitDigest\":\"{}\"}}", record.digest);
        let table = self.table.write(end.as_bytes()).and_then(|()| self.table.finish());
        Ok((table.map_err(|e| wrong(&e))?, record))
    }
}

/// An entry as the table tells it, up to its content.
pub(super) struct Described {
    name: Vec<u8>,
    size: u64,
    text: Vec<u8>,
}

impl Described {
    /// Whether bytes of its own follow in the archive.
    pub(super) fn has_content(&self) -> bool {
        self.size > 0
    }

    pub(super) fn new(entry: &Entry) -> Self {
        let mut to = b"{\"type\":\"".to_vec();
        to.extend_from_slice(match entry.kind {
            Kind::File => b"reg",
            Kind::Directory => b"dir",
            Kind::Symlink => b"symlink",
            Kind::Hardlink => b"hardlink",
            Kind::Character => b"char",
            Kind::Block => b"block",
            Kind::Fifo => b"fifo",
        });
        to.push(b'"');
        text(&mut to, "name", &entry.name);
        if !entry.link.is_empty() {
            text(&mut to, "linkName", &entry.link);
        }
        let said = &entry.said;
        let numbers = [
            ("mode", said.mode),
            ("size", entry.size.cast_signed()),
            ("uid", entry.uid.into()),
            ("gid", entry.gid.into()),
            ("devMajor", said.device.0),
            ("devMinor", said.device.1),
        ];
        for (key, value) in numbers.into_iter().filter(|&(_, value)| value != 0) {
            number(&mut to, key, value);
        }
        for (key, value) in
            [("modtime", Some(entry.mtime)), ("accesstime", said.atime), ("changetime", said.ctime)]
        {
            if let Some(value) = value {
                text(&mut to, key, timestamp(value).as_bytes());
            }
        }
        let mut xattrs: Vec<_> = entry.xattrs.iter().collect();
        xattrs.sort_unstable();
        for (at, (key, value)) in xattrs.into_iter().enumerate() {
            to.extend_from_slice(if at == 0 { b",\"xattrs\":{" } else { b"," });
            string(&mut to, key);
            to.extend_from_slice(b":\"");
            base64(value, &mut to);
            to.push(b'"');
        }
        if !entry.xattrs.is_empty() {
            to.push(b'}');
        }
        Self { name: entry.name.clone(), size: entry.size, text: to }
    }
}

fn wrong(error: &io::Error) -> Error {
    Error::io("write", "table of contents", error)
}

/// `,"key":value`.
fn number(to: &mut Vec<u8>, key: &str, value: impl std::fmt::Display) {
    to.extend_from_slice(format!(",\"{key}\":{value}").as_bytes());
}

/// `,"key":"value"`.
fn text(to: &mut Vec<u8>, key: &str, value: &[u8]) {
    to.extend_from_slice(b",\"");
    to.extend_from_slice(key.as_bytes());
    to.extend_from_slice(b"\":");
    string(to, value);
}

/// A JSON string of what is UTF-8.
fn string(to: &mut Vec<u8>, value: &[u8]) {
    to.push(b'"');
    for &byte in value {
        match byte {
            b'"' | b'\\' => to.extend_from_slice(&[b'\\', byte]),
            0..0x20 => to.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => to.push(byte),
        }
    }
    to.push(b'"');
}

/// RFC 4648's own, with padding.
fn base64(bytes: &[u8], to: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for three in bytes.chunks(3) {
        let word =
            three.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place) & 63) as usize];
            to.push(if place <= three.len() { digit } else { b'=' });
        }
    }
}

/// Year, month and day of a time in seconds since 1970, in UTC.
fn date_of(seconds: i64) -> (i64, i64, i64) {
    // Years that begin in March, in eras of 400 of them: then a leap day is the last of its year.
    let days = seconds.div_euclid(DAY_SECONDS).saturating_add(719_468);
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (in_month, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (year + era * 400 + i64::from(month <= 2), month, in_month)
}

/// RFC 3339, in UTC.
fn timestamp(time: Time) -> String {
    let (year, month, day) = date_of(time.seconds);
    let second = time.seconds.rem_euclid(DAY_SECONDS);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = if time.nanoseconds == 0 { String::new() } else { format!(".{:09}", time.nanoseconds) };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_rfc_3339_has_them() {
        let known = [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_700_000_000, 5, "2023-11-14T22:13:20.000000005Z"),
            (951_782_400, 0, "2000-02-29T00:00:00Z"),
            (-1, 999_999_999, "1969-12-31T23:59:59.999999999Z"),
            (-62_167_219_200, 0, "0000-01-01T00:00:00Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, nanoseconds, expected) in known {
            assert_eq!(timestamp(Time { seconds, nanoseconds }), expected);
        }
        assert!(!YEARS.contains(&date_of(253_402_300_800).0));
        assert!(!YEARS.contains(&date_of(-62_167_219_201).0));
        assert!(!YEARS.contains(&date_of(i64::MAX).0) && !YEARS.contains(&date_of(i64::MIN).0));
    }

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let known = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, expected) in known.into_iter().enumerate() {
            let mut found = Vec::new();
            base64(&b"foobar"[..length], &mut found);
            assert_eq!(found, expected.as_bytes());
        }
    }

    #[test]
    fn strings_are_escaped() {
        let mut found = Vec::new();
        string(&mut found, "a\"b\\c\n\u{1}\u{7f}ü".as_bytes());
        assert_eq!(found, "\"a\\\"b\\\\c\\u000a\\u0001\u{7f}ü\"".as_bytes());
    }
}
