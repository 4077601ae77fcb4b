//! `--as-holder`: a process that has a user namespace of its own, for whoever gives it ids, and keeps it as long as told.
//!
//! It says `ok` when it has the namespace. At the end of its input it ends. At `stay` it becomes root there, takes a mount
//! namespace too, says `ok` again, and stays until it is killed: an ordinary user's containers live in these two.

use std::ffi::OsString;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Gid, Uid};
use rustix::thread::UnshareFlags;

/// The word that chooses this mode.
const AS_HOLDER: &str = "--as-holder";

/// Whether this process is to be one.
pub(crate) fn is_wanted(words: &[OsString]) -> bool {
    matches!(words, [word] if word == AS_HOLDER)
}

/// Has the namespace until it is told to end, or for good.
pub(crate) fn run() -> ExitCode {
    match hold() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn hold() -> io::Result<()> {
    unshare(UnshareFlags::NEWUSER)?;
    println!("ok");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim_end() != "stay" {
        return Ok(());
    }
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
    unshare(UnshareFlags::NEWNS)?;
    // What the host mounts later is seen; what is mounted here is nobody else's.
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM)?;
    std::env::set_current_dir("/")?;
    rustix::process::setsid()?;
    println!("ok");
    io::stdout().flush()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    loop {
        std::thread::park();
    }
}

#[allow(unsafe_code, reason = "the call can take descriptors away from other threads")]
fn unshare(what: UnshareFlags) -> io::Result<()> {
    // SAFETY: this process has one thread, and neither namespace takes a descriptor from it.
    unsafe { rustix::thread::unshare_unsafe(what) }.map_err(io::Error::from)
}
