//! Where a blob and its layer are while they arrive.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, flock};
use rustix::io::Errno;

use super::garbage::ObjectsLock;
use super::objects::{OBJECTS, ObjectWriter};
use super::{BLOBS, INGEST, LAYERS, PRIVATE_MODE, TRASH};
use crate::error::{Error, Result};
use crate::root::{Root, names, remove_tree, remove_tree_until, to_path};

/// Blobs are written once and never changed.
const BLOB_MODE: u32 = 0o444;
/// What an ingest's directory keeps for whoever goes on from it.
const KEPT: [&[u8]; 2] = [b"data", b"lock"];
/// A process that looks whether an ingest was abandoned holds its lock for microseconds.
const GLANCE: Duration = Duration::from_secs(1);
/// Between two tries at such a lock.
const PAUSE: Duration = Duration::from_millis(1);

/// One ingest's directory, locked for as long as this lives. Dropping it removes what was not published, or left.
#[derive(Debug)]
pub struct Staging {
    ingests: OwnedFd,
    directory: OwnedFd,
    id: String,
    lock: File,
    /// When `ingests` was opened: from then on it hears of whatever the disk could not write.
    begun: Instant,
    /// Held while a layer may count on objects that are there, until it has its name and says so itself.
    objects: OnceLock<ObjectsLock>,
    /// Who made it: a child that is forked off gets a copy of this, and must leave the files alone.
    process: u32,
    /// Whether the blob's bytes stay for another.
    left: bool,
}

/// A blob's bytes that an earlier writer left, and the file to go on writing in.
#[derive(Debug)]
pub struct KeptBlob {
    /// Stands at the end of what is there.
    pub file: File,
    /// Stands at the beginning.
    pub reader: File,
    /// How many are there.
    pub bytes: u64,
}

impl Staging {
    /// Makes `content/ingest/<id>/` and takes its lock.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that is no plain name, [`Error::AlreadyExists`], [`Error::Io`].
    pub fn create(root: &Root, id: &str) -> Result<Self> {
        check_id(id)?;
        prepare(root)?;
        Self::make(root.directory(INGEST)?, id)
    }

    fn make(ingests: OwnedFd, id: &str) -> Result<Self> {
        let begun = Instant::now();
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
        Ok(Self {
            ingests,
            directory,
            id: id.to_owned(),
            lock,
            begun,
            objects: OnceLock::new(),
            process,
            left: false,
        })
    }

    /// Takes `content/ingest/<id>/` over from a writer that is gone; makes it where there is none.
    ///
    /// Of what is there only the blob's bytes stay: a layer's tree is made anew from them.
    ///
    /// # Errors
    /// As [`Staging::create`]; [`Error::Conflict`] where its writer lives.
    pub fn take_over(root: &Root, id: &str) -> Result<Self> {
        check_id(id)?;
        prepare(root)?;
        let ingests = root.directory(INGEST)?;
        let begun = Instant::now();
        let failed = |operation, e| Error::errno(operation, format!("{INGEST}/{id}"), e);
        // As in `create`: nobody sweeps it between its being found and its being locked.
        lock_directory(&ingests, FlockOperation::LockShared)?;
        let directory = match crate::root::open_directory(ingests.as_fd(), id.as_bytes()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Self::make(ingests, id),
            Err(e) => return Err(failed("open", e)),
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&directory, "lock", flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| failed("open", e))?;
        lock_soon(&lock, id)?;
        lock_directory(&ingests, FlockOperation::Unlock)?;
        let process = std::process::id();
        let staging = Self {
            ingests,
            directory,
            id: id.to_owned(),
            lock,
            begun,
            objects: OnceLock::new(),
            process,
            left: false,
        };
        staging.trim()?;
        Ok(staging)
    }

