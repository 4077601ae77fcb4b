//! Starting the shim without forking the caller's process, becoming a child with a user namespace of its own, and opening
//! a file of a root file system.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use crate::error::{Error, Result};

/// How often a lookup is tried again that a rename elsewhere in the tree disturbed.
const LOOKUP_ATTEMPTS: u32 = 16;

/// Starts the shim and returns once it has detached itself.
///
/// The standard library uses `posix_spawn` where nothing but standard descriptors is asked for, as
/// here: the caller's memory, which may be large, is not copied, and no lock of its threads matters.
/// No descriptor but `report` reaches the shim.
///
/// # Errors
///
/// The program cannot be executed, or did not detach.
pub fn spawn_shim(argv: &[OsString], report: BorrowedFd<'_>) -> Result<()> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Error::Invalid {
            field: "argv",
            value: String::new(),
            reason: "expected a program".to_owned(),
        });
    };
    let duplicate = || report.try_clone_to_owned().map_err(|e| Error::io("duplicate", "report", &e));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(duplicate()?).stderr(duplicate()?);
    let mut child = command.spawn().map_err(|e| Error::io("execute", program, &e))?;
    let status = match child.wait() {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status,
        // The caller's program reaps every child itself; what became of this one, `report` says.
        Err(e) if e.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => return Ok(()),
        Err(e) => return Err(Error::io("wait for", program, &e)),
    };
    Err(Error::Unsupported {
        feature: "container shim".to_owned(),
        needs: format!("{} that starts ({status})", program.display()),
    })
}

/// Puts this process into a new user namespace, in which no ids are mapped yet, and lets it die with `parent`.
///
/// It must be a process that was made for this, and have one thread: the kernel refuses others.
///
/// # Errors
///
/// The kernel's: namespaces are forbidden or used up, or there are threads. [`Error::Cancelled`] where the parent is
/// gone already.
#[allow(unsafe_code, reason = "the call can take descriptors away from other threads")]
pub fn enter_user_namespace(parent: i32) -> Result<()> {
    // SAFETY: a user namespace takes no descriptor table, no memory and no mount from anybody.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
        .map_err(|e| Error::errno("unshare", "user namespace", e))?;
    // Only now: what a process may do has changed, and that would have cleared it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|e| Error::errno("prctl", "death signal", e))?;
    if rustix::process::getppid() == Pid::from_raw(parent) { Ok(()) } else { Err(Error::Cancelled) }
}

/// Opens a regular file beneath `root` for reading, as a process whose root it is would find it.
///
/// Symbolic links are followed within `root`. Anything but a regular file is refused before it is
/// opened: to open a FIFO waits, and to open a device may do anything.
///
/// # Errors
///
/// `ENOENT` and the like from the kernel; [`Error::Invalid`] where it is no regular file.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut attempt = 0;
    let found = loop {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempt < LOOKUP_ATTEMPTS => attempt += 1,
            answer => break answer.map_err(|e| Error::errno("open", path, e))?,
        }
    };
    let stat = rustix::fs::fstat(&found).map_err(|e| Error::errno("stat", path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::Invalid {
            field: "path",
            value: path.display().to_string(),
            reason: "expected a regular file".to_owned(),
        });
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::openat(CWD, again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::errno("open", path, e))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("pyctrd-spawn-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("root/etc")).expect("a scratch directory");
        path
    }

    fn read(scratch: &Path, name: &str) -> Result<String> {
        let root = fs::File::open(scratch.join("root")).expect("the root opens");
        let mut text = String::new();
        let mut file = fs::File::from(open_in_root(root.as_fd(), Path::new(name))?);
        file.read_to_string(&mut text).expect("text");
        Ok(text)
    }

    #[test]
    fn absolute_links_stay_within_the_root() {
        let scratch = scratch("links");
        fs::write(scratch.join("root/etc/real"), "inside").expect("written");
        symlink("/etc/real", scratch.join("root/etc/passwd")).expect("linked");
        assert_eq!(read(&scratch, "/etc/passwd").expect("opens"), "inside");
        symlink("../../../../../etc/real", scratch.join("root/etc/up")).expect("linked");
        assert_eq!(read(&scratch, "etc/up").expect("opens"), "inside");
        fs::remove_dir_all(scratch).expect("removed");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_unopened() {
        let scratch = scratch("kinds");
        let fifo = scratch.join("root/etc/passwd");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).expect("made");
        assert!(matches!(read(&scratch, "etc/passwd"), Err(Error::Invalid { .. })));
        assert!(matches!(read(&scratch, "etc/group"), Err(Error::Io { errno: 2, .. })));
        fs::remove_dir_all(scratch).expect("removed");
    }
}
