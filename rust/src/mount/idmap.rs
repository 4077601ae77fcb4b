//! Copies of mounts whose files have the owners that a user namespace gives them (Linux 5.12; in overlays 5.19).

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Result};

/// What is mounted at a path, once more, seen through a descriptor and attached nowhere: what is another's id on disk is
/// the one that `ids` maps it to, both ways; an id that it does not map is nobody's.
///
/// # Errors
/// [`Error::Unsupported`] where the kernel or the file system maps no ids, or this process may not mount; [`Error::Io`].
pub(super) fn mapped(path: &Path, ids: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, path, flags).map_err(|e| refused(e, path))?;
    set_ids(&tree, ids).map_err(|e| refused(e, path))?;
    Ok(tree)
}

#[allow(unsafe_code, reason = "rustix has no mount_setattr(2)")]
fn set_ids(tree: &OwnedFd, ids: BorrowedFd<'_>) -> std::result::Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(ids.as_raw_fd()).map_err(|_| Errno::BADF)?,
    };
    // SAFETY: both descriptors are open for the length of the call, the path is an empty string of static life, and the
    // kernel reads as many bytes of `attributes` as it is told that there are.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn refused(errno: Errno, path: &Path) -> Error {
    let needs = match errno {
        Errno::NOSYS => "Linux 5.12 or later (mount_setattr)".to_owned(),
        Errno::INVAL => format!("a file system that maps ids below {}", path.display()),
        Errno::PERM => "root rights (CAP_SYS_ADMIN), and a user namespace with ids".to_owned(),
        e => return Error::errno("map ids", path, e),
    };
    Error::Unsupported { feature: "id-mapped mounts".to_owned(), needs }
}

/// Makes this thread another user and group to files, with no capability less: who creates a file where a mount maps
/// ids must be one whom it maps. Ids are set back by another call.
///
/// # Errors
/// The kernel's: it changes no thread's capabilities.
#[allow(unsafe_code, reason = "rustix has neither of the two calls")]
pub fn set_file_ids(uid: u32, gid: u32) -> Result<()> {
    let failed = |e| Error::errno("set", "file ids", e);
    let before = rustix::thread::capabilities(None).map_err(failed)?;
    // SAFETY: they take numbers, and change this thread alone: the C library does not tell its other threads.
    let set = |uid, gid| unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    };
    set(uid, gid);
    // With root's file id the kernel took those of files away.
    rustix::thread::set_capabilities(None, before).map_err(|error| {
        set(rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        failed(error)
    })
}

/// As `set_file_ids`, the owner's of a path, for as long as this lives.
pub(super) struct FileIds;

impl FileIds {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let owner = rustix::fs::stat(path).map_err(|e| Error::errno("stat", path, e))?;
        set_file_ids(owner.st_uid, owner.st_gid)?;
        Ok(Self)
    }
}

impl Drop for FileIds {
    fn drop(&mut self) {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        // Its capabilities are those that it has: nothing is left to fail.
        let _ = set_file_ids(uid.as_raw(), gid.as_raw());
    }
}
