//! Objects that no layer names, and who may remove them when.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, flock};
use rustix::io::Errno;

use super::objects::{Key, OBJECTS, object_path};
use crate::error::{Error, Result};
use crate::root::{Root, names, open_directory};

/// So long a sweep keeps waiting who is about to write a layer.
const TURN: Duration = Duration::from_millis(20);
/// Between two turns: who waits is woken meanwhile, and takes the lock.
const BETWEEN: Duration = Duration::from_millis(2);

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
    /// Whether it ended before it had looked at all.
    pub ended_early: bool,
}

/// Removes the objects that no layer names. What is no object is left alone. None where a layer is being written.
///
/// It gives way: now and then it lets go of the lock, and ends where somebody begins to write a layer then, or at
/// `deadline`. `named` is asked under the lock, whenever it was taken, for the objects that layers with a name have;
/// None says that they are the same as before.
///
/// # Errors
/// [`Error::Io`], and what `named` says.
pub fn sweep_objects(
    root: &Root,
    deadline: Option<Instant>,
    named: impl FnMut() -> Result<Option<HashSet<Key>>>,
) -> Result<Option<Swept>> {
    sweep_in_turns(root, deadline, TURN, named)
}

pub(super) fn sweep_in_turns(
    root: &Root,
    deadline: Option<Instant>,
    length: Duration,
    mut named: impl FnMut() -> Result<Option<HashSet<Key>>>,
) -> Result<Option<Swept>> {
    let mut alone = ObjectsLock::try_alone(root)?;
    if alone.is_none() {
        return Ok(None);
    }
    let mut kept = named()?.unwrap_or_default();
    let mut since = Instant::now();
    let mut swept = Swept::default();
    for_each_object(root, |folder, name, key| {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            swept.ended_early = true;
        } else if since.elapsed() >= length {
            drop(alone.take());
            std::thread::sleep(BETWEEN);
            alone = ObjectsLock::try_alone(root)?;
            swept.ended_early = alone.is_none();
            if alone.is_some()
                && let Some(now) = named()?
            {
                kept = now;
            }
            since = Instant::now();
        }
        if swept.ended_early {
            return Ok(false);
        }
        if kept.contains(&key) {
            swept.kept += 1; // not looked at: that would take longer than all else
            return Ok(true);
        }
        let failed = |e| Error::errno("remove", object_path(&key), e);
        let bytes = disk_bytes(folder, name).map_err(failed)?;
        rustix::fs::unlinkat(folder, name, AtFlags::empty()).map_err(failed)?;
        swept.removed += 1;
        swept.freed_bytes += bytes;
        Ok(true)
    })?;
    Ok(Some(swept))
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
            Err(Errno::NOENT) => return Ok(true),
            Err(e) => return Err(Error::errno("look at", object_path(&key), e)),
        };
        if kept(&key) {
            swept.kept += 1;
            swept.kept_bytes += bytes;
        } else {
            swept.removed += 1;
            swept.freed_bytes += bytes;
        }
        Ok(true)
    })?;
    Ok(swept)
}

fn disk_bytes(folder: BorrowedFd<'_>, name: &str) -> std::result::Result<u64, Errno> {
    let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
}

/// Calls for each object on disk, until that says false: its directory, its name there, and its key.
fn for_each_object(
    root: &Root,
    mut call: impl FnMut(BorrowedFd<'_>, &str, Key) -> Result<bool>,
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
            if let Ok(key) = blake3::Hash::from_hex(format!("{prefix}{name}"))
                && !call(folder.as_fd(), &name, key.into())?
            {
                return Ok(());
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
        Ok(true)
    })?;
    Ok(found)
}
