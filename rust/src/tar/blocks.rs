//! A layer as blocks: the index has all names and metadata, and one file, `blocks`, all contents as they come.
//!
//! No file is made for a file, and nothing is looked up. A content of more than a few bytes begins at a block of its own,
//! where an image finds it ([`super::compose`]); shorter ones stand close together, for images have copies of these.

use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::compose::{judge, judge_directories};
use super::entry::Entry;
use super::failed;
use super::form::{Ended, Form, Made, create_lost};
use super::index::{Extent, Place};
use super::layers::BLOCKS;
use super::nodes::{Inode, NodeId, Nodes};
use crate::erofs::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::flush::begin_to_write;

/// Written at a time; a longer piece goes out as it came.
const BUFFER_BYTES: usize = 256 << 10;
/// Bytes after which the kernel is told to begin writing: the flush before the layer is published is short then.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// Room for short contents is taken in pieces of this: larger ones cost a seek less, smaller ones less space at the end.
const SHORT_BYTES: u64 = 64 << 10;
/// The blocks that a number of 32 bits can name.
const END_MAX: u64 = (u32::MAX as u64 - 1) * BLOCK_BYTES;

/// Makes `blocks` in a layer's directory.
#[derive(Debug)]
pub(super) struct BlocksForm {
    file: File,
    /// What comes next to be written, and where.
    buffer: Vec<u8>,
    at: u64,
    /// Up to where the kernel was told to write.
    begun: u64,
    /// Contents up to this are short.
    short: u64,
    /// Short ones that are not written yet, and the room that they have.
    held: Vec<u8>,
    room: u64,
    current: Option<Current>,
}

/// The content that is coming in.
#[derive(Debug)]
enum Current {
    Short(Vec<u8>),
    /// It begins here, and each of its bytes at its own place where it has holes.
    Long {
        start: u64,
        sparse: bool,
    },
}

fn wrong(error: &std::io::Error) -> Error {
    Error::io("write", BLOCKS, error)
}

impl BlocksForm {
    pub(super) fn new(directory: &OwnedFd, short: u64) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, BLOCKS, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("create", BLOCKS, e))?;
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Ok(Self { file, buffer, at: 0, begun: 0, short, held: Vec::new(), room: 0, current: None })
    }

    /// Where the next content begins that has a block of its own.
    fn align(&mut self, entry: &Entry, size: u64) -> Result<u64> {
        let end = self.at + self.buffer.len() as u64;
        let start = end.next_multiple_of(BLOCK_BYTES);
        if start.checked_add(size).is_none_or(|end| end > END_MAX) {
            return Err(failed(entry, "write", Errno::FBIG));
        }
        let gap = usize::try_from(start - end).unwrap_or(0);
        self.buffer.resize(self.buffer.len() + gap, 0);
        Ok(start)
    }

    /// Goes on behind a piece that is written otherwise.
    fn skip(&mut self, size: u64) -> Result<()> {
        self.flush()?;
        self.at += size;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.file.write_all_at(&self.buffer, self.at).map_err(|e| wrong(&e))?;
            self.at += self.buffer.len() as u64;
            self.buffer.clear();
            self.write_back();
        }
        Ok(())
    }

    /// Has the kernel write what is complete, and keep it: a container reads it next.
    fn write_back(&mut self) {
        if self.at - self.begun >= WRITE_BACK_BYTES {
            begin_to_write(&self.file, self.begun, self.at - self.begun);
            self.begun = self.at;
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        self.file.write_all_at(bytes, self.at).map_err(|e| wrong(&e))?;
        self.at += bytes.len() as u64;
        self.write_back();
        Ok(())
    }

    /// Puts a short content beside the others.
    fn put(&mut self, entry: &Entry, content: &[u8]) -> Result<Extent> {
        let length = content.len() as u64;
        if self.held.len() as u64 + length > SHORT_BYTES.max(length) || self.held.is_empty() {
            self.write_held()?;
            self.held.clear();
            let size = SHORT_BYTES.max(length);
            self.room = self.align(entry, size)?;
            self.skip(size)?;
        }
        let start = self.room + self.held.len() as u64;
        self.held.extend_from_slice(content);
        Ok(Extent { start, shared: true })
    }

    /// Writes short contents out; they stay held, for more may come behind them.
    fn write_held(&self) -> Result<()> {
        self.file.write_all_at(&self.held, self.room).map_err(|e| wrong(&e))
    }
}

impl Form for BlocksForm {
    fn digests(&self) -> bool {
        false
    }

    fn begin_file(&mut self, _: &Nodes, entry: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        self.current = Some(if entry.size <= self.short {
            Current::Short(Vec::new())
        } else {
            let start = self.align(entry, entry.size)?;
            if entry.sparse {
                self.skip(entry.size)?;
            }
            Current::Long { start, sparse: entry.sparse }
        });
        Ok(())
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        match &mut self.current {
            None => Ok(()),
            Some(Current::Short(content)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = start.saturating_add(bytes.len());
                if end as u64 > entry.size {
                    return Err(failed(entry, "write", Errno::FBIG)); // the parser gives no such piece
                }
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[start..end].copy_from_slice(bytes);
                Ok(())
            }
            Some(Current::Long { start, sparse: true }) => {
                let at = *start + offset;
                self.file.write_all_at(bytes, at).map_err(|e| wrong(&e))
            }
            Some(Current::Long { .. }) => self.append(bytes),
        }
    }

    fn end_file(&mut self, nodes: &Nodes, entry: &Entry, node: NodeId) -> Result<Ended> {
        let skipped_xattrs = judge(nodes.inode(node), || entry.name.clone())?;
        let extent = match self.current.take() {
            Some(Current::Short(mut content)) => {
                content.resize(usize::try_from(entry.size).unwrap_or(0), 0);
                if content.is_empty() { None } else { Some(self.put(entry, &content)?) }
            }
            Some(Current::Long { start, .. }) => Some(Extent { start, shared: false }),
            None => None,
        };
        Ok(Ended { place: Place::Tree, extent, blake3: None, skipped_xattrs })
    }

    fn make_special(&mut self, _: &Nodes, entry: &Entry, _: NodeId, _: &[u8]) -> Result<u64> {
        judge(&Inode::of(entry), || entry.name.clone())
    }

    fn keep(&mut self, nodes: &Nodes, node: NodeId, lost: BorrowedFd<'_>, name: &str) -> Result<()> {
        let mut to = create_lost(lost, name)?;
        let inode = nodes.inode(node);
        let Some(Extent { start, .. }) = inode.extent else { return Ok(()) };
        self.flush()?;
        self.write_held()?;
        super::layers::copy_range(&self.file, start, inode.size, &mut to)
            .map_err(|e| Error::io("write", "lost", &e))
    }

    fn finish(&mut self, nodes: &Nodes) -> Result<Made> {
        let skipped_xattrs = judge_directories(nodes)?;
        self.flush()?;
        self.write_held()?;
        let bytes = self.at.next_multiple_of(BLOCK_BYTES);
        self.file.set_len(bytes).map_err(|e| wrong(&e))?;
        Ok(Made { pack: None, blocks: Some(bytes), skipped_xattrs })
    }
}
