//! From staging to final names, durably: one flush for all that belongs together.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::objects::{OBJECTS, place_objects};
use super::staging::{Staging, prepare};
use super::{BLOBS, DIGESTS, LAYERS, PRIVATE_MODE};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::flush::flush_file;
use crate::root::{Root, open_directory, remove_tree};

/// So many are flushed one after the other; a flush of the file system costs about as much from there on.
const FEW_DIRECTORIES: usize = 8;

/// How much a power cut may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Nothing that was told; every blob is flushed by itself, so that an error is known to be its own.
    Full,
    /// Nothing that was told; one flush of the file system where there are many files.
    Batch,
    /// What the kernel had not written out yet.
    None,
}

impl Durability {
    /// By its name.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "full" => Ok(Self::Full),
            "batch" => Ok(Self::Batch),
            "none" => Ok(Self::None),
            _ => Err(Error::Invalid {
                field: "durability",
                value: name.to_owned(),
                reason: "expected full, batch or none".to_owned(),
            }),
        }
    }
}

/// A verified ingest, and the names that it gets.
#[derive(Debug)]
pub struct Finished<'a> {
    /// Where it is.
    pub staging: &'a Staging,
    /// The blob's digest, where the blob is kept, and its size.
    pub blob: Option<(Digest, u64)>,
    /// The layer's `diff_id`, where one was unpacked.
    pub layer: Option<Digest>,
    /// Whether the blob stays in staging as well: until it is recorded, its name may be taken back.
    pub stays: bool,
}

