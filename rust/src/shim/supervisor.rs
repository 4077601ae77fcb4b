//! The loop: output to the log and the clients, input to the container, until init has ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use rustix::termios::Winsize;

use crate::clients::{Clients, Request};
use crate::frame::Kind;
use crate::health::Health;
use crate::launch::Container;
use crate::log::{Log, Source};
use crate::stdin::Stdin;

/// Read from the container at once: half of a pipe.
const READ_BYTES: usize = 32 << 10;

/// How long output is awaited after init's end. All of it is in the pipe by then, unless a process
/// outside the container's pid namespace still holds the other end.
const DRAIN: Duration = Duration::from_secs(1);

/// Reads after init's end: as many as the largest pipe holds, 1 MiB, twice. What still writes then, and would go on, is
/// something that an exec'd process left behind.
const DRAIN_READS_MAX: usize = 64;

/// How long init's end may precede its becoming this process's child.
const HANDOVER: Duration = Duration::from_secs(10);

/// How often that is looked at.
const HANDOVER_LOOK: Duration = Duration::from_millis(1);

/// The container, its log and its clients.
pub(crate) struct Supervisor<'a> {
    init: Pid,
    pidfd: OwnedFd,
    stdin: Stdin,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    /// Where a terminal's size is set.
    terminal: bool,
    /// Input ends with the client that the container was started for.
    foreground: bool,
    /// So do the outputs: who writes is told, as by a pipe that nobody reads, and a terminal hangs up.
    pub(crate) hang_up: bool,
    /// None where nobody asks.
    pub(crate) health: Option<Health<'a>>,
    clients: &'a mut Clients,
    /// None where nobody keeps what is written.
    log: Option<&'a mut Log>,
    block: Vec<u8>,
}

/// What was ready.
struct Ready {
    init: bool,
    stdin: bool,
    /// Standard output, standard error.
    output: [bool; 2],
    clients: Vec<PollFlags>,
}

impl<'a> Supervisor<'a> {
    pub(crate) fn new(
        container: Container,
        foreground: bool,
        clients: &'a mut Clients,
        log: Option<&'a mut Log>,
    ) -> Self {
        Self {
            init: container.init,
            pidfd: container.pidfd,
            stdin: Stdin::new(container.stdin, container.terminal),
            stdout: Some(container.stdout),
            stderr: container.stderr,
            terminal: container.terminal,
            foreground,
            hang_up: false,
            health: None,
            clients,
            log,
            block: vec![0; READ_BYTES],
        }
    }

    /// Until init has ended: its status.
    pub(crate) fn run(&mut self) -> io::Result<Option<WaitStatus>> {
        let mut requests = Vec::new();
        self.clients.take_requests(&mut requests);
        loop {
            self.carry_out(&mut requests);
            if self.clients.sweep() && self.foreground {
                self.leave();
            }
            let read_clients = self.stdin.accepts();
            let timeout = self.health.as_ref().and_then(Health::timeout);
            let ready = self.wait(read_clients, self.clients.keep_up(), timeout.as_ref())?;
            if ready.stdin {
                self.stdin.write();
            }
            self.read(ready.output);
            self.clients.serve(&ready.clients, read_clients, &mut requests);
            // Init first: no probe begins once it has ended.
            if ready.init {
                return self.end(None);
            }
            if let Some(status) = self.health.as_mut().and_then(Health::turn) {
                return self.end(Some(status));
            }
        }
    }

