//! One probe of the health check: a process that the runtime starts in the container, and all that it starts.
//!
//! Nothing here waits: the loop asks how far it is. What takes long, the ending of a probe whose time is over, is a
//! thread's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, WaitStatus};

use crate::args::Args;
use crate::{record, tree};

/// What the runtime is told to start: the engine writes it into the state directory before it starts this process.
const SPEC: &str = "health-process.json";

/// Where the runtime writes the process' id, and its own words: a file for each probe.
const PID: &str = "health.pid";
const LOG: &str = "health.log";

/// Kept of what a probe writes, its end: as many bytes as Docker keeps of the beginning, where a program that tries
/// several things and fails at the last has not yet said why.
const OUTPUT_MAX_BYTES: usize = 4 << 10;

/// Read at once, and so often in one turn of the loop: a probe that writes without end must not keep it.
const READ_BYTES: usize = 4 << 10;
const READS_MAX: usize = 16;

/// How often it is looked whether the container is frozen, while a probe is under way: its time stands still then.
const LOOK: Duration = Duration::from_secs(1);

/// How often it is looked at what no descriptor tells: a helper of the runtime that is still the parent, a thread.
const SHORT_LOOK: Duration = Duration::from_millis(10);

/// How long a helper of the runtime may be the parent of a process that has ended.
const HANDOVER: Duration = Duration::from_secs(10);

/// Of processes that have ended so many are remembered: the probe may be among them before its number is known.
const ENDED_MAX: usize = 64;

/// Enough for what ends a probe, which holds no more than names of files.
const KILLER_STACK_BYTES: usize = 64 << 10;

/// How a probe ended, where it did not by itself.
const NO_STATUS: i32 = -1;

/// Children that have ended, taken from the kernel.
///
/// All are, whoever they are: the end of a pid namespace, so the container's, waits until each process of it has been.
#[derive(Default)]
pub(crate) struct Ended {
    list: Vec<(Pid, WaitStatus)>,
}

impl Ended {
    /// Takes those that are there.
    pub(crate) fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some(ended)) => {
                    if self.list.len() == ENDED_MAX {
                        self.list.remove(0);
                    }
                    self.list.push(ended);
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// How one of them ended, told once.
    pub(crate) fn take(&mut self, pid: Pid) -> Option<WaitStatus> {
        let at = self.list.iter().position(|(ended, _)| *ended == pid)?;
        Some(self.list.remove(at).1)
    }

    /// Those that nobody asks about.
    pub(crate) fn forget(&mut self) {
        self.list = Vec::new();
    }
}

/// How a probe ended.
pub(crate) struct Outcome {
    /// Of the process; -1 where it did not end by itself, or was not started.
    pub(crate) exit_code: i32,
    pub(crate) output: Vec<u8>,
}

/// How far it is.
enum Stage {
    /// The runtime runs.
    Starting,
    /// The process runs.
    Running,
    /// Its time is over; who ends it is done when all of it has ended.
    Killing(JoinHandle<()>),
}

/// One that is under way.
pub(crate) struct Probe {
    stage: Stage,
    /// The runtime, then the process.
    pid: Pid,
    /// None once it is known to have ended.
    pidfd: Option<OwnedFd>,
    /// When that was seen.
    ended: Option<Instant>,
    output: Option<OwnedFd>,
    kept: Vec<u8>,
    timeout: Duration,
    deadline: Instant,
    looked: Instant,
    /// When it began.
    pub(crate) begun: Instant,
    /// The same by the wall clock.
    pub(crate) begun_ns: u64,
}

impl Probe {
    /// Has the runtime start it.
    #[allow(clippy::zombie_processes, reason = "the loop reaps every child there is")]
    pub(crate) fn start(args: &Args, timeout: Duration) -> io::Result<Self> {
        crate::remove(PID)?;
        crate::remove(LOG)?;
        let (output, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&output, rustix::fs::fcntl_getfl(&output)? | OFlags::NONBLOCK)?;
        let mut command = args.runtime_command(LOG);
        command.args(["exec", "--detach", "--process"]).arg(args.state.join(SPEC));
        command.arg("--pid-file").arg(args.state.join(PID)).arg(&args.id);
        // A group of its own, by which what it left behind is found: crun makes no session for it, as runc does.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(write.try_clone()?).stderr(write);
        let (begun, begun_ns) = (Instant::now(), record::now_ns());
        let child = command
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", args.runtime.display())))?;
        let pid = Pid::from_child(&child);
        Ok(Self {
            stage: Stage::Starting,
            pid,
            pidfd: Some(rustix::process::pidfd_open(pid, PidfdFlags::empty())?),
            ended: None,
            output: Some(output),
            kept: Vec::new(),
            timeout,
            deadline: begun + timeout,
            looked: begun,
            begun,
            begun_ns,
        })
    }

