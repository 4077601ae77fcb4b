//! The archive as a stream of blocks: pushed in by any chunking, told to a sink entry by entry. No I/O.

use super::entry::{Entry, Kind, Said, Time};
use super::header::{BLOCK, Header, sparse_extension};
use super::limits::Limits;
use super::pax::{Extensions, decimal};
use crate::error::{Error, Result};

/// The least bytes that a pair of a sparse map takes: "0\n0\n".
const SPARSE_PAIR_BYTES: u64 = 4;

/// The kernel's own bounds, which hold for every file system.
const XATTR_NAME_MAX_BYTES: usize = 255;
const XATTR_VALUE_MAX_BYTES: usize = 1 << 16;

/// Who is told.
pub trait Sink {
    /// An entry begins; for a regular file its data follows.
    ///
    /// # Errors
    /// What the sink refuses ends the stream.
    fn begin(&mut self, entry: &Entry) -> Result<()>;
    /// Bytes of the current file at an offset.
    ///
    /// # Errors
    /// As `begin`.
    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()>;
    /// The current file is complete.
    ///
    /// # Errors
    /// As `begin`.
    fn end(&mut self, entry: &Entry) -> Result<()>;
    /// Bytes of the archive that are no file's data: headers, padding, what follows the end.
    ///
    /// # Errors
    /// As `begin`.
    fn frame(&mut self, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    Pax,
    LongName,
    LongLink,
    /// Global records, which never change where or how much is unpacked: passed over.
    Ignored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Extension {
        kind: Extension,
        left: u64,
        padding: u64,
    },
    /// More blocks of an old GNU sparse map.
    SparseBlocks,
    /// The text in front of a PAX 1.0 sparse file's data.
    SparseText,
    Data,
    Padding(u64),
    /// After the end marks: whatever comes counts for the digest alone.
    End,
}

/// The parser.
#[derive(Debug)]
pub struct Stream {
    limits: Limits,
    state: State,
    block: [u8; BLOCK],
    block_len: usize,
    entry: Entry,
    extensions: Extensions,
    body: Vec<u8>,
    /// Bytes in front of the entry that is being read: all that is held in memory for it.
    in_front: u64,
    /// Lines of the sparse map so far.
    lines: u64,
    /// Bytes of the current entry that are still to come, without padding.
    left: u64,
    padding: u64,
    /// The sparse map, and where in it we are.
    pairs: Vec<(u64, u64)>,
    pair: usize,
    pair_done: u64,
    written: u64,
    zero_blocks: u32,
    /// Whether there were headers that stand for no entry and that others take for one.
    foreign_headers: bool,
    offset: u64,
    header_offset: u64,
}

impl Stream {
    /// Starts in front of an archive; of the limits only `header_bytes` is the parser's, which keeps nothing else.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Header,
            block: [0; BLOCK],
            block_len: 0,
            entry: Entry::default(),
            extensions: Extensions::default(),
            body: Vec::new(),
            in_front: 0,
            lines: 0,
            left: 0,
            padding: 0,
            pairs: Vec::new(),
            pair: 0,
            pair_done: 0,
            written: 0,
            zero_blocks: 0,
            foreign_headers: false,
            offset: 0,
            header_offset: 0,
        }
    }

    /// Takes in the next bytes of the archive.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] for what is no tar, and whatever the sink raises.
    pub fn write(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Result<()> {
        while !bytes.is_empty() {
            let framing = self.state != State::Data;
            let used = match self.state {
                State::Header | State::SparseBlocks | State::SparseText => self.collect(bytes, sink)?,
                State::Extension { kind, left, padding } => self.extension(bytes, kind, left, padding)?,
                State::Data => self.data(bytes, sink)?,
                State::Padding(left) => {
                    let used = take(left, bytes.len());
                    self.state =
                        if used as u64 == left { State::Header } else { State::Padding(left - used as u64) };
                    used
                }
                State::End => bytes.len(),
            };
            if framing {
                sink.frame(&bytes[..used])?;
            }
            self.offset += used as u64;
            bytes = &bytes[used..];
        }
        Ok(())
    }

    /// The archive has ended: at a clean end, with or without its end marks.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] where it was cut off.
    pub fn finish(&self) -> Result<()> {
        let between = matches!(self.state, State::Header) && self.block_len == 0;
        if !between && self.state != State::End {
            return Err(self.refuse("archive is cut off"));
        }
        if self.extensions.any {
            return Err(self.refuse("archive ends after an extended header"));
        }
        Ok(())
    }

    /// How many bytes can be taken in at most before another entry may begin.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self.state {
            State::Header | State::SparseBlocks | State::SparseText => (BLOCK - self.block_len) as u64,
            State::Extension { left, .. } | State::Padding(left) => left,
            State::Data => self.left,
            State::End => u64::MAX,
        }
    }

    /// Bytes of the current file that are still to come.
    #[must_use]
    pub fn data_left(&self) -> u64 {
        if self.state == State::Data { self.left } else { 0 }
    }

    /// Whether there were global headers, or Solaris' extended ones: Go's archive/tar takes either for an entry.
    #[must_use]
    pub fn has_foreign_headers(&self) -> bool {
        self.foreign_headers
    }

    /// Whether the end marks were seen.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.state == State::End
    }

    /// Takes the rest of the current file's data for read. The sink is not told of the file's end.
    pub fn skip_data(&mut self) {
        if self.state == State::Data {
            self.offset += std::mem::take(&mut self.left);
            self.state = if self.padding == 0 { State::Header } else { State::Padding(self.padding) };
        }
    }

    fn refuse(&self, reason: impl Into<String>) -> Error {
        Error::UnsafeArchive {
            entry: self.entry.name.clone(),
            offset: self.header_offset,
            reason: reason.into(),
        }
    }

    /// Gathers a block and acts on it. A whole block in `bytes` is still copied: 512 bytes, once an entry.
    fn collect(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize> {
        let used = bytes.len().min(BLOCK - self.block_len);
        self.block[self.block_len..self.block_len + used].copy_from_slice(&bytes[..used]);
        self.block_len += used;
        if self.block_len == BLOCK {
            self.block_len = 0;
            let block = self.block;
            match self.state {
                State::SparseBlocks => self.sparse_block(&block, sink)?,
                State::SparseText => self.sparse_text(&block, sink)?,
                _ => self.header(&block, sink)?,
            }
        }
        Ok(used)
    }

    fn header(&mut self, block: &[u8; BLOCK], sink: &mut impl Sink) -> Result<()> {
        let header = Header(block);
        if header.is_zero() {
            self.zero_blocks += 1;
            if self.zero_blocks == 2 {
                self.state = State::End;
            }
            return Ok(());
        }
        if self.zero_blocks > 0 {
            return Err(self.refuse("a zero block stands in the middle of the archive"));
        }
        self.entry.name.clear();
        self.header_offset = self.block_offset();
        header.check_sum().map_err(|e| self.refuse(e))?;
        match header.kind() {
            b'x' => self.enter_extension(&header, Extension::Pax),
            b'X' => {
                self.foreign_headers = true;
                self.enter_extension(&header, Extension::Pax)
            }
            b'g' => {
                self.foreign_headers = true;
                self.enter_extension(&header, Extension::Ignored)
            }
            b'L' => self.enter_extension(&header, Extension::LongName),
            b'K' => self.enter_extension(&header, Extension::LongLink),
            _ => self.entry(&header, sink),
        }
    }

    /// Where the block that was just completed starts.
    fn block_offset(&self) -> u64 {
        // `offset` still counts the bytes before those of this call that completed the block.
        self.offset / BLOCK as u64 * BLOCK as u64
    }

    fn enter_extension(&mut self, header: &Header<'_>, kind: Extension) -> Result<()> {
        let left = header.size().map_err(|e| self.refuse(e))?;
        self.put_in_front(left)?;
        self.body.clear();
        self.state = State::Extension { kind, left, padding: padding(left) };
        if left == 0 { self.end_extension(kind) } else { Ok(()) }
    }

    /// Counts bytes in front of an entry, before any of them is kept.
    fn put_in_front(&mut self, bytes: u64) -> Result<()> {
        self.in_front = self.in_front.saturating_add(bytes);
        self.limits.check_headers(self.in_front, &self.entry.name, self.header_offset)
    }

    fn extension(&mut self, bytes: &[u8], kind: Extension, left: u64, padding: u64) -> Result<usize> {
        let used = take(left, bytes.len());
        if kind != Extension::Ignored {
            self.body.extend_from_slice(&bytes[..used]);
        }
        let left = left - used as u64;
        self.state = State::Extension { kind, left, padding };
        if left == 0 {
            self.end_extension(kind)?;
            self.state = if padding == 0 { State::Header } else { State::Padding(padding) };
        }
        Ok(used)
    }

    fn end_extension(&mut self, kind: Extension) -> Result<()> {
        let body = std::mem::take(&mut self.body);
        let until_nul = &body[..memchr::memchr(0, &body).unwrap_or(body.len())];
        match kind {
            Extension::Pax => self.extensions.read(&body).map_err(|e| self.refuse(e))?,
            Extension::LongName => self.extensions.long_name = Some(until_nul.to_vec()),
            Extension::LongLink => self.extensions.long_link = Some(until_nul.to_vec()),
            Extension::Ignored => {}
        }
        self.extensions.any |= kind != Extension::Ignored;
        self.body = body;
        self.state = State::Header;
        Ok(())
    }

    fn entry(&mut self, header: &Header<'_>, sink: &mut impl Sink) -> Result<()> {
        let mut extensions = std::mem::take(&mut self.extensions);
        let kind = self.describe(header, &mut extensions)?;
        let data = self.entry.kind == Kind::File;
        let header_size = header.size().map_err(|e| self.refuse(e))?;
        // The effective size decides how much is skipped (CVE-2025-62518); what is no file has no data (R5).
        let size = extensions.size.unwrap_or(header_size);
        // Of a directory by its name alone some readers pass the data over, and others read entries in it.
        if size > 0 && !data && matches!(kind, b'0' | 0) {
            return Err(self.refuse("a directory by its name, but a file with data by its type"));
        }
        self.left = if data { size } else { 0 };
        if self.left > i64::MAX.cast_unsigned() {
            return Err(self.refuse("size is too large"));
        }
        self.padding = padding(self.left);
        self.entry.size = self.left;
        self.entry.sparse = false;
        self.pairs.clear();
        if data && kind == b'S' {
            let (more, real) = header.sparse(&mut self.pairs).map_err(|e| self.refuse(e))?;
            self.entry.size = real;
            self.entry.sparse = true;
            if more {
                self.state = State::SparseBlocks;
                return Ok(());
            }
        } else if data && extensions.sparse.is_used() {
            self.entry.sparse = true;
            self.entry.size =
                extensions.sparse.real_size.ok_or_else(|| self.refuse("sparse file without a size"))?;
            if extensions.sparse.major == 1 {
                self.body.clear();
                self.lines = 0;
                self.state = State::SparseText;
                return Ok(());
            }
            std::mem::swap(&mut self.pairs, &mut extensions.sparse.pairs);
        }
        self.begin(sink)
    }

    /// Fills `self.entry` from header and extensions; returns the type flag.
    fn describe(&mut self, header: &Header<'_>, extensions: &mut Extensions) -> Result<u8> {
        header.name(&mut self.entry.name);
        let clash = (extensions.path.is_some() && extensions.long_name.is_some())
            || (extensions.link.is_some() && extensions.long_link.is_some());
        let sparse_name = extensions.sparse.name.take();
        if let Some(name) = sparse_name.or(extensions.path.take()).or(extensions.long_name.take()) {
            self.entry.name = name;
        }
        self.entry.link.clear();
        match extensions.link.take().or(extensions.long_link.take()) {
            Some(link) => self.entry.link = link,
            None => self.entry.link.extend_from_slice(header.link()),
        }
        let flag = header.kind();
        self.entry.kind = match flag {
            // v7 had no type for directories but the slash at the end of the name.
            0 | b'0' if self.entry.name.last() == Some(&b'/') => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Character,
            b'4' => Kind::Block,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(self.refuse(format!("unknown entry type {:?}", char::from(other)))),
        };
        let refuse = |e: String| self.refuse(e);
        let mode = header.mode().map_err(refuse)?;
        let uid = extensions.uid.map_or_else(|| header.uid(), Ok).map_err(refuse)?;
        let gid = extensions.gid.map_or_else(|| header.gid(), Ok).map_err(refuse)?;
        let seconds = header.mtime().map_err(refuse)?;
        let device = match self.entry.kind {
            Kind::Character | Kind::Block => header.device().map_err(refuse)?,
            _ => (0, 0),
        };
        self.entry.mode = mode;
        self.entry.uid = uid;
        self.entry.gid = gid;
        self.entry.mtime = extensions.mtime.unwrap_or(Time { seconds, nanoseconds: 0 });
        self.entry.device = device;
        self.entry.xattrs = std::mem::take(&mut extensions.xattrs);
        if let Some(fault) = self.entry.xattrs.iter().find_map(|(name, value)| xattr_fault(name, value)) {
            return Err(self.refuse(fault));
        }
        self.entry.said = say(header, extensions, &self.entry, clash);
        self.entry.offset = self.header_offset;
        Ok(flag)
    }

    fn begin(&mut self, sink: &mut impl Sink) -> Result<()> {
        if self.entry.sparse {
            self.check_map()?;
        }
        self.in_front = 0;
        self.pair = 0;
        self.pair_done = 0;
        self.written = 0;
        self.entry.content_offset = (self.left > 0).then(|| self.block_offset() + BLOCK as u64);
        sink.begin(&self.entry)?;
        self.state = State::Data;
        if self.left == 0 { self.end(sink) } else { Ok(()) }
    }

    fn end(&mut self, sink: &mut impl Sink) -> Result<()> {
        if self.entry.kind == Kind::File {
            sink.end(&self.entry)?;
        }
        self.state = if self.padding == 0 { State::Header } else { State::Padding(self.padding) };
        Ok(())
    }

    fn data(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize> {
        let mut used = take(self.left, bytes.len());
        let mut at = self.written;
        if self.entry.sparse {
            // The map was checked: as long as bytes are left there is a pair that wants them.
            while self.pair_done == self.pairs[self.pair].1 {
                self.pair += 1;
                self.pair_done = 0;
            }
            let (offset, length) = self.pairs[self.pair];
            used = take(length - self.pair_done, used);
            at = offset + self.pair_done;
            self.pair_done += used as u64;
        }
        sink.data(&self.entry, at, &bytes[..used])?;
        self.written += used as u64;
        self.left -= used as u64;
        if self.left == 0 {
            self.end(sink)?;
        }
        Ok(used)
    }

    /// Pairs in order, none over another, none past the end, and as many bytes as the archive has.
    fn check_map(&self) -> Result<()> {
        let mut end = 0u64;
        let mut stored = 0u64;
        for &(offset, length) in &self.pairs {
            if offset < end {
                return Err(self.refuse("sparse map overlaps"));
            }
            end = offset + length;
            stored += length;
            if end > self.entry.size {
                return Err(self.refuse("sparse map goes past the file's size"));
            }
        }
        if stored == self.left {
            Ok(())
        } else {
            Err(self.refuse("sparse map does not fit the stored bytes"))
        }
    }

    fn sparse_block(&mut self, block: &[u8; BLOCK], sink: &mut impl Sink) -> Result<()> {
        self.put_in_front(BLOCK as u64)?;
        let more = sparse_extension(block, &mut self.pairs).map_err(|e| self.refuse(e))?;
        if more { Ok(()) } else { self.begin(sink) }
    }

    /// A block of a PAX 1.0 map: a count, then as many pairs, each number on a line of its own.
    fn sparse_text(&mut self, block: &[u8; BLOCK], sink: &mut impl Sink) -> Result<()> {
        let used = BLOCK as u64;
        if self.left < used {
            return Err(self.refuse("sparse map is cut off"));
        }
        self.put_in_front(used)?;
        self.left -= used;
        self.body.extend_from_slice(block);
        // Counting the newlines of each block first keeps this linear however many blocks the map has.
        self.lines += memchr::memchr_iter(b'\n', block).count() as u64;
        let Some(wanted) = self.sparse_lines(None)? else { return Ok(()) };
        // A count that no map within the limit could hold is refused before the map is read.
        let claimed = wanted.saturating_mul(SPARSE_PAIR_BYTES);
        self.limits.check_headers(claimed, &self.entry.name, self.header_offset)?;
        if self.lines <= wanted * 2 {
            return Ok(());
        }
        self.sparse_lines(Some(wanted))?;
        self.padding = padding(self.left);
        self.begin(sink)
    }

    /// Without `pairs`: the count on the first line, if it is whole. With: reads that many pairs.
    fn sparse_lines(&mut self, pairs: Option<u64>) -> Result<Option<u64>> {
        let body = std::mem::take(&mut self.body);
        let mut lines = body.split(|&b| b == b'\n');
        let result = (|| {
            let first = lines.next().unwrap_or(b"");
            if first.len() == body.len() {
                return if first.len() > 20 { Err("sparse map has no count".to_owned()) } else { Ok(None) };
            }
            let count = decimal(first, "sparse map count")?;
            for _ in 0..pairs.unwrap_or(0) {
                let offset = decimal(lines.next().unwrap_or(b""), "sparse map")?;
                self.pairs.push((offset, decimal(lines.next().unwrap_or(b""), "sparse map")?));
            }
            Ok(Some(count))
        })();
        self.body = body;
        result.map_err(|e| self.refuse(e))
    }
}

/// What a header says beside what it makes.
fn say(header: &Header<'_>, extensions: &Extensions, entry: &Entry, clash: bool) -> Said {
    let (mode, device) = (header.whole_mode(), header.device_numbers());
    let data = matches!(entry.kind, Kind::File);
    let unlike_go = if !header.is_common() || mode.is_err() || device.is_err() {
        Some("a header of a rare form")
    } else if matches!(header.kind(), b'7' | b'S') || extensions.sparse.is_used() {
        Some("a sparse or a contiguous file")
    } else if header.kind() == b'0' && !data {
        Some("a directory by its name that is a file by its type")
    } else if !data && extensions.size.map_or_else(|| header.size(), Ok) != Ok(0) {
        Some("data of what is no file")
    } else if clash || extensions.headers > 1 {
        Some("several extended headers in front of one entry")
    } else if extensions.libarchive {
        Some("xattrs in libarchive's form")
    } else {
        None
    };
    Said {
        mode: mode.unwrap_or(0),
        device: device.unwrap_or((0, 0)),
        atime: extensions.atime,
        ctime: extensions.ctime,
        unlike_go,
    }
}

/// Why the kernel would not take an xattr, whatever the file system.
fn xattr_fault(name: &[u8], value: &[u8]) -> Option<String> {
    let shown = || name.get(..32).unwrap_or(name).escape_ascii();
    if name.is_empty() || name.len() > XATTR_NAME_MAX_BYTES {
        return Some(format!("xattr name has {} bytes: {}", name.len(), shown()));
    }
    let long = value.len() > XATTR_VALUE_MAX_BYTES;
    long.then(|| format!("xattr value has {} bytes, over {XATTR_VALUE_MAX_BYTES}: {}", value.len(), shown()))
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn take(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}