    /// The client that the container was started for is gone, or has no more input.
    fn leave(&mut self) {
        if !self.terminal {
            self.stdin.end();
        }
        if !self.hang_up || !self.clients.foreground_left() {
            return;
        }
        self.hang_up = false; // once is enough
        if self.terminal {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::HUP);
        } else {
            (self.stdout, self.stderr) = (None, None);
        }
    }

    /// After init's end: what it and its children had still written.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let end = Instant::now() + DRAIN;
        let mut reads = 0;
        while (self.stdout.is_some() || self.stderr.is_some()) && reads < DRAIN_READS_MAX {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos().max(1)) };
            // What is left fits a pipe's buffer. One that has nothing answers EAGAIN: both are tried.
            if self.wait_for_output(&timeout)? {
                self.read([true, true]);
                reads += 1;
            }
        }
        self.clients.sweep();
        Ok(())
    }

    fn wait(&self, read_clients: bool, read_output: bool, timeout: Option<&Timespec>) -> io::Result<Ready> {
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        let stdin = self.stdin.wants_write();
        let (mut in_at, mut out_at, mut err_at) = (None, None, None);
        if let Some(fd) = &stdin {
            in_at = Some(fds.len());
            fds.push(PollFd::new(fd, PollFlags::OUT));
        }
        if read_output {
            for (fd, at) in [(&self.stdout, &mut out_at), (&self.stderr, &mut err_at)] {
                if let Some(fd) = fd {
                    *at = Some(fds.len());
                    fds.push(PollFd::new(fd, PollFlags::IN));
                }
            }
        }
        if let Some(health) = &self.health {
            health.poll_for(&mut fds);
        }
        let clients_from = fds.len();
        self.clients.poll_for(&mut fds, read_clients);
        match rustix::event::poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::INTR) => {
                fds.iter_mut().for_each(PollFd::clear_revents);
            }
            Err(error) => return Err(error.into()),
        }
        let happened = |at: Option<usize>| at.is_some_and(|at| !fds[at].revents().is_empty());
        Ok(Ready {
            init: happened(Some(0)),
            stdin: happened(in_at),
            output: [happened(out_at), happened(err_at)],
            clients: fds[clients_from..].iter().map(PollFd::revents).collect(),
        })
    }

    /// Whether there may be output; the foreground client need not keep up any more.
    fn wait_for_output(&self, timeout: &Timespec) -> io::Result<bool> {
        let streams = [&self.stdout, &self.stderr];
        let mut fds: Vec<_> =
            streams.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        match rustix::event::poll(&mut fds, Some(timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, output: [bool; 2]) {
        for (wanted, source) in output.into_iter().zip([Source::Stdout, Source::Stderr]) {
            if wanted {
                self.read_one(source);
            }
        }
    }

    fn read_one(&mut self, source: Source) {
        let (stream, kind) = match source {
            Source::Stdout => (&mut self.stdout, Kind::Stdout),
            Source::Stderr => (&mut self.stderr, Kind::Stderr),
        };
        let Some(fd) = stream else { return };
        match rustix::io::read(fd.as_fd(), &mut self.block[..]) {
            Ok(n @ 1..) => {
                if let Some(log) = &mut self.log
                    && log.write(source, &self.block[..n])
                {
                    self.clients.log_grew();
                }
                self.clients.output(kind, &self.block[..n]);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal whose other side is closed by everyone answers EIO; a pipe, nothing.
            Ok(_) | Err(_) => *stream = None,
        }
    }

    fn carry_out(&mut self, requests: &mut Vec<Request>) {
        for request in requests.drain(..) {
            match request {
                Request::Stdin(bytes) => self.stdin.push(&bytes),
                Request::StdinEof => self.stdin.end(),
                Request::Resize(rows, columns) => self.resize(rows, columns),
                Request::Probe => {
                    if let Some(health) = &mut self.health {
                        health.ask();
                    }
                }
                Request::Signal(number) => {
                    if let Some(signal) = Signal::from_named_raw(i32::from(number)) {
                        // It may have ended meanwhile: then there is nobody to tell.
                        let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
                    }
                }
            }
        }
    }

    fn resize(&self, rows: u16, columns: u16) {
        if let (true, Some(master)) = (self.terminal, &self.stdout) {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = rustix::termios::tcsetwinsize(master, size);
        }
    }

    /// Init has ended, and nothing is asked any more; `status` where it was reaped already. Whatever else was left to this
    /// process is reaped as well.
    fn end(&mut self, status: Option<WaitStatus>) -> io::Result<Option<WaitStatus>> {
        if let Some(health) = self.health.take() {
            health.end();
        }
        let status = if status.is_some() { status } else { self.reap()? };
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        Ok(status)
    }

    /// Reaps init.
    fn reap(&self) -> io::Result<Option<WaitStatus>> {
        let end = Instant::now() + HANDOVER;
        let status = loop {
            match rustix::process::waitpid(Some(self.init), WaitOptions::empty()) {
                Ok(status) => break status,
                // A helper of the runtime may outlive it (crun's does), and be the parent until it ends as well.
                Err(Errno::CHILD) if Instant::now() < end => thread::sleep(HANDOVER_LOOK),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        Ok(status.map(|(_, status)| status))
    }
}
