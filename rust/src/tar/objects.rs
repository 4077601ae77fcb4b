//! A layer as objects: the index has all names and metadata, the store's objects the contents, and `pack` the short ones.
//!
//! No file is made for a file: [`super::compose`] makes an image of a stack's indexes, which overlayfs shows. An archive's
//! own attributes of overlayfs' names never get into an index, so no entry can name an object.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::compose::{judge, judge_directories};
use super::entry::Entry;
use super::failed;
use super::form::{Ended, Form, Made, create_lost};
use super::index::Place;
use super::layers::PACK;
use super::nodes::{Inode, NodeId, Nodes};
use crate::cas::{NewObject, ObjectWriter, Stored};
use crate::error::{Error, Result};

const PACK_BUFFER_BYTES: usize = 1 << 16;

/// Makes `pack` in a layer's directory, and objects.
#[derive(Debug)]
pub(super) struct ObjectsForm {
    objects: ObjectWriter,
    packed: u64,
    current: Option<NewObject>,
    pack: BufWriter<File>,
    pack_bytes: u64,
    hasher: Box<blake3::Hasher>,
}

impl ObjectsForm {
    pub(super) fn new(directory: &OwnedFd, objects: ObjectWriter, packed: u64) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let pack = rustix::fs::openat(directory, PACK, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("create", PACK, e))?;
        let pack = BufWriter::with_capacity(PACK_BUFFER_BYTES, pack);
        Ok(Self { objects, packed, current: None, pack, pack_bytes: 0, hasher: Box::default() })
    }

    /// Appends a content to the pack.
    fn put(&mut self, content: &[u8]) -> Result<Place> {
        let offset = self.pack_bytes;
        self.pack.write_all(content).map_err(|e| Error::io("write", PACK, &e))?;
        self.hasher.update(content);
        self.pack_bytes += content.len() as u64;
        Ok(Place::Packed(offset))
    }

    /// Gives a content back that was taken in.
    fn copy_out(&mut self, inode: &Inode, to: &mut File) -> Result<()> {
        let wrong = |e: &std::io::Error| Error::io("write", "lost", e);
        match inode.place {
            Place::Object(key) => {
                let from = self.objects.open(&key)?;
                super::settle::copy(&from, to.as_fd(), inode.size, &mut true)
                    .map_err(|(operation, e)| Error::errno(operation, "lost", e))
            }
            Place::Packed(offset) => {
                self.pack.flush().map_err(|e| wrong(&e))?;
                let mut bytes = vec![0; usize::try_from(inode.size).unwrap_or(0)];
                self.pack.get_ref().read_exact_at(&mut bytes, offset).map_err(|e| wrong(&e))?;
                to.write_all(&bytes).map_err(|e| wrong(&e))
            }
            Place::Tree => Ok(()),
        }
    }
}

impl Form for ObjectsForm {
    fn digests(&self) -> bool {
        true
    }

    fn begin_file(&mut self, _: &Nodes, entry: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        self.current = Some(self.objects.begin(entry.sparse));
        Ok(())
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        self.objects.write(current, offset, bytes).map_err(|e| of(entry, e))
    }

    fn end_file(&mut self, nodes: &Nodes, entry: &Entry, node: NodeId) -> Result<Ended> {
        let skipped_xattrs = judge(nodes.inode(node), || entry.name.clone())?;
        let Some(current) = self.current.take() else {
            return Ok(Ended { place: Place::Tree, extent: None, blake3: None, skipped_xattrs });
        };
        let (stored, blake3) =
            self.objects.finish(current, entry.size, self.packed).map_err(|e| of(entry, e))?;
        let place = match stored {
            Stored::Object(key) => Place::Object(key),
            Stored::Held(content) => self.put(&content)?,
        };
        Ok(Ended { place, extent: None, blake3, skipped_xattrs })
    }

    fn make_special(&mut self, _: &Nodes, entry: &Entry, _: NodeId, _: &[u8]) -> Result<u64> {
        judge(&Inode::of(entry), || entry.name.clone())
    }

    fn keep(&mut self, nodes: &Nodes, node: NodeId, lost: BorrowedFd<'_>, name: &str) -> Result<()> {
        self.copy_out(nodes.inode(node), &mut create_lost(lost, name)?)
    }

    fn finish(&mut self, nodes: &Nodes) -> Result<Made> {
        let skipped_xattrs = judge_directories(nodes)?;
        self.pack.flush().map_err(|e| Error::io("write", PACK, &e))?;
        Ok(Made { pack: Some(self.hasher.finalize().into()), blocks: None, skipped_xattrs })
    }
}

/// An error of the store, told of the entry that it came with.
fn of(entry: &Entry, error: Error) -> Error {
    match error {
        Error::Io { errno, operation, .. } => failed(entry, operation, Errno::from_raw_os_error(errno)),
        other => other,
    }
}
