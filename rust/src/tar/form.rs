//! What a layer is made as: a directory of files, objects and a pack of short contents, or blocks.
//!
//! [`super::fresh`] decides what an entry does, by [`Nodes`] alone; a form carries it out. So every check, limit and rule
//! is the same for all of them.

use std::fs::File;
use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};

use super::entry::Entry;
use super::index::{Extent, Place};
use super::nodes::{NodeId, Nodes};
use crate::error::{Error, Result};

/// How a regular file ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    /// Where its content is.
    pub(super) place: Place,
    /// Where it is among the layer's blocks.
    pub(super) extent: Option<Extent>,
    /// Of its content, where it was digested.
    pub(super) blake3: Option<[u8; 32]>,
    /// Xattrs that could not be set.
    pub(super) skipped_xattrs: u64,
}

/// How a layer ended.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Made {
    /// BLAKE3 of its pack, where it has one.
    pub(super) pack: Option<[u8; 32]>,
    /// Bytes of its blocks, where it has these.
    pub(super) blocks: Option<u64>,
    /// Xattrs that could not be set.
    pub(super) skipped_xattrs: u64,
}

/// A file for a content that no name leads to any more.
pub(super) fn create_lost(lost: BorrowedFd<'_>, name: &str) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(lost, name, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(|e| Error::errno("create", "lost", e))
}

/// Makes what a layer decides. A name is given before `nodes` has it, and taken away while `nodes` still has it. Where names
/// are in the index alone, there is nothing to do for most.
pub(super) trait Form: std::fmt::Debug + Send {
    /// Whether files' contents are digested anyway.
    fn digests(&self) -> bool;

    /// A directory; its attributes come at the end.
    fn make_directory(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    /// A regular file, whose content follows.
    fn begin_file(&mut self, nodes: &Nodes, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<()>;

    /// A piece of its content.
    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Its end; `node` is what it became.
    fn end_file(&mut self, nodes: &Nodes, entry: &Entry, node: NodeId) -> Result<Ended>;

    /// A symbolic link, device or pipe; how many of its xattrs could not be set.
    fn make_special(&mut self, nodes: &Nodes, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<u64>;

    /// Another name of what this layer has.
    fn link(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    /// The mark of a name that the layers below do not have any more.
    fn white_out(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    /// Keeps the content of a file in a directory of such, under a name there.
    fn keep(&mut self, nodes: &Nodes, node: NodeId, lost: BorrowedFd<'_>, name: &str) -> Result<()>;

    /// Takes one name away; of a directory, all in it is gone already.
    fn remove(&mut self, _: &Nodes, _: &Entry, _: NodeId) -> Result<()> {
        Ok(())
    }

    /// Says that names are gone from `nodes` as well.
    fn forget(&mut self, _: &[NodeId]) {}

    /// Ends the layer: attributes of directories, and whatever else waits for the end.
    fn finish(&mut self, nodes: &Nodes) -> Result<Made>;
}