/// Flushes all, renames each to its final name without replacing anything, and flushes the directories once.
///
/// After it returns, records may name them. What stands at a final name already stays, if it is whole. `journal` is a file
/// that says what is about to get names, for whoever comes after a power cut: it is flushed before the first has its own,
/// and may be missing.
///
/// # Errors
/// [`Error::Io`], also for a failed flush, which is final.
pub fn publish(
    root: &Root,
    finished: &[Finished<'_>],
    durability: Durability,
    journal: Option<&Path>,
) -> Result<()> {
    prepare(root)?;
    flush(finished, durability)?;
    if let Some(journal) = journal.filter(|_| durability != Durability::None) {
        flush_file(journal)?; // nothing is left to do where it was of the file system
    }
    let mut objects = HashSet::new();
    for item in finished.iter().filter(|item| item.layer.is_some()) {
        objects.extend(place_objects(root, item.staging.directory().as_fd())?);
    }
    if durability != Durability::None {
        flush_names(root, &objects, finished)?;
    }
    let mut touched: Vec<(String, OwnedFd)> = Vec::new();
    for item in finished {
        if let Some((digest, size)) = item.blob {
            let folder = enter(root, &mut touched, BLOBS, &digest)?;
            place_blob(item, folder, &digest, size)?;
        }
        if let Some(diff_id) = item.layer {
            let folder = enter(root, &mut touched, LAYERS, &diff_id)?;
            place_layer(item.staging, folder, &diff_id)?;
        }
    }
    if durability != Durability::None {
        for (path, folder) in &touched {
            rustix::fs::fsync(folder).map_err(|e| Error::errno("fsync", path, e))?;
        }
    }
    Ok(())
}

/// A `syncfs` waits for all of the file system, a `fdatasync` for one file: with trees of many files the first is
/// cheaper by far, with a few small blobs the second.
fn flush(finished: &[Finished<'_>], durability: Durability) -> Result<()> {
    let trees = finished.iter().any(|item| item.layer.is_some());
    if durability == Durability::Full || (durability == Durability::Batch && !trees) {
        for item in finished.iter().filter(|item| item.blob.is_some()) {
            open_blob(item.staging)?.sync_data().map_err(|e| Error::io("fdatasync", "blob", &e))?;
        }
    }
    if durability == Durability::None || !trees {
        return Ok(());
    }
    flush_all(finished)
}

/// Flushes objects' names, before a layer that needs them has its own. They are in up to 256 directories: a few of these
/// are flushed by themselves, which waits for nobody else's writes.
fn flush_names(root: &Root, prefixes: &HashSet<String>, finished: &[Finished<'_>]) -> Result<()> {
    if prefixes.len() > FEW_DIRECTORIES {
        return flush_all(finished);
    }
    let below = prefixes.iter().map(|prefix| format!("{OBJECTS}/{prefix}"));
    for path in below.chain((!prefixes.is_empty()).then(|| OBJECTS.to_owned())) {
        rustix::fs::fsync(root.directory(&path)?).map_err(|e| Error::errno("fsync", path, e))?;
    }
    Ok(())
}

/// Flushes the file system, by the descriptor that is open for longest: one that is opened now would not hear of what
/// could not be written before, if somebody else did.
fn flush_all(finished: &[Finished<'_>]) -> Result<()> {
    let first = finished.iter().map(|item| item.staging).min_by_key(|staging| staging.begun());
    first.map_or(Ok(()), Staging::flush_all)
}

fn open_blob(staging: &Staging) -> Result<File> {
    rustix::fs::openat(
        staging.directory(),
        "data",
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )
    .map(File::from)
    .map_err(|e| Error::errno("open", "blob", e))
}

fn enter<'a>(
    root: &Root,
    touched: &'a mut Vec<(String, OwnedFd)>,
    base: &str,
    digest: &Digest,
) -> Result<BorrowedFd<'a>> {
    let path = format!("{base}/{}", digest.algorithm().name());
    let at = if let Some(at) = touched.iter().position(|(known, _)| *known == path) {
        at
    } else {
        root.make_directories(&[&path], PRIVATE_MODE)?;
        touched.push((path.clone(), root.directory(&path)?));
        touched.len() - 1
    };
    Ok(touched[at].1.as_fd())
}

fn place_blob(item: &Finished<'_>, folder: BorrowedFd<'_>, digest: &Digest, size: u64) -> Result<()> {
    let (staging, name) = (item.staging, digest.hex());
    let placed = if item.stays {
        rustix::fs::linkat(staging.directory(), "data", folder, &name, AtFlags::empty())
    } else {
        rustix::fs::renameat_with(staging.directory(), "data", folder, &name, RenameFlags::NOREPLACE)
    };
    match placed {
        Ok(()) => Ok(()),
        // Another tenant's, or what a crash left before it was recorded. Ours was hashed a moment ago: what turns out
        // to be something else gives way to it in one step, and its readers keep what they have open.
        Err(Errno::EXIST) if is_blob(folder, &name, digest, size)? => Ok(()),
        Err(Errno::EXIST) => rustix::fs::renameat(staging.directory(), "data", folder, &name)
            .map_err(|e| Error::errno("rename", &name, e)),
        Err(e) => Err(Error::errno("rename", &name, e)),
    }
}

/// Whether what stands at a name is a regular file with these bytes.
fn is_blob(folder: BorrowedFd<'_>, name: &str, digest: &Digest, size: u64) -> Result<bool> {
    let failed = |operation, e| Error::errno(operation, name, e);
    // NONBLOCK: a fifo would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::LOOP) => return Ok(false),
        Err(e) => return Err(failed("open", e)),
    };
    let stat = rustix::fs::fstat(&file).map_err(|e| failed("stat", e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        || u64::try_from(stat.st_size) != Ok(size)
    {
        return Ok(false);
    }
    match Hasher::read(digest.algorithm(), File::from(file)) {
        Ok(actual) => Ok(actual == *digest),
        // A disk that cannot give the bytes back has lost them.
        Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(false),
        Err(e) => Err(Error::io("read", name, &e)),
    }
}

fn place_layer(staging: &Staging, folder: BorrowedFd<'_>, diff_id: &Digest) -> Result<()> {
    let name = diff_id.hex();
    match rustix::fs::renameat_with(staging.directory(), "layer", folder, &name, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Another process unpacked the same tar from another blob: what it has of it is as good.
        Err(Errno::EXIST | Errno::NOTEMPTY) if is_whole(folder, &name)? => complete(staging, folder, &name),
        Err(Errno::EXIST | Errno::NOTEMPTY) => {
            // Left by a crash before layers were renamed as a whole, or damaged by hand.
            remove_tree(folder, name.as_bytes())?;
            rustix::fs::renameat(staging.directory(), "layer", folder, &name)
                .map_err(|e| Error::errno("rename", &name, e))
        }
        Err(e) => Err(Error::errno("rename", &name, e)),
    }
}

/// Gives a layer that is there the form that was staged, where it has it not: a layer can have all. The index that says
/// where contents are comes last, in one step; it says all that the one before said. The list of contents' digests tells
/// of the tar, which is the same in every form.
fn complete(staging: &Staging, folder: BorrowedFd<'_>, name: &str) -> Result<()> {
    let failed = |operation, e| Error::errno(operation, name, e);
    let staged = open_directory(staging.directory().as_fd(), b"layer").map_err(|e| failed("open", e))?;
    let layer = open_directory(folder, name.as_bytes()).map_err(|e| failed("open", e))?;
    let has = |directory: &OwnedFd, part| match rustix::fs::statat(directory, part, AtFlags::SYMLINK_NOFOLLOW)
    {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(failed("look at", e)),
    };
    let form: &[&str] = if has(&staged, "tree")? && !has(&layer, "tree")? {
        &["tree"]
    } else if has(&staged, "pack")? && !same_index(&staged, &layer, name)? {
        &["pack", "index"] // a process may have been stopped between the two
    } else if has(&staged, "blocks")? && !same_index(&staged, &layer, name)? {
        &["blocks", "index"]
    } else {
        &[]
    };
    let list: &[&str] = if has(&staged, DIGESTS)? && !has(&layer, DIGESTS)? { &[DIGESTS] } else { &[] };
    if form.is_empty() && list.is_empty() {
        return Ok(());
    }
    for part in list.iter().chain(form) {
        rustix::fs::renameat(&staged, *part, &layer, *part).map_err(|e| failed("rename", e))?;
    }
    rustix::fs::fsync(&layer).map_err(|e| failed("fsync", e))
}

fn same_index(one: &OwnedFd, other: &OwnedFd, name: &str) -> Result<bool> {
    let read = |directory| -> Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(directory, "index", flags, Mode::empty());
        let mut bytes = Vec::new();
        File::from(file.map_err(|e| Error::errno("open", name, e))?)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", name, &e))?;
        Ok(bytes)
    };
    Ok(read(one)? == read(other)?)
}

/// Whether a layer that stands there has its index: that is written last.
fn is_whole(folder: BorrowedFd<'_>, name: &str) -> Result<bool> {
    let failed = |e| Error::errno("open", name, e);
    let layer = open_directory(folder, name.as_bytes()).map_err(failed)?;
    match rustix::fs::statat(&layer, "index", AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}