    /// What is to wake the loop.
    pub(crate) fn poll_for<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        for fd in [&self.pidfd, &self.output].into_iter().flatten() {
            fds.push(PollFd::new(fd, PollFlags::IN));
        }
    }

    /// When the loop is to look without that.
    pub(crate) fn wake(&self) -> Instant {
        match self.stage {
            Stage::Killing(_) => Instant::now() + SHORT_LOOK,
            _ if self.ended.is_some() => Instant::now() + SHORT_LOOK,
            _ => self.deadline.min(self.looked + LOOK),
        }
    }

    /// Goes on; what came of it, once it is over.
    pub(crate) fn turn(&mut self, ended: &mut Ended, is_frozen: impl Fn() -> bool) -> Option<Outcome> {
        self.read();
        self.note_end();
        let status = ended.take(self.pid);
        match &self.stage {
            Stage::Starting => {
                if let Some(status) = status {
                    return self.started(status, ended);
                }
            }
            Stage::Running => {
                if let Some(status) = status {
                    return Some(self.outcome(code_of(status)));
                }
                if self.ended.is_some_and(|at| at.elapsed() > HANDOVER) {
                    return Some(self.outcome(NO_STATUS));
                }
            }
            Stage::Killing(killer) => {
                if !killer.is_finished() {
                    return None;
                }
                // What it waited for has been left to this process by now.
                ended.reap();
                return Some(self.timed_out());
            }
        }
        self.look_at_clock(is_frozen);
        None
    }

    /// The container has ended: what is left of it must not outlive that.
    pub(crate) fn end(&self) {
        if let Some(pidfd) = &self.pidfd {
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// The runtime has ended.
    fn started(&mut self, status: WaitStatus, ended: &mut Ended) -> Option<Outcome> {
        let pid = if status.exit_status() == Some(0) { read_pid() } else { None };
        let Some(pid) = pid else {
            let mut refused = self.outcome(NO_STATUS);
            if refused.output.trim_ascii().is_empty() {
                refused.output = fs::read(LOG).unwrap_or_default();
                keep_end(&mut refused.output, OUTPUT_MAX_BYTES);
            }
            return Some(refused);
        };
        (self.stage, self.pid, self.ended) = (Stage::Running, pid, None);
        // Where it was reaped already, its status is there.
        self.pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok();
        if self.pidfd.is_none() {
            self.ended = Some(Instant::now());
        }
        ended.take(pid).map(|status| self.outcome(code_of(status)))
    }

    /// Its process has ended: told by the descriptor once, since whose child it is may take a moment more.
    fn note_end(&mut self) {
        let Some(pidfd) = &self.pidfd else { return };
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        if matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1..)) {
            self.pidfd = None;
            self.ended = Some(Instant::now());
        }
    }

    fn look_at_clock(&mut self, is_frozen: impl Fn() -> bool) {
        let now = Instant::now();
        if now < self.deadline.min(self.looked + LOOK) {
            return;
        }
        if is_frozen() {
            self.deadline += now - self.looked;
        }
        self.looked = now;
        if now >= self.deadline {
            self.kill();
        }
    }

    /// Ends it and all that it has started, by a thread.
    fn kill(&mut self) {
        let (pid, is_starting) = (self.pid, matches!(self.stage, Stage::Starting));
        let Some(start_ticks) = record::start_ticks(pid) else { return };
        let killer = thread::Builder::new().stack_size(KILLER_STACK_BYTES).spawn(move || {
            tree::end_tree(pid, start_ticks);
            // The runtime may have been done just then.
            if is_starting
                && let Some(pid) = read_pid()
                && tree::is_child(pid)
                && let Some(start_ticks) = record::start_ticks(pid)
            {
                tree::end_tree(pid, start_ticks);
            }
        });
        // Where there can be no thread now, there may be one at the next look.
        if let Ok(killer) = killer {
            self.stage = Stage::Killing(killer);
        }
    }

    fn timed_out(&mut self) -> Outcome {
        let mut outcome = self.outcome(NO_STATUS);
        let seconds = self.timeout.as_secs_f64();
        let mut text = format!("health check exceeded timeout ({seconds}s)").into_bytes();
        if !outcome.output.is_empty() {
            text.extend_from_slice(b": ");
            keep_end(&mut outcome.output, OUTPUT_MAX_BYTES - text.len());
            text.append(&mut outcome.output);
        }
        Outcome { exit_code: NO_STATUS, output: text }
    }

    fn outcome(&mut self, exit_code: i32) -> Outcome {
        // All that it wrote is in the pipe; what it left running may hold the other end for ever.
        self.read();
        Outcome { exit_code, output: std::mem::take(&mut self.kept) }
    }

    /// Keeps the end of what was written, and lets go of the rest.
    fn read(&mut self) {
        let mut block = [0; READ_BYTES];
        for _ in 0..READS_MAX {
            let Some(fd) = &self.output else { return };
            match rustix::io::read(fd.as_fd(), &mut block[..]) {
                Ok(n @ 1..) => {
                    self.kept.extend_from_slice(&block[..n]);
                    keep_end(&mut self.kept, OUTPUT_MAX_BYTES);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Ok(_) | Err(_) => self.output = None,
            }
        }
    }
}

/// Lets go of the beginning of what is longer.
fn keep_end(bytes: &mut Vec<u8>, most: usize) {
    bytes.drain(..bytes.len().saturating_sub(most));
}

fn read_pid() -> Option<Pid> {
    fs::read_to_string(PID).ok()?.trim().parse().ok().and_then(Pid::from_raw)
}

/// As a shell says it.
fn code_of(status: WaitStatus) -> i32 {
    let signal = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(signal).unwrap_or(NO_STATUS)
}
