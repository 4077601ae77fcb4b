//! `--as-init -- COMMAND...`: a container's first process, which starts the command, passes signals on to it, and reaps
//! whatever its children leave behind.
//!
//! It runs inside of the container, under the image's root: it links no library that would have to be there.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus};

use rustix::process::{Pid, WaitOptions};

/// The words that choose this mode.
const AS_INIT: [&str; 2] = ["--as-init", "--"];

/// As a shell's: the command is not there, or cannot be executed.
const NOT_FOUND: u8 = 127;
const NOT_EXECUTABLE: u8 = 126;

/// The numbers of every architecture that the shim is built for (not MIPS and Alpha).
const SIGTTOU: i32 = 22;
const SIGTTIN: i32 = 21;
const SIGCHLD: i32 = 17;
/// What the kernel sends for a fault of this very process; blocked, the fault would repeat without end.
const FAULTS: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];
const SIG_BLOCK: i32 = 0;
const SIG_SETMASK: i32 = 2;

/// `sigset_t` of glibc and of musl: 1,024 bits.
#[repr(C)]
struct SignalSet([u64; 16]);

#[allow(unsafe_code, reason = "neither std nor rustix offers signal masks")]
unsafe extern "C" {
    fn sigfillset(set: *mut SignalSet) -> i32;
    fn sigemptyset(set: *mut SignalSet) -> i32;
    fn sigdelset(set: *mut SignalSet, signal: i32) -> i32;
    fn sigprocmask(how: i32, set: *const SignalSet, before: *mut SignalSet) -> i32;
    fn sigwait(set: *const SignalSet, signal: *mut i32) -> i32;
    fn kill(pid: i32, signal: i32) -> i32;
}

/// The command, where this process is to be a container's init.
pub(crate) fn command(words: &[OsString]) -> Option<&[OsString]> {
    match words {
        [first, second, command @ ..] if first == AS_INIT[0] && second == AS_INIT[1] => Some(command),
        _ => None,
    }
}

/// Runs the command to its end, whose status is this one's.
pub(crate) fn run(command: &[OsString]) -> ExitCode {
    let Some((program, rest)) = command.split_first() else {
        eprintln!("pyctrd-init: no command");
        return ExitCode::from(NOT_FOUND);
    };
    // Before the child is there: the signal of its end waits, however early that is.
    let signals = block_signals();
    if std::process::id() != 1 {
        // In a pid namespace with others: what the command leaves goes to the next reaper above.
        let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    }
    match spawn(program, rest) {
        Ok(child) => serve(child, &signals),
        Err(error) => {
            eprintln!("pyctrd-init: {}: {error}", program.display());
            ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
        }
    }
}

#[allow(unsafe_code, reason = "neither std nor rustix offers signal masks")]
fn block_signals() -> SignalSet {
    let mut signals = SignalSet([0; 16]);
    // SAFETY: the set is as large as the C library's, and lives while it is used.
    unsafe {
        sigfillset(&raw mut signals);
        for fault in FAULTS {
            sigdelset(&raw mut signals, fault);
        }
        sigprocmask(SIG_BLOCK, &raw const signals, std::ptr::null_mut());
    }
    signals
}

/// Starts the command in a process group of its own, so that a key's signal reaches it once, with no signal blocked.
#[allow(unsafe_code, reason = "pre_exec runs between fork and exec")]
fn spawn(program: &OsString, rest: &[OsString]) -> io::Result<Pid> {
    let mut command = Command::new(program);
    command.args(rest).process_group(0);
    // SAFETY: this process has one thread, and the closure makes system calls alone.
    unsafe {
        command.pre_exec(|| {
            take_terminal();
            Ok(())
        })
    };
    let child = command.spawn()?;
    Ok(Pid::from_child(&child))
}

/// Makes this process's group the terminal's foreground one, if standard input is a terminal, and unblocks signals.
///
/// All are blocked until then, as in the parent: a group in the background that takes the terminal is stopped otherwise.
#[allow(unsafe_code, reason = "neither std nor rustix offers signal masks")]
fn take_terminal() {
    let _ = rustix::termios::tcsetpgrp(rustix::stdio::stdin(), rustix::process::getpgrp());
    let mut none = SignalSet([0; 16]);
    // SAFETY: the set is as large as the C library's, and lives while it is used.
    unsafe {
        sigemptyset(&raw mut none);
        sigprocmask(SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Passes signals on and reaps, until the command has ended.
#[allow(unsafe_code, reason = "neither std nor rustix offers sigwait")]
fn serve(child: Pid, signals: &SignalSet) -> ExitCode {
    loop {
        let mut signal = 0;
        // SAFETY: both outlive the call.
        if unsafe { sigwait(signals, &raw mut signal) } != 0 {
            continue;
        }
        match signal {
            SIGCHLD => {
                if let Some(code) = reap(child) {
                    return ExitCode::from(code);
                }
            }
            // The terminal's word to this process, which is not in its foreground.
            SIGTTIN | SIGTTOU => {}
            // SAFETY: a system call on two numbers. The child was not reaped: its number is no other's.
            _ => drop(unsafe { kill(child.as_raw_pid(), signal) }),
        }
    }
}

/// Reaps all that have ended; the command's status, if it is among them.
fn reap(child: Pid) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == child {
            code = Some(exit_code(ExitStatus::from_raw(status.as_raw())));
        }
    }
    code
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_chosen_by_its_first_words() {
        let words = |text: &str| -> Vec<OsString> { text.split(' ').map(OsString::from).collect() };
        assert_eq!(command(&words("--as-init -- sh -c x")).map(<[_]>::len), Some(3));
        assert_eq!(command(&words("--as-init --")).map(<[_]>::len), Some(0));
        assert!(command(&words("--as-init sh")).is_none());
        assert!(command(&words("--id x")).is_none());
    }

    #[test]
    fn a_signal_is_128_and_its_number() {
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
    }
}
