//! To the disk: what is flushed before something else counts on it.

use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::root::names;

/// Files and directories that are flushed one by one.
const FEW: usize = 48;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// NONBLOCK: it could have become a pipe.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Has the kernel write a part of a file, and does not wait: a flush that comes later is short then. 0 bytes are all to
/// the end.
///
/// A hint: a refusal means nothing, and an error of the disk is kept for the flush.
#[expect(unsafe_code, reason = "a system call that rustix does not have")]
pub fn begin_to_write(file: impl AsFd, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    let file = file.as_fd();
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the call touches no memory of ours.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Flushes a file's bytes; one that is missing has none.
///
/// # Errors
/// [`Error::Io`].
pub fn flush_file(path: &Path) -> Result<()> {
    match rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => rustix::fs::fdatasync(file).map_err(|e| Error::errno("fdatasync", path, e)),
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::errno("open", path, e)),
    }
}

/// Flushes every file and directory beneath one, and it.
///
/// All files are being written before the first is waited for: a file system with a journal commits it once then, and not
/// for each. Where there are many, the whole file system is flushed, which costs less than one by one.
///
/// # Errors
/// [`Error::Io`].
pub fn flush_tree(path: &Path) -> Result<()> {
    let failed = |operation, e| Error::errno(operation, path, e);
    let top = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(|e| failed("open", e))?;
    let (mut directories, mut files, mut seen) = (vec![top], Vec::new(), 0);
    while seen < directories.len() {
        let directory = &directories[seen];
        let mut found = Vec::new();
        for name in names(directory.as_fd()).map_err(|e| failed("list", e))? {
            let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed("stat", e))?;
            let (flags, into) = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => (DIRECTORY, &mut found),
                FileType::RegularFile => (FILE, &mut files),
                _ => continue,
            };
            into.push(
                rustix::fs::openat(directory, &name, flags, Mode::empty()).map_err(|e| failed("open", e))?,
            );
            if directories.len() + found.len() + files.len() > FEW {
                return rustix::fs::syncfs(directory).map_err(|e| failed("syncfs", e));
            }
        }
        directories.append(&mut found);
        seen += 1;
    }
    for file in &files {
        begin_to_write(file, 0, 0);
    }
    for file in &files {
        rustix::fs::fdatasync(file).map_err(|e| failed("fdatasync", e))?;
    }
    for directory in &directories {
        rustix::fs::fsync(directory).map_err(|e| failed("fsync", e))?;
    }
    Ok(())
}