    /// The blob's bytes that are there, to go on from. What cannot be the beginning of `size` bytes goes: then there
    /// are none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open_blob(&self, size: Option<u64>) -> Result<KeptBlob> {
        if let Some(reader) = self.find_blob(size)? {
            let bytes = reader.metadata().map_err(|e| Error::io("stat", "blob", &e))?.len();
            let file = self.reopen_blob(&reader, bytes)?;
            return Ok(KeptBlob { file, reader, bytes });
        }
        let file = self.create_blob()?;
        let reader = file.try_clone().map_err(|e| Error::io("duplicate", "blob", &e))?;
        Ok(KeptBlob { file, reader, bytes: 0 })
    }

    fn find_blob(&self, size: Option<u64>) -> Result<Option<File>> {
        // NONBLOCK: a fifo would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let reader = match rustix::fs::openat(&self.directory, "data", flags, Mode::empty()) {
            Ok(reader) => reader,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return self.remove_blob(),
            Err(e) => return Err(Error::errno("open", "blob", e)),
        };
        let stat = rustix::fs::fstat(&reader).map_err(|e| Error::errno("stat", "blob", e))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let bytes = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        let whole = size == Some(bytes);
        // A second name is that of a blob in the store: that is never written to, and whole or not ours.
        let usable = regular && size.is_none_or(|size| bytes <= size) && (whole || stat.st_nlink == 1);
        if usable { Ok(Some(File::from(reader))) } else { self.remove_blob() }
    }

    /// The blob's bytes from their beginning, of which there are `size`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::NotFound`] where they are gone.
    pub(super) fn reread_blob(&self, size: u64) -> Result<File> {
        let lost = || Error::NotFound { kind: "upload", name: self.id.clone() };
        self.find_blob(Some(size))?.ok_or_else(lost)
    }

    fn remove_blob(&self) -> Result<Option<File>> {
        remove_tree(self.directory.as_fd(), b"data").map(|()| None)
    }

    /// Opens the blob for writing, at its end; its mode lets nobody but root.
    fn reopen_blob(&self, reader: &File, bytes: u64) -> Result<File> {
        let failed = |operation, e| Error::errno(operation, "blob", e);
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::fchmod(reader, Mode::from_raw_mode(0o600)).map_err(|e| failed("chmod", e))?;
        let opened = rustix::fs::openat(&self.directory, "data", flags, Mode::empty());
        rustix::fs::fchmod(reader, Mode::from_raw_mode(BLOB_MODE)).map_err(|e| failed("chmod", e))?;
        let mut file = opened.map(File::from).map_err(|e| failed("open", e))?;
        file.seek(SeekFrom::Start(bytes)).map_err(|e| Error::io("seek", "blob", &e))?;
        Ok(file)
    }

    /// Lets go of it, and leaves the blob's bytes for another to go on from; where there are none, nothing stays.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing stays then.
    pub fn leave(mut self) -> Result<()> {
        if self.process == std::process::id() {
            self.trim()?;
            self.left = match rustix::fs::statat(&self.directory, "data", AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat.st_size > 0,
                Err(Errno::NOENT) => false,
                Err(e) => return Err(Error::errno("stat", "blob", e)),
            };
        }
        Ok(())
    }

    /// Removes all but the blob's bytes.
    fn trim(&self) -> Result<()> {
        for name in names(self.directory.as_fd()).map_err(|e| Error::errno("list", INGEST, e))? {
            if !KEPT.contains(&name.as_bytes()) {
                remove_tree(self.directory.as_fd(), name.as_bytes())?;
            }
        }
        Ok(())
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

    /// Flushes the file system. It fails for whatever could not be written since this was made, also where another
    /// process' flush came first and was told: the kernel tells each open file of a failure once.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn flush_all(&self) -> Result<()> {
        rustix::fs::syncfs(&self.ingests).map_err(|e| Error::errno("syncfs", INGEST, e))
    }

    /// When this was made.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// What takes the contents of the layer's files in, where these become objects.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create_objects(&self, root: &Root) -> Result<ObjectWriter> {
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
        if !self.left {
            let _ = remove_tree(self.ingests.as_fd(), self.id.as_bytes());
        }
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

fn check_id(id: &str) -> Result<()> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(Error::Invalid {
            field: "ingest id",
            value: id.escape_debug().to_string(),
            reason: "expected letters, digits and dashes".to_owned(),
        });
    }
    Ok(())
}

/// Takes an ingest's lock, which nobody but its writer holds for long.
fn lock_soon(lock: &File, id: &str) -> Result<()> {
    let deadline = Instant::now() + GLANCE;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK | Errno::INTR) => {
                return Err(Error::Conflict {
                    kind: "ingest",
                    name: id.to_owned(),
                    state: "being written".to_owned(),
                    allowed: "left".to_owned(),
                });
            }
            Err(e) => return Err(Error::errno("lock", format!("{INGEST}/{id}"), e)),
        }
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
    let (blobs, layers) = (format!("{BLOBS}/sha256"), format!("{LAYERS}/sha256"));
    root.make_directories(&[INGEST, &blobs, &layers, OBJECTS, TRASH], PRIVATE_MODE)
}

/// Removes what killed processes left in staging, but for the ingests in `keep`, and what was on its way out: up to
/// `deadline`, what is left then is in the trash. Live ingests hold their lock.
///
/// Returns the ids of the ingests that were removed.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep(root: &Root, keep: &[String], deadline: Option<Instant>) -> Result<Vec<String>> {
    prepare(root)?;
    let ingests = root.directory(INGEST)?;
    let trash = root.directory(TRASH)?;
    // Not waited for: a process that was stopped right there would stop every other.
    let alone = flock(&ingests, FlockOperation::NonBlockingLockExclusive).is_ok();
    let mut removed = Vec::new();
    for name in names(ingests.as_fd()).map_err(|e| Error::errno("list", INGEST, e))? {
        let name = name.as_bytes();
        if keep.iter().any(|id| id.as_bytes() == name) || !is_abandoned(&ingests, name, alone)? {
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
    empty_trash(root, deadline)?;
    Ok(removed)
}

/// Removes what is on its way out, up to `deadline`; whether nothing of it is left. Any number may do so at once.
///
/// # Errors
/// [`Error::Io`].
pub fn empty_trash(root: &Root, deadline: Option<Instant>) -> Result<bool> {
    prepare(root)?;
    let trash = root.directory(TRASH)?;
    for name in names(trash.as_fd()).map_err(|e| Error::errno("list", TRASH, e))? {
        if !remove_tree_until(trash.as_fd(), name.as_bytes(), deadline)? {
            return Ok(false);
        }
    }
    Ok(true)
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
