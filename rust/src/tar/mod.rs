//! Layers: tar archives read, applied, indexed and put together.
//!
//! [`LayerWriter`] makes a layer's own directory; [`merge`] applies a layer to a directory that holds those
//! below it; [`view`] puts layers together as a container sees them.

mod entry;
pub mod frame;
mod fresh;
mod header;
pub mod index;
pub mod merge;
mod metadata;
mod name;
mod nodes;
mod pax;
pub mod settle;
mod stream;
pub mod view;

pub use entry::{Entry, Kind, Time};
pub use fresh::LayerWriter;
pub use stream::{Sink, Stream};

use crate::error::{Error, Result};

/// What a layer came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AppliedLayer {
    /// Entries of the archive.
    pub entries: u64,
    /// Content bytes of its files, holes included.
    pub bytes: u64,
    /// Parent directories that it does not list.
    pub implied: u64,
    /// Hard links to files that only a lower layer has.
    pub foreign_links: u64,
}

/// What refuses an archive, and how much of it is too much.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries, markers included.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
}

impl Default for Limits {
    /// Ten million entries, 16 TiB: over what any image has, under what a disk's metadata survives.
    fn default() -> Self {
        Self { entries: 10_000_000, bytes: 1 << 44 }
    }
}

impl Limits {
    /// Counts an entry in.
    fn count(&self, applied: &mut AppliedLayer, entry: &Entry) -> Result<()> {
        applied.entries += 1;
        if applied.entries > self.entries {
            return Err(refuse(entry, format!("archive has more than {} entries", self.entries)));
        }
        applied.bytes = applied.bytes.saturating_add(entry.size);
        if applied.bytes > self.bytes {
            return Err(refuse(entry, format!("archive unpacks to more than {} bytes", self.bytes)));
        }
        Ok(())
    }
}

/// The error that refuses an entry.
fn refuse(entry: &Entry, reason: impl Into<String>) -> Error {
    Error::UnsafeArchive { entry: entry.name.clone(), offset: entry.offset, reason: reason.into() }
}

/// The kernel's refusal to make an entry.
fn failed(entry: &Entry, operation: &'static str, errno: rustix::io::Errno) -> Error {
    Error::errno(operation, crate::root::to_path(&entry.name), errno)
}
