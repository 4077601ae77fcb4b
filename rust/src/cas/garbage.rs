//! Objects that no layer names, and who may remove them when.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FlockOperation, flock};
use rustix::io::Errno;

use super::objects::{Key, OBJECTS};
use crate::error::{Error, Result};
use crate::root::{Root, names, open_directory};

/// A lock on the directory of all objects: shared by those who write layers, alone by whoever sweeps.
#[derive(Debug)]
pub struct ObjectsLock {
    /// Closed with it, and so let go of.
    _directory: OwnedFd,
}

impl ObjectsLock {
    /// Waits for a sweep to end.
    pub(super) fn share(root: &Root) -> Result<Self> {
        let directory = root.directory(OBJECTS)?;
        loop {
            match flock(&directory, FlockOperation::LockShared) {
                Ok(()) => return Ok(Self { _directory: directory }),
                Err(Errno::INTR) => {}
                Err(e) => return Err(Error::errno("lock", OBJECTS, e)),
            }
        }
    }

    /// Takes it alone; none where a layer is being written now.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn try_alone(root: &Root) -> Result<Option<Self>> {
        let directory = root.directory(OBJECTS)?;
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _directory: directory })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(Error::errno("lock", OBJECTS, e)),
        }
    }
}

/// What a sweep came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that stay.
    pub kept: u64,
    /// Bytes on disk that these take; a sweep does not count them.
    pub kept_bytes: u64,
    /// Objects that are gone.
    pub removed: u64,
    /// Bytes on disk that this freed.
    pub freed_bytes: u64,
}

/// Removes the objects that are not to be kept. What is no object is left alone.
///
/// No layer is being written, which the lock says; `kept` knows the objects of all that have a name since it is held.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep_objects(root: &Root, _alone: &ObjectsLock, kept: impl Fn(&Key) -> bool) -> Result<Swept> {
    let mut swept = Swept::default();
    for_each_object(root, |folder, name, key| {
        if kept(&key) {
            swept.kept += 1; // not looked at: that would take longer than all else
            return Ok(());
        }
        let bytes = disk_bytes(folder, name)?;
        rustix::fs::unlinkat(folder, name, AtFlags::empty())?;
        swept.removed += 1;
        swept.freed_bytes += bytes;
        Ok(())
    })?;
    Ok(swept)
}

/// What a sweep would come to, and what it would leave. One that goes meanwhile is not counted.
///
/// # Errors
/// [`Error::Io`].
pub fn count_objects(root: &Root, kept: impl Fn(&Key) -> bool) -> Result<Swept> {
    let mut swept = Swept::default();
    for_each_object(root, |folder, name, key| {
        let bytes = match disk_bytes(folder, name) {
            Ok(bytes) => bytes,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(e),
        };
        if kept(&key) {
            swept.kept += 1;
            swept.kept_bytes += bytes;
        } else {
            swept.removed += 1;
            swept.freed_bytes += bytes;
        }
        Ok(())
    })?;
    Ok(swept)
}

fn disk_bytes(folder: BorrowedFd<'_>, name: &str) -> std::result::Result<u64, Errno> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
}

/// Calls for each object on disk: its directory, its name there, and its key.
fn for_each_object(
    root: &Root,
    mut call: impl FnMut(BorrowedFd<'_>, &str, Key) -> std::result::Result<(), Errno>,
) -> Result<()> {
    let objects = match open_directory(root.as_fd(), OBJECTS.as_bytes()) {
        Ok(objects) => objects,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::errno("open", OBJECTS, e)),
    };
    let wrong = |e| Error::errno("list", OBJECTS, e);
    for prefix in names(objects.as_fd()).map_err(wrong)? {
        let prefix = prefix.to_string_lossy();
        if prefix.len() != 2 {
            continue;
        }
        let folder = match open_directory(objects.as_fd(), prefix.as_bytes()) {
            Ok(folder) => folder,
            Err(Errno::NOTDIR) => continue, // not ours
            Err(e) => return Err(wrong(e)),
        };
        for name in names(folder.as_fd()).map_err(wrong)? {
            let name = name.to_string_lossy();
            if let Ok(key) = blake3::Hash::from_hex(format!("{prefix}{name}")) {
                call(folder.as_fd(), &name, key.into())
                    .map_err(|e| Error::errno("look at", format!("{OBJECTS}/{prefix}/{name}"), e))?;
            }
        }
    }
    Ok(())
}

/// The keys of all objects on disk.
///
/// # Errors
/// [`Error::Io`].
pub fn list_objects(root: &Root) -> Result<HashSet<Key>> {
    let mut found = HashSet::new();
    for_each_object(root, |_, _, key| {
        found.insert(key);
        Ok(())
    })?;
    Ok(found)
}
