//! Where a blob and its layer are while they arrive.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;

use super::garbage::ObjectsLock;
use super::objects::{OBJECTS, ObjectWriter};
use super::{BLOBS, INGEST, LAYERS, PRIVATE_MODE, TRASH};
use crate::error::{Error, Result};
use crate::root::{Root, names, remove_tree, to_path};

/// Blobs are written once and never changed.
const BLOB_MODE: u32 = 0o444;

/// One ingest's directory, locked for as long as this lives. Dropping it removes what was not published.
#[derive(Debug)]
pub struct Staging {
    ingests: OwnedFd,
    directory: OwnedFd,
    id: String,
    lock: File,
    /// Held while a layer may count on objects that are there, until it has its name and says so itself.
    objects: OnceLock<ObjectsLock>,
    /// Who made it: a child that is forked off gets a copy of this, and must leave the files alone.
    process: u32,
}

impl Staging {
    /// Makes `content/ingest/<id>/` and takes its lock.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that is no plain name, [`Error::AlreadyExists`], [`Error::Io`].
    pub fn create(root: &Root, id: &str) -> Result<Self> {
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::Invalid {
                field: "ingest id",
                value: id.escape_debug().to_string(),
                reason: "expected letters, digits and dashes".to_owned(),
            });
        }
        prepare(root)?;
        let ingests = root.directory(INGEST)?;
        let failed = |operation, e| Error::errno(operation, format!("{INGEST}/{id}"), e);
        // Until the ingest has its own lock this one tells `sweep` that somebody is at it.
        lock_directory(&ingests, FlockOperation::LockShared)?;
        rustix::fs::mkdirat(&ingests, id, Mode::from_raw_mode(PRIVATE_MODE)).map_err(|e| match e {
            Errno::EXIST => Error::AlreadyExists { kind: "ingest", name: id.to_owned() },
            e => failed("make directory", e),
        })?;
        let directory =
            crate::root::open_directory(ingests.as_fd(), id.as_bytes()).map_err(|e| failed("open", e))?;
        let lock = create(&directory, "lock", 0o600)?;
        // Nobody else can hold it: the directory was just made.
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|e| failed("lock", e))?;
        lock_directory(&ingests, FlockOperation::Unlock)?;
        let process = std::process::id();
        Ok(Self { ingests, directory, id: id.to_owned(), lock, objects: OnceLock::new(), process })
    }

    /// The file that the blob's bytes go to.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_blob(&self) -> Result<File> {
        create(&self.directory, "data", BLOB_MODE)
    }

    /// The directory that becomes the layer.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_layer(&self) -> Result<OwnedFd> {
        rustix::fs::mkdirat(&self.directory, "layer", Mode::from_raw_mode(PRIVATE_MODE))
            .map_err(|e| Error::errno("make directory", "layer", e))?;
        crate::root::open_directory(self.directory.as_fd(), b"layer")
            .map_err(|e| Error::errno("open", "layer", e))
    }

    /// What takes the contents of the layer's files in, where these become objects.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_objects(&self, root: &Root) -> Result<ObjectWriter> {
        root.make_directories(OBJECTS, PRIVATE_MODE)?;
        let _ = self.objects.set(ObjectsLock::share(root)?);
        rustix::fs::mkdirat(&self.directory, OBJECTS, Mode::from_raw_mode(PRIVATE_MODE))
            .map_err(|e| Error::errno("make directory", OBJECTS, e))?;
        let staging = crate::root::open_directory(self.directory.as_fd(), OBJECTS.as_bytes())
            .map_err(|e| Error::errno("open", OBJECTS, e))?;
        Ok(ObjectWriter::new(root.directory(OBJECTS)?, staging))
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &OwnedFd {
        &self.directory
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        // What cannot be removed now is removed by the next `sweep`: its lock is free then, whoever inherited the
        // descriptor.
        let _ = remove_tree(self.ingests.as_fd(), self.id.as_bytes());
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

fn create(directory: &OwnedFd, name: &'static str, mode: u32) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode))
        .map(File::from)
        .map_err(|e| Error::errno("create", name, e))
}

/// Makes the directories of a store.
pub(super) fn prepare(root: &Root) -> Result<()> {
    for path in [INGEST, &format!("{BLOBS}/sha256"), &format!("{LAYERS}/sha256"), TRASH] {
        root.make_directories(path, PRIVATE_MODE)?;
    }
    Ok(())
}

/// Removes what killed processes left in staging, and what was on its way out. Live ingests hold their lock.
///
/// Returns the ids of the ingests that were removed.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep(root: &Root) -> Result<Vec<String>> {
    prepare(root)?;
    let ingests = root.directory(INGEST)?;
    let trash = root.directory(TRASH)?;
    // Not waited for: a process that was stopped right there would stop every other.
    let alone = flock(&ingests, FlockOperation::NonBlockingLockExclusive).is_ok();
    let mut removed = Vec::new();
    for name in names(ingests.as_fd()).map_err(|e| Error::errno("list", INGEST, e))? {
        let name = name.as_bytes();
        if !is_abandoned(&ingests, name, alone)? {
            continue;
        }
        // Two that sweep at once rename one after the other: the second finds nothing.
        match rustix::fs::renameat_with(&ingests, name, &trash, name, RenameFlags::NOREPLACE) {
            Ok(()) => removed.push(String::from_utf8_lossy(name).into_owned()),
            Err(Errno::NOENT | Errno::EXIST) => {}
            Err(e) => return Err(Error::errno("rename", Path::new(INGEST).join(to_path(name)), e)),
        }
    }
    if alone {
        lock_directory(&ingests, FlockOperation::Unlock)?;
    }
    for name in names(trash.as_fd()).map_err(|e| Error::errno("list", TRASH, e))? {
        remove_tree(trash.as_fd(), name.as_bytes())?;
    }
    Ok(removed)
}

/// Whether no live process holds the ingest. One whose lock file is missing or free may belong to a writer that is
/// about to make it, or to take it, unless there can be none: `alone`.
fn is_abandoned(ingests: &OwnedFd, name: &[u8], alone: bool) -> Result<bool> {
    let failed = |operation, e| Error::errno(operation, Path::new(INGEST).join(to_path(name)), e);
    let mut path = name.to_vec();
    path.extend_from_slice(b"/lock");
    let lock =
        match rustix::fs::openat(ingests, path.as_slice(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(lock) => lock,
            Err(Errno::NOENT) => return Ok(alone),
            Err(e) => return Err(failed("open", e)),
        };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(alone),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(failed("lock", e)),
    }
}

/// Waits for a lock on a directory, which is held for microseconds only.
fn lock_directory(directory: &OwnedFd, operation: FlockOperation) -> Result<()> {
    loop {
        match flock(directory, operation) {
            Err(Errno::INTR) => {}
            done => return done.map_err(|e| Error::errno("lock", INGEST, e)),
        }
    }
}
