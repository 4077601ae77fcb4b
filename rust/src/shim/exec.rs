//! A process beside a container's init: its streams are held as the container's are, and no log is written.
//!
//! Its directory is of this shim alone, and holds all that it makes. One that somebody is joined to takes it away at the
//! end, since that one has heard how it ended; else the record stays in it, for whoever asks.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Pid;

use crate::args::Args;
use crate::clients::Clients;
use crate::launch::{self, Begin, Container, Launched};
use crate::record::{self, Exit};
use crate::report::Report;
use crate::supervisor::Supervisor;
use crate::{SOCKET, listen, remove, take_directory, tree};

/// Enough for what a clock does, whose thread holds no more than names of files.
const CLOCK_STACK_BYTES: usize = 64 << 10;

/// One process, from before its start until its last client has heard of its end.
pub(crate) fn run(args: &Args, report: &mut Report) -> io::Result<()> {
    let lock = take_directory(args)?;
    let told = hold(args, report);
    if args.attached || !matches!(told, Ok(true)) {
        remove_directory(&args.state);
    }
    drop(lock);
    told.map(drop)
}

/// Whether the process ran, and how it ended was told.
fn hold(args: &Args, report: &mut Report) -> io::Result<bool> {
    let mut clients = Clients::new(listen()?);
    report.ready();
    if args.attached && !clients.wait_for_foreground(report)? {
        return Ok(false);
    }
    let (container, started_ns) = match start(args, report) {
        Ok(Launched::Running(container)) => (container, record::now_ns()),
        Ok(Launched::Failed { status, message }) => {
            report.failed(status, &message);
            return Ok(false);
        }
        Ok(Launched::Cancelled) => return Ok(false),
        Err(error) => {
            // The process may run already, and there is nobody to hold it.
            tree::end_children();
            return Err(error);
        }
    };
    let clock = args.timeout.map(|timeout| Clock::start(container.init, timeout)).transpose()?;
    report.started(container.init)?;
    let mut supervisor = Supervisor::new(container, args.attached, &mut clients, None);
    supervisor.hang_up = args.attached;
    let status = supervisor.run()?;
    let exited_ns = record::now_ns();
    let error = clock.map_or_else(String::new, |clock| clock.verdict());
    supervisor.drain()?;
    let text = Exit { status, started_ns, exited_ns, error, oom: false }.to_json();
    let recorded = record::write_whole(Path::new("."), "exit.json", text.as_bytes());
    clients.exit(text.as_bytes());
    clients.flush();
    remove(SOCKET)?;
    clients.stop_listening();
    clients.flush_all()?;
    recorded.map(|()| true)
}

fn start(args: &Args, report: &Report) -> io::Result<Launched> {
    let launched = launch::launch(args, Begin::Anew, report)?;
    if let Launched::Running(Container { init, .. }) = &launched {
        record::write_running(*init, record::now_ns(), 0)?;
    }
    Ok(launched)
}

/// Takes away all that was made in it, and itself; it holds no directories.
fn remove_directory(directory: &Path) {
    for entry in fs::read_dir(".").into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.file_name());
    }
    let _ = fs::remove_dir(directory);
}

/// What ends a process that takes too long. A thread, because there is nothing else that it shares with the loop.
struct Clock {
    timeout: Duration,
    has_struck: Arc<AtomicBool>,
}

impl Clock {
    fn start(process: Pid, timeout: Duration) -> io::Result<Self> {
        let has_struck = Arc::new(AtomicBool::new(false));
        let strikes = Arc::clone(&has_struck);
        let start_ticks = record::start_ticks(process);
        thread::Builder::new().stack_size(CLOCK_STACK_BYTES).spawn(move || {
            thread::sleep(timeout);
            if let Some(start_ticks) = start_ticks {
                strikes.store(true, Ordering::Release);
                tree::end_process(process, start_ticks);
            }
        })?;
        Ok(Self { timeout, has_struck })
    }

    /// For the record: that it was too late, or "".
    fn verdict(&self) -> String {
        if self.has_struck.load(Ordering::Acquire) {
            format!("timed out: killed after {} seconds", self.timeout.as_secs_f64())
        } else {
            String::new()
        }
    }
}
