//! One error enum for the crate: a variant for each thing that a caller can act on.

use std::io;
use std::path::PathBuf;

use crate::digest::Digest;

/// What went wrong. `bindings/errors.rs` maps each variant to one class of `pyctrd.errors`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The kernel refused. Becomes `OSError` with errno and filename.
    #[error("{operation}: {}: {}", path.display(), io::Error::from_raw_os_error(*errno))]
    Io {
        /// The errno.
        errno: i32,
        /// What was being done, as a verb: "open", "rename".
        operation: &'static str,
        /// What it was done to, relative to the root that the caller gave.
        path: PathBuf,
    },
    /// Bytes hash to something else than their descriptor says.
    #[error("digest mismatch: {subject}: expected {expected}, got {actual}")]
    DigestMismatch {
        /// What was hashed: "blob", or a path.
        subject: String,
        /// From the descriptor.
        expected: Box<Digest>,
        /// Of the bytes.
        actual: Box<Digest>,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("size mismatch: {subject}: expected {expected} bytes, got {actual}")]
    SizeMismatch {
        /// What was counted.
        subject: String,
        /// Bytes, from the descriptor.
        expected: u64,
        /// Bytes that came; where the count stopped at the first byte too many, one more than expected.
        actual: u64,
    },
    /// The uncompressed tar hashes to something else than the image config says.
    #[error("diff_id mismatch: {subject}: expected {expected}, got {actual}")]
    DiffIdMismatch {
        /// Which layer: its blob digest, or a path.
        subject: String,
        /// From the config's `rootfs.diff_ids`.
        expected: Box<Digest>,
        /// Of the tar.
        actual: Box<Digest>,
    },
    /// An archive was refused.
    #[error("unsafe archive: {}{reason} (at byte {offset})", named(entry))]
    UnsafeArchive {
        /// The entry's name, raw bytes; empty where none was read yet.
        entry: Vec<u8>,
        /// Offset of its header in the uncompressed stream, or of the fault in the compressed one.
        offset: u64,
        /// What was wrong, for a person.
        reason: String,
    },
    /// An archive has more of something than the caller allows.
    #[error("unsafe archive: {}{} (at byte {offset})", named(entry), over(limit, *most, what))]
    OverLimit {
        /// The field of `Limits`.
        limit: &'static str,
        /// Its value.
        most: u64,
        /// What there is more of, for a person.
        what: &'static str,
        /// As for `UnsafeArchive`.
        entry: Vec<u8>,
        /// As for `UnsafeArchive`.
        offset: u64,
    },
    /// An argument or a document that no bytes could make right.
    #[error("invalid {field}: {value}: {reason}")]
    Invalid {
        /// Which one.
        field: &'static str,
        /// What it was.
        value: String,
        /// Why it is refused.
        reason: String,
    },
    /// An entry's owner is none of those that this process' user namespace has.
    #[error(
        "unsupported: {}owner {kind} {id}: needs a user namespace that maps it, this one has {mapped}",
        named(entry)
    )]
    UnmappedId {
        /// The entry's name, raw bytes.
        entry: Vec<u8>,
        /// "uid" or "gid".
        kind: &'static str,
        /// As the archive has it.
        id: u32,
        /// How many ids there are.
        mapped: u64,
    },
    /// This host or this build cannot do it.
    #[error("unsupported: {feature}: needs {needs}")]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What would have to be there.
        needs: String,
    },
    /// There is no such thing.
    #[error("{kind} not found: {name}")]
    NotFound {
        /// "blob", "layer", "entry".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error("{kind} already exists: {name}")]
    AlreadyExists {
        /// "blob", "layer".
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The thing is in a state in which this cannot be done.
    #[error("conflict: {kind} {name}: is {state}, must be {allowed}")]
    Conflict {
        /// "ingest", "block".
        kind: &'static str,
        /// Its name.
        name: String,
        /// Its state.
        state: String,
        /// The states that would do.
        allowed: String,
    },
    /// The caller gave up; never the first cause.
    #[error("cancelled")]
    Cancelled,
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] from whatever carries an errno.
    pub fn io(operation: &'static str, path: impl Into<PathBuf>, source: &io::Error) -> Self {
        Self::Io { errno: source.raw_os_error().unwrap_or(5), operation, path: path.into() }
    }

    /// An [`Error::Io`] from a rustix errno.
    pub fn errno(operation: &'static str, path: impl Into<PathBuf>, source: rustix::io::Errno) -> Self {
        Self::Io { errno: source.raw_os_error(), operation, path: path.into() }
    }
}

/// Why something over a limit is refused: the limit by its name, with its value.
pub(crate) fn over(limit: &str, most: u64, what: &str) -> String {
    format!("over the limit {limit}={most}: {what}")
}

/// A name in front of what is said of it; nothing where there is none.
fn named(entry: &[u8]) -> String {
    if entry.is_empty() { String::new() } else { format!("{}: ", entry.escape_ascii()) }
}
