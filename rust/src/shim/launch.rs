//! Running the OCI runtime: pipes or a terminal for the container, and what it says when it fails.

use std::fs;
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::args::Args;
use crate::report::Report;

/// Where the runtime sends the terminal, in the state directory.
const CONSOLE: &str = "console.sock";

/// Where it writes its own words, in the state directory.
pub(crate) const LOG: &str = "runtime.log";

/// How much of the runtime's complaint is passed on: its end says the most.
const MESSAGE_MAX_BYTES: usize = 4 << 10;

/// A running container, and this side of its streams. None of the descriptors blocks.
pub(crate) struct Container {
    pub(crate) init: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) terminal: bool,
}

/// What came of it.
pub(crate) enum Launched {
    Running(Container),
    Failed { status: i32, message: String },
    Cancelled,
}

/// The shim's ends of the pipes; with a terminal, the runtime's own output alone.
struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// Whether the container's processes begin, or go on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    Anew,
    /// From where `Args::restore` says that they were, if it says so.
    AsAsked,
}

/// Runs the runtime until the container's command runs.
pub(crate) fn launch(args: &Args, begin: Begin, report: &Report) -> io::Result<Launched> {
    let console = if args.terminal { Some(listen_for_console()?) } else { None };
    let (mut child, pipes) = spawn(args, begin)?;
    let status = wait(&mut child, report)?;
    let Some(status) = status else {
        cancel(args, &mut child);
        return Ok(Launched::Cancelled);
    };
    if status != 0 {
        let message = complaint(&pipes, args);
        return Ok(Launched::Failed { status, message });
    }
    let init = read_pid()?;
    // The runtime has ended, so its child is this process's: the pid cannot be used again unseen.
    let pidfd = rustix::process::pidfd_open(init, PidfdFlags::empty())?;
    let Pipes { stdin, stdout, stderr } = pipes;
    let container = match console {
        None => Container { init, pidfd, stdin, stdout, stderr: Some(stderr), terminal: false },
        Some(listener) => {
            let master = receive_console(&listener)?;
            let stdin = Some(master.try_clone()?);
            Container { init, pidfd, stdin, stdout: master, stderr: None, terminal: true }
        }
    };
    for fd in
        [Some(&container.stdout), container.stderr.as_ref(), container.stdin.as_ref()].into_iter().flatten()
    {
        let flags = rustix::fs::fcntl_getfl(fd)?;
        rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
    }
    Ok(Launched::Running(container))
}

fn spawn(args: &Args, begin: Begin) -> io::Result<(Child, Pipes)> {
    let mut command = args.runtime_command(LOG);
    match (&args.process, &args.restore) {
        (Some(process), _) => command.args(["exec", "--detach", "--process"]).arg(process),
        (None, Some(images)) if begin == Begin::AsAsked => {
            command.args(["restore", "--detach", "--image-path"]).arg(images).args(&args.restore_words);
            command.arg("--bundle").arg(&args.bundle)
        }
        _ => command.args(["run", "--detach", "--bundle"]).arg(&args.bundle),
    };
    command.arg("--pid-file").arg(args.state.join("init.pid"));
    if args.terminal {
        // Through this process's working directory: short however long the state directory's name is.
        command.arg("--console-socket").arg(format!("/proc/{}/cwd/{CONSOLE}", std::process::id()));
    }
    command.arg(&args.id);
    let (stdout, container_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, container_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut stdin = None;
    if args.stdin && !args.terminal {
        let (container_stdin, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        stdin = Some(ours);
        command.stdin(container_stdin);
    } else {
        command.stdin(Stdio::null());
    }
    command.stdout(container_stdout).stderr(container_stderr);
    let child =
        command.spawn().map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", args.runtime.display())))?;
    // `command` is dropped here, and with it this process's copies of the container's ends.
    Ok((child, Pipes { stdin, stdout, stderr }))
}

/// The runtime's exit status; None where the engine closed its pipe before.
fn wait(child: &mut Child, report: &Report) -> io::Result<Option<i32>> {
    let pidfd = rustix::process::pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        let pipe = report.as_fd();
        if let Some(pipe) = &pipe {
            fds.push(PollFd::new(pipe, PollFlags::empty()));
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !fds[0].revents().is_empty() {
            let status = child.wait()?;
            return Ok(Some(status.code().unwrap_or(255)));
        }
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(None);
        }
    }
}

/// Undoes a start that nobody waits for any more.
fn cancel(args: &Args, child: &mut Child) {
    let _ = rustix::process::kill_process(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
    if args.process.is_some() {
        return crate::tree::end_children();
    }
    let mut command = args.runtime_command(LOG);
    command.args(["delete", "--force"]).arg(&args.id);
    let _ = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
}

/// The runtime's last words: from its standard error, or else from its log.
fn complaint(pipes: &Pipes, args: &Args) -> String {
    let mut text = Vec::new();
    let mut block = [0; MESSAGE_MAX_BYTES];
    let flags = OFlags::NONBLOCK;
    if rustix::fs::fcntl_setfl(&pipes.stderr, flags).is_ok() {
        while let Ok(n @ 1..) = rustix::io::read(pipes.stderr.as_fd(), &mut block[..]) {
            text.extend_from_slice(&block[..n]);
        }
    }
    if text.trim_ascii().is_empty()
        && let Ok(mut file) = fs::File::open(args.state.join(LOG))
    {
        let _ = file.read_to_end(&mut text);
    }
    let from = text.len().saturating_sub(MESSAGE_MAX_BYTES);
    String::from_utf8_lossy(&text[from..]).into_owned()
}

/// The container's init, as the runtime wrote it down at the last start.
pub(crate) fn read_pid() -> io::Result<Pid> {
    let text = fs::read_to_string("init.pid")?;
    let number = text.trim().parse().ok().and_then(Pid::from_raw);
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "init.pid: expected a process id"))
}

fn listen_for_console() -> io::Result<UnixListener> {
    crate::remove(CONSOLE)?;
    let listener = UnixListener::bind(CONSOLE)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The terminal's master. The runtime has ended: what it sent is waiting, or will never come.
fn receive_console(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (connection, _) = listener.accept()?;
    crate::remove(CONSOLE)?;
    let mut name = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    rustix::net::recvmsg(&connection, &mut [IoSliceMut::new(&mut name)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(fd) = fds.next()
        {
            return Ok(fd);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
}
