//! A directory descriptor; every path is resolved beneath it by the kernel.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Renames elsewhere make the kernel give up a walk with EAGAIN; it says to try again.
const RESOLVE_ATTEMPTS: u32 = 128;
/// Directories inside one another that a removal follows; each holds a descriptor.
const REMOVE_MAX_DEPTH: u32 = 512;

/// A directory that everything done through it stays beneath.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// [`Error::Io`] where it is none, or may not be entered.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let fd = rustix::fs::openat(
            CWD,
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )
        .map_err(|e| Error::errno("open", &path, e))?;
        Ok(Self { fd, path })
    }

    /// Where it was opened; for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a path as if this directory were `/`: `..` stops here, links lead back in, magic links are refused.
    ///
    /// # Errors
    /// [`Error::Io`] with the path as it was asked for.
    pub fn open_in(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        self.resolve(path, flags, mode).map_err(|e| Error::errno("open", to_path(path), e))
    }

    /// As [`Root::open_in`], with the bare errno.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resolve(&self, path: &[u8], flags: OFlags, mode: Mode) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut attempts = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, how) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
                done => return done,
            }
        }
    }

    /// Makes a directory and its parents, each with `mode`; those that are there stay as they are. A name that was
    /// made is flushed: what is stored beneath it would be lost with it.
    ///
    /// # Errors
    /// [`Error::Io`], also where something else than a directory is in the way.
    pub fn make_directories(&self, path: &str, mode: u32) -> Result<()> {
        let mut made = String::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            if !made.is_empty() {
                made.push('/');
            }
            made.push_str(part);
            match rustix::fs::mkdirat(&self.fd, made.as_str(), Mode::from_raw_mode(mode)) {
                Ok(()) => self.flush_parent(&made)?,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(Error::errno("make directory", self.path.join(&made), e)),
            }
        }
        Ok(())
    }

    fn flush_parent(&self, path: &str) -> Result<()> {
        let parent = path.rsplit_once('/').map_or(".", |(parent, _)| parent);
        rustix::fs::fsync(self.directory(parent)?)
            .map_err(|e| Error::errno("fsync", self.path.join(parent), e))
    }

    /// Opens a directory beneath, by a path without links.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        open_directory(self.fd.as_fd(), path.as_bytes())
            .map_err(|e| Error::errno("open", self.path.join(path), e))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a directory by name, never through a link at its end.
///
/// # Errors
/// The kernel's.
pub fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Removes what a name stands for, with all that is in it. A name that is not there is no error.
///
/// # Errors
/// [`Error::Io`] with the path below `parent` of what could not be removed.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let mut path = name.to_vec();
    remove_entry(parent, name, &mut path, 0, &|_, _| true).map(|_| ())
}

/// Removes what is in a directory, but for what `remove` says no to; parents of what stays, stay.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_children(
    directory: BorrowedFd<'_>,
    remove: &dyn Fn(BorrowedFd<'_>, &[u8]) -> bool,
) -> Result<bool> {
    remove_content(directory, &mut Vec::new(), 0, remove)
}

/// Whether nothing is left at the name.
fn remove_entry(
    parent: BorrowedFd<'_>,
    name: &[u8],
    path: &mut Vec<u8>,
    depth: u32,
    remove: &dyn Fn(BorrowedFd<'_>, &[u8]) -> bool,
) -> Result<bool> {
    let failed = |path: &[u8], e| Error::errno("remove", to_path(path), e);
    let wanted = remove(parent, name);
    if wanted {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(failed(path, e)),
        }
    }
    let directory = match open_directory(parent, name) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(true),
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(e) => return Err(failed(path, e)),
    };
    if depth == REMOVE_MAX_DEPTH {
        return Err(failed(path, Errno::NAMETOOLONG));
    }
    let empty = remove_content(directory.as_fd(), path, depth + 1, remove)?;
    drop(directory);
    if !wanted || !empty {
        return Ok(false);
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(e) => Err(failed(path, e)),
    }
}

fn remove_content(
    directory: BorrowedFd<'_>,
    path: &mut Vec<u8>,
    depth: u32,
    remove: &dyn Fn(BorrowedFd<'_>, &[u8]) -> bool,
) -> Result<bool> {
    let mut empty = true;
    for name in names(directory).map_err(|e| Error::errno("list", to_path(path), e))? {
        let length = path.len();
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        empty &= remove_entry(directory, name.as_bytes(), path, depth, remove)?;
        path.truncate(length);
    }
    Ok(empty)
}

/// The names in a directory, without `.` and `..`, in no order.
///
/// # Errors
/// The kernel's.
pub fn names(directory: BorrowedFd<'_>) -> std::result::Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

/// Whether a name stands for a directory; false where nothing is there.
///
/// # Errors
/// The kernel's.
pub fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<bool, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Bytes as a path, for messages.
#[must_use]
pub fn to_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_lead_back_in() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("etc")).expect("made");
        std::fs::write(dir.path().join("etc/inside"), b"in").expect("written");
        std::os::unix::fs::symlink("/etc/inside", dir.path().join("link")).expect("linked");
        let root = Root::open(dir.path()).expect("opens");
        root.open_in(b"link", OFlags::RDONLY, Mode::empty()).expect("found inside");
        root.open_in(b"../../../etc/inside", OFlags::RDONLY, Mode::empty()).expect("stops at the root");
        assert!(root.open_in(b"/etc/passwd", OFlags::RDONLY, Mode::empty()).is_err());
    }

    #[test]
    fn remove_tree_does_not_follow_links() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        std::fs::create_dir(dir.path().join("outside")).expect("made");
        std::fs::write(dir.path().join("outside/victim"), b"x").expect("written");
        std::os::unix::fs::symlink("../../outside", dir.path().join("a/b/link")).expect("linked");
        let root = Root::open(dir.path()).expect("opens");
        remove_tree(root.as_fd(), b"a").expect("removed");
        remove_tree(root.as_fd(), b"a").expect("removing again is no error");
        assert!(dir.path().join("outside/victim").exists());
        assert!(!dir.path().join("a").exists());
    }
}
