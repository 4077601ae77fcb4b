//! The process that stays with a running container.
//!
//! It is started by the engine, detaches itself, runs the OCI runtime, and then holds the
//! container's streams: it writes the log, serves attach on a socket, reaps the container's init
//! and records its exit durably before it tells anyone. It has one thread and one `poll`, and links
//! nothing of the engine: it lives as long as the container does, once for each.
//!
//! What it says to the engine goes to standard output, a pipe, as lines: `ready`, then `started
//! PID` or `failed STATUS` with the runtime's own words after it. A reader that closes the pipe
//! before `started` takes the request back.

mod args;
mod clients;
mod exec;
mod frame;
mod health;
mod holder;
mod init;
mod launch;
mod log;
mod oom;
mod probe;
mod record;
mod remove;
mod report;
mod restart;
mod rotate;
mod stdin;
mod supervisor;
mod tree;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::args::Args;
use crate::clients::Clients;
use crate::health::{Changes, Health};
use crate::launch::{Begin, Container, Launched};
use crate::log::Log;
use crate::oom::Counter;
use crate::record::Exit;
use crate::report::Report;
use crate::restart::Restarts;
use crate::supervisor::Supervisor;

/// The attach socket's name in the state directory, which is the working directory: a relative
/// name fits `sun_path` (108 bytes) however deep that directory is.
const SOCKET: &str = "attach.sock";

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(command) = init::command(&words) {
        return init::run(command);
    }
    if holder::is_wanted(&words) {
        return holder::run();
    }
    close_inherited();
    let args = match Args::parse(words.into_iter()) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("pyctrd-shim: {message}");
            return ExitCode::from(2);
        }
    };
    match detach() {
        Ok(Side::Parent) => return ExitCode::SUCCESS,
        Ok(Side::Child) => {}
        Err(error) => {
            eprintln!("pyctrd-shim: fork: {error}");
            return ExitCode::FAILURE;
        }
    }
    let Ok(mut report) = Report::take_stdout() else {
        return ExitCode::FAILURE; // there is nobody to tell
    };
    let run = if args.process.is_some() { exec::run } else { run };
    match run(&args, &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report.failed(1, &error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Closes what the engine's process had open and let its children have: no container, and no runtime, is to have it,
/// and whoever waits for its end would wait for this process.
#[allow(unsafe_code, reason = "neither std nor rustix closes a number")]
fn close_inherited() {
    unsafe extern "C" {
        fn close(fd: i32) -> i32;
    }
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let open: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|&fd| fd > 2) {
        // SAFETY: nothing of this process is open yet but the three streams; the directory that was read is closed.
        let _ = unsafe { close(fd) };
    }
}

/// Which of the two processes this is.
enum Side {
    Parent,
    Child,
}

/// Leaves the engine's process: a child of its own session, which init adopts.
#[allow(unsafe_code, reason = "neither std nor rustix offers fork")]
fn detach() -> io::Result<Side> {
    unsafe extern "C" {
        fn fork() -> i32;
    }
    // SAFETY: the process has one thread, so the child may use every function that the parent may.
    match unsafe { fork() } {
        0 => {
            rustix::process::setsid()?;
            Ok(Side::Child)
        }
        child if child > 0 => Ok(Side::Parent),
        _ => Err(io::Error::last_os_error()),
    }
}

/// One container, from before its start until its last client has heard of its end.
fn run(args: &Args, report: &mut Report) -> io::Result<()> {
    let lock = take_directory(args)?;
    let log = Log::open(&args.bundle.join("log"), args.log_form, args.log_bounds)?;
    let mut clients = Clients::new(listen()?);
    report.ready();
    if args.attached && !clients.wait_for_foreground(report)? {
        remove(SOCKET)?;
        return Ok(());
    }
    // Where the runtime has started it, and this process cannot hold it, nobody would ever know of it.
    let (launched, started_ns) = begin(args, Begin::AsAsked, report, 0).inspect_err(|_| delete(args))?;
    let container = match launched {
        Launched::Running(container) => container,
        Launched::Failed { status, message } => {
            remove(SOCKET)?;
            report.failed(status, &message);
            return Ok(());
        }
        Launched::Cancelled => return remove(SOCKET),
    };
    report.started(container.init)?;
    let mut held = Held { clients, log, changes: Changes::default() };
    let first = hold(args, container, started_ns, &mut held)?;
    let last = follow(args, first, report, &mut held)?;
    let mut clients = held.clients;
    let recorded = record(args, &last, &mut clients);
    delete(args);
    remove(SOCKET)?;
    clients.stop_listening();
    drop(lock);
    on_exit(args);
    clients.flush_all()?;
    recorded
}

/// What one run of the container leaves to the next.
struct Held {
    clients: Clients,
    log: Log,
    changes: Changes,
}

/// Makes the state directory this process's own: its working directory, and nobody else's meanwhile.
fn take_directory(args: &Args) -> io::Result<OwnedFd> {
    // What the runtime leaves behind, above all the container's init, becomes this process's child.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    std::env::set_current_dir(&args.state)
        .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", args.state.display())))?;
    let lock = rustix::fs::openat(
        CWD,
        "lock",
        OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )?;
    // A POSIX lock, because others can ask who holds it without taking it themselves.
    rustix::fs::fcntl_lock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| io::Error::new(io::Error::from(e).kind(), "another shim holds this container"))?;
    Ok(lock)
}

