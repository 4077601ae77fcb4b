//! Layers: tar archives read, applied, indexed, put together and made.
//!
//! [`LayerWriter`] makes a layer's own directory; [`merge`] applies a layer to a directory that holds those
//! below it; [`view`] puts layers together as a container sees them; [`diff`] makes a layer of what changed in a
//! tree, and [`frame`] the archive again that a layer came from.

mod acl;
mod below;
mod blocks;
pub mod changes;
pub mod compose;
pub mod diff;
pub mod digests;
mod entry;
mod facts;
mod form;
pub mod frame;
mod fresh;
mod header;
pub mod index;
pub mod layers;
pub mod limits;
pub mod merge;
mod metadata;
mod name;
mod nodes;
mod objects;
#[cfg(test)]
mod oracle;
mod ownership;
mod pax;
mod record;
pub mod settle;
mod stream;
mod tree;
pub mod view;
mod write;

pub use below::{Below, Layers};
pub use entry::{Entry, Kind, Said, Time};
pub use fresh::LayerWriter;
pub use limits::{Limits, Meter};
pub use ownership::{IdMaps, Ownership};
pub use stream::{Sink, Stream};
pub use write::{Pieces, TarWriter};

use crate::error::Error;

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
    /// Extended attributes that were not set: overlayfs' own marks, and what the kernel does not keep there.
    pub skipped_xattrs: u64,
    /// Symbolic links that are not root's, where owners are recorded: they cannot hold a record.
    pub unrecorded_owners: u64,
}

/// The error that refuses an entry.
fn refuse(entry: &Entry, reason: impl Into<String>) -> Error {
    Error::UnsafeArchive { entry: entry.name.clone(), offset: entry.offset, reason: reason.into() }
}

/// The kernel's refusal to make an entry.
fn failed(entry: &Entry, operation: &'static str, errno: rustix::io::Errno) -> Error {
    Error::errno(operation, crate::root::to_path(&entry.name), errno)
}
