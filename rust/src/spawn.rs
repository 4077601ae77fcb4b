//! Starting the shim without forking the caller's process, and entering namespaces.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use crate::error::{Error, Result};

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

/// Moves this process into a namespace. One of users or mounts takes only a process with one thread.
///
/// # Errors
///
/// The kernel's: there are threads, or this process has no rights in it.
pub fn join_namespace(namespace: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace, None)
        .map_err(|e| Error::errno("setns", "namespace", e))
}