/// Has the runtime start the container, and writes down that it runs and since when.
fn begin(args: &Args, how: Begin, report: &Report, restarts: u32) -> io::Result<(Launched, u64)> {
    let launched = launch::launch(args, how, report)?;
    let started_ns = record::now_ns();
    if let Launched::Running(container) = &launched {
        record::write_running(container.init, started_ns, restarts)?;
    }
    Ok((launched, started_ns))
}

/// One run of the container, until its end.
///
/// An error is the shim's own: the container may still run, and is left alone.
fn hold(args: &Args, container: Container, started_ns: u64, held: &mut Held) -> io::Result<Exit> {
    let oom = Counter::find(container.init, &args.id.to_string_lossy());
    let health = Health::new(args, container.init, started_ns, &mut held.changes);
    let mut supervisor = Supervisor::new(container, args.attached, &mut held.clients, Some(&mut held.log));
    supervisor.health = health;
    let status = supervisor.run()?;
    let exited_ns = record::now_ns();
    supervisor.drain()?;
    Ok(Exit { status, started_ns, exited_ns, oom: oom.has_killed(), error: held.log.close() })
}

/// The runs that the restart policy wants after the first: how the last one ended.
fn follow(args: &Args, first: Exit, report: &Report, held: &mut Held) -> io::Result<Exit> {
    let mut restarts = Restarts::new(&args.bundle);
    let mut exit = first;
    loop {
        match again(args, &exit, &mut restarts, report, &mut held.clients) {
            Ok(Some((container, started_ns))) => exit = hold(args, container, started_ns, held)?,
            Ok(None) => return Ok(exit),
            // How the last run ended is known, and must not be lost for that.
            Err(error) => {
                exit.error = format!("cannot be started again: {error}");
                return Ok(exit);
            }
        }
    }
}

/// The next run, when it is time for it; None where none follows on this end.
fn again(
    args: &Args,
    exit: &Exit,
    restarts: &mut Restarts,
    report: &Report,
    clients: &mut Clients,
) -> io::Result<Option<(Container, u64)>> {
    if !restarts.follows(exit)? {
        return Ok(None);
    }
    delete(args);
    if !restarts.rest(clients)? {
        return Ok(None);
    }
    let (launched, started_ns) =
        begin(args, Begin::Anew, report, restarts.count).inspect_err(|_| delete(args))?;
    match launched {
        Launched::Running(container) => {
            if restarts.is_stopped() {
                // Whoever wanted that found nothing to send a signal to.
                let _ = rustix::process::pidfd_send_signal(&container.pidfd, Signal::KILL);
            }
            Ok(Some((container, started_ns)))
        }
        Launched::Failed { message, .. } => {
            Err(io::Error::other(message.lines().last().unwrap_or_default().to_owned()))
        }
        Launched::Cancelled => Ok(None), // nobody can any more: the engine's pipe is closed
    }
}

/// Writes down how the container ended, then tells it; whether it could be written.
fn record(args: &Args, exit: &Exit, clients: &mut Clients) -> io::Result<()> {
    let text = exit.to_json();
    // On disk first: a waiter that was told may act on it, and a crash must not take it back.
    let write = if args.transient { record::write_whole } else { record::write_durably };
    let recorded = write(&args.bundle, "exit.json", text.as_bytes()).or_else(|error| {
        // A full disk, as a rule; this directory is in memory. The next engine that looks moves it to its place.
        record::write_whole(Path::new("."), "exit.json", text.as_bytes()).map_err(|_| error)
    });
    clients.exit(text.as_bytes());
    clients.flush();
    recorded
}

fn listen() -> io::Result<UnixListener> {
    remove(SOCKET)?;
    rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(SOCKET)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn remove(name: &str) -> io::Result<()> {
    match rustix::fs::unlink(name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives back the runtime's own state and the cgroup. The engine's delete tries again if this fails.
fn delete(args: &Args) {
    if launch::read_pid().is_ok_and(|init| remove::remove(&args.root.join(&args.id), init)) {
        return;
    }
    let mut command = args.runtime_command(launch::LOG);
    command.args(["delete", "--force"]).arg(&args.id);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Ok(mut child) = command.spawn() {
        let _ = child.wait();
    }
}

/// Starts what was asked for after the end, and does not wait: it may wait for this process.
#[allow(clippy::zombie_processes, reason = "init adopts the command when this process ends")]
fn on_exit(args: &Args) {
    if let Some((program, rest)) = args.on_exit.split_first() {
        let mut command = Command::new(program);
        command.args(rest).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.spawn();
    }
}
