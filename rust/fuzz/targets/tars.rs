//! Archives made of fuzzed bytes, and a sink that writes down what the reader says of them.

use pyctrd_core::error::Result;
use pyctrd_core::tar::{Entry, Kind, Limits, Sink, Stream};

/// Bytes of a block.
pub const BLOCK: usize = 512;

/// Everything that a reader said, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// A line for each entry.
    pub entries: Vec<String>,
    /// Content bytes of all files.
    pub bytes: u64,
    open: Option<u64>,
}

impl Sink for Heard {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        assert!(self.open.is_none() || entry.kind != Kind::File, "a file begins in a file");
        assert!(!entry.name.contains(&0) && !entry.link.contains(&0), "NUL in a name");
        assert!(entry.mode <= 0o7777, "mode {:o}", entry.mode);
        assert!(entry.mtime.nanoseconds < 1_000_000_000);
        assert!(entry.offset.is_multiple_of(BLOCK as u64), "offset {}", entry.offset);
        let line = format!(
            "{:?} {:?} {:?} {:o} {} {} {:?} {} {:?} {:?} {}",
            entry.kind,
            entry.name,
            entry.link,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime,
            entry.size,
            entry.device,
            entry.xattrs,
            entry.sparse
        );
        self.entries.push(line);
        if entry.kind == Kind::File {
            self.open = Some(0);
        }
        Ok(())
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let next = self.open.expect("data without a file");
        if entry.sparse {
            assert!(offset + bytes.len() as u64 <= entry.size, "data past the end of a sparse file");
        } else {
            assert_eq!(offset, next, "data is not in order");
            assert!(next + bytes.len() as u64 <= entry.size, "more data than the size");
        }
        self.open = Some(next + bytes.len() as u64);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self, entry: &Entry) -> Result<()> {
        let came = self.open.take().expect("an end without a file");
        assert!(entry.sparse || came == entry.size, "{came} of {} bytes", entry.size);
        Ok(())
    }
}

/// Reads an archive in pieces of some length; what was heard, and whether it was accepted.
pub fn read(archive: &[u8], piece: usize) -> (Heard, std::result::Result<(), String>) {
    let (mut stream, mut heard) = (Stream::new(Limits::default()), Heard::default());
    let read = archive.chunks(piece).try_for_each(|piece| stream.write(piece, &mut heard));
    let done = read.and_then(|()| stream.finish()).map_err(|error| error.to_string());
    (heard, done)
}

/// Fuzzed bytes as an archive whose headers have right sums, which no mutation would find by itself: each part is a
/// header of 512 bytes, the length of its content (two bytes), and that content.
pub fn repaired(mut data: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    while data.len() >= BLOCK + 2 {
        let (part, rest) = data.split_at(BLOCK + 2);
        let length = usize::from(u16::from_le_bytes([part[BLOCK], part[BLOCK + 1]])).min(rest.len());
        let start = archive.len();
        archive.extend_from_slice(&part[..BLOCK]);
        let header = &mut archive[start..];
        if header.iter().any(|&byte| byte != 0) {
            header[148..156].copy_from_slice(b"        ");
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        archive.extend_from_slice(&rest[..length]);
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
        data = &rest[length..];
    }
    archive.extend_from_slice(data);
    archive
}

/// A header block with a right sum.
pub fn header(name: &[u8], kind: u8, size: usize) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block.extend_from_slice(&[0, 0]);
    repaired(&block)
}
