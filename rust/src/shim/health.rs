//! The health check: whether the container's command does its work, asked by a probe now and then.
//!
//! What is known is in `health.json` in the state directory; each change of the status is a line of `health` in the
//! bundle, where it stays until the next start, so that somebody can tell it as an event. Neither is flushed: a reboot
//! ends the container. Rules and defaults are Docker's.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};
use rustix::process::{Pid, WaitStatus};

use crate::args::Args;
use crate::log::escape;
use crate::probe::{Ended, Outcome, Probe};
use crate::record;

/// What is known now, in the state directory.
const RECORD: &str = "health.json";

/// Changes of the status, a line each, in the bundle.
const CHANGES: &str = "health";

/// As many are kept, as of ends of runs.
const CHANGES_MAX: usize = 16;

/// Results kept, as Docker does.
const RESULTS_MAX: usize = 5;

/// Set in a process' flags from the beginning of its end on: `PF_EXITING` of linux/sched.h.
const EXITING: u64 = 4;

/// When to ask, and how often before no answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    interval: Duration,
    timeout: Duration,
    start_period: Duration,
    start_interval: Duration,
    retries: u32,
}

impl Settings {
    /// Four times in nanoseconds and a number, with commas between.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(',');
        let mut time = || Some(Duration::from_nanos(parts.next()?.parse().ok()?));
        let (interval, timeout, start_period, start_interval) = (time()?, time()?, time()?, time()?);
        let retries = parts.next()?.parse().ok()?;
        let found = Self { interval, timeout, start_period, start_interval, retries };
        parts.next().is_none().then_some(found)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Starting,
    Healthy,
    Unhealthy,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// What results make of a container.
struct Standing {
    settings: Settings,
    status: Status,
    failing_streak: u32,
}

impl Standing {
    /// After one more result; `age` is the container's when the probe began. Whether the status is another one.
    fn take(&mut self, exit_code: i32, age: Duration) -> bool {
        let before = self.status;
        if exit_code == 0 {
            (self.status, self.failing_streak) = (Status::Healthy, 0);
        } else if self.status != Status::Starting || age >= self.settings.start_period {
            self.failing_streak = self.failing_streak.saturating_add(1);
            if self.failing_streak >= self.settings.retries {
                self.status = Status::Unhealthy;
            }
        }
        self.status != before
    }

    /// From the end of one probe, or the start of the container, to the next.
    fn pause(&self, age: Duration) -> Duration {
        if self.status == Status::Starting && age < self.settings.start_period {
            self.settings.start_interval
        } else {
            self.settings.interval
        }
    }
}

/// Changes of the status over all runs under this shim.
#[derive(Default)]
pub(crate) struct Changes {
    lines: VecDeque<String>,
    last_ns: u64,
}

impl Changes {
    fn add(&mut self, bundle: &Path, status: Status, at_ns: u64) {
        // Each has a time of its own, later than the one before, by which it is known whether it was told.
        self.last_ns = at_ns.max(self.last_ns + 1);
        if self.lines.len() == CHANGES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{{\"status\":\"{}\",\"time_ns\":{}}}\n", status.word(), self.last_ns));
        let text: String = self.lines.iter().map(String::as_str).collect();
        // A full disk is no reason to let go of the container: the next change is written with this one.
        let _ = record::write_whole(bundle, CHANGES, text.as_bytes());
    }
}

/// The health check of one run.
pub(crate) struct Health<'a> {
    args: &'a Args,
    init: Pid,
    /// By the wall clock, which tells runs apart.
    started_ns: u64,
    started: Instant,
    standing: Standing,
    results: VecDeque<String>,
    changes: &'a mut Changes,
    /// When the next probe is due.
    next: Instant,
    probe: Option<Probe>,
    /// Somebody asked for one while another was under way.
    again: bool,
    ended: Ended,
}

impl<'a> Health<'a> {
    /// Begins anew; None where there is no check.
    pub(crate) fn new(args: &'a Args, init: Pid, started_ns: u64, changes: &'a mut Changes) -> Option<Self> {
        let settings = args.health?;
        let standing = Standing { settings, status: Status::Starting, failing_streak: 0 };
        let started = Instant::now();
        let next = started + standing.pause(Duration::ZERO);
        let (results, ended) = (VecDeque::new(), Ended::default());
        let found = Self {
            args,
            init,
            started_ns,
            started,
            standing,
            results,
            changes,
            next,
            probe: None,
            again: false,
            ended,
        };
        found.write();
        Some(found)
    }

    /// Wants a probe as soon as can be, and one that begins after this.
    pub(crate) fn ask(&mut self) {
        self.again = self.probe.is_some();
        self.next = Instant::now();
    }

    /// What is to wake the loop.
    pub(crate) fn poll_for<'b>(&'b self, fds: &mut Vec<PollFd<'b>>) {
        if let Some(probe) = &self.probe {
            probe.poll_for(fds);
        }
    }

    /// How long the loop may sleep.
    pub(crate) fn timeout(&self) -> Option<Timespec> {
        let wake = self.probe.as_ref().map_or(self.next, Probe::wake);
        Timespec::try_from(wake.saturating_duration_since(Instant::now())).ok()
    }

    /// Goes on with what is under way, or begins what is due. How init ended, if that was found out by the way.
    pub(crate) fn turn(&mut self) -> Option<WaitStatus> {
        self.ended.reap();
        if let Some(status) = self.ended.take(self.init) {
            return Some(status);
        }
        let init = self.init;
        if let Some(probe) = &mut self.probe {
            if let Some(outcome) = probe.turn(&mut self.ended, || is_frozen(init)) {
                self.finish(&outcome);
            }
        } else if Instant::now() >= self.next {
            self.begin();
        }
        None
    }

    /// The container has ended, and the check with it.
    pub(crate) fn end(self) {
        if let Some(probe) = &self.probe {
            probe.end();
        }
    }

    fn begin(&mut self) {
        self.ended.forget();
        if is_frozen(self.init) || is_ending(self.init) {
            self.next = Instant::now() + self.standing.pause(self.started.elapsed());
            return;
        }
        match Probe::start(self.args, self.standing.settings.timeout) {
            Ok(probe) => self.probe = Some(probe),
            Err(error) => {
                let now_ns = record::now_ns();
                let outcome = Outcome { exit_code: -1, output: error.to_string().into_bytes() };
                self.take(&outcome, self.started.elapsed(), now_ns);
            }
        }
    }

    fn finish(&mut self, outcome: &Outcome) {
        let Some(probe) = self.probe.take() else { return };
        if outcome.exit_code != 0 && (is_ending(self.init) || is_frozen(self.init)) {
            // The container's end, or its freezing, is what it failed by.
            self.next = Instant::now() + self.standing.pause(self.started.elapsed());
            return;
        }
        self.take(outcome, probe.begun.saturating_duration_since(self.started), probe.begun_ns);
    }

    fn take(&mut self, outcome: &Outcome, age: Duration, begun_ns: u64) {
        let end_ns = record::now_ns();
        let mut output = Vec::new();
        escape(&mut output, &outcome.output);
        if self.results.len() == RESULTS_MAX {
            self.results.pop_front();
        }
        self.results.push_back(format!(
            "{{\"start_ns\":{begun_ns},\"end_ns\":{end_ns},\"exit_code\":{},\"output\":\"{}\"}}",
            outcome.exit_code,
            String::from_utf8_lossy(&output)
        ));
        if self.standing.take(outcome.exit_code, age) {
            // Before the record: whoever sees the status can tell of its change.
            self.changes.add(&self.args.bundle, self.standing.status, end_ns);
        }
        self.write();
        let pause = if self.again { Duration::ZERO } else { self.standing.pause(self.started.elapsed()) };
        self.again = false;
        self.next = Instant::now() + pause;
    }

    fn write(&self) {
        let results: Vec<&str> = self.results.iter().map(String::as_str).collect();
        let text = format!(
            "{{\"status\":\"{}\",\"started_ns\":{},\"failing_streak\":{},\"results\":[{}]}}\n",
            self.standing.status.word(),
            self.started_ns,
            self.standing.failing_streak,
            results.join(",")
        );
        // What cannot be written now is written with the next result.
        let _: io::Result<()> = record::write_whole(Path::new("."), RECORD, text.as_bytes());
    }
}

/// Whether the container is paused: as `runtime/cgroup.py` looks.
fn is_frozen(init: Pid) -> bool {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", init.as_raw_pid())).unwrap_or_default();
    groups.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return false };
        let says = |file: String, wanted: &str| {
            fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| line == wanted))
        };
        match controllers {
            "" => says(format!("/sys/fs/cgroup{path}/cgroup.events"), "frozen 1"),
            "freezer" => {
                let file = format!("/sys/fs/cgroup/freezer{path}/freezer.state");
                says(file.clone(), "FROZEN") || says(file, "FREEZING")
            }
            _ => false,
        }
    })
}

/// Whether init is on its way out: then the kernel ends what is in its pid namespace, a probe too.
fn is_ending(init: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", init.as_raw_pid())).unwrap_or_default();
    let mut fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    let Some(state) = fields.next() else { return true };
    let flags: u64 = fields.nth(5).and_then(|text| text.parse().ok()).unwrap_or(0);
    matches!(state, "Z" | "X") || flags & EXITING != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn standing(start_period: u64) -> Standing {
        let text = format!("30000000000,30000000000,{},5000000000,3", start_period * SECOND);
        let settings = Settings::parse(&text).expect("they are settings");
        Standing { settings, status: Status::Starting, failing_streak: 0 }
    }

    #[test]
    fn settings_are_four_times_and_a_number() {
        assert!(Settings::parse("1,2,3,4,5").is_some_and(|found| found.retries == 5));
        assert_eq!(Settings::parse("1,2,3,4"), None);
        assert_eq!(Settings::parse("1,2,3,4,5,6"), None);
        assert_eq!(Settings::parse("1,2,x,4,5"), None);
    }

    #[test]
    fn so_many_failures_in_a_row_are_unhealthy() {
        let mut standing = standing(0);
        assert!(!standing.take(1, Duration::ZERO) && !standing.take(-1, Duration::ZERO));
        assert!(standing.take(0, Duration::ZERO) && standing.status == Status::Healthy);
        assert!(!standing.take(1, Duration::ZERO) && !standing.take(1, Duration::ZERO));
        assert!(standing.take(1, Duration::ZERO) && standing.status == Status::Unhealthy);
        assert!(!standing.take(1, Duration::ZERO) && standing.failing_streak == 4);
        assert!(standing.take(0, Duration::ZERO) && standing.failing_streak == 0);
    }

    #[test]
    fn failures_of_the_start_period_do_not_count_until_one_success() {
        let mut standing = standing(60);
        let early = Duration::from_secs(10);
        for _ in 0..5 {
            assert!(!standing.take(1, early));
        }
        assert_eq!((standing.status, standing.failing_streak), (Status::Starting, 0));
        assert_eq!(standing.pause(early), Duration::from_secs(5));
        standing.take(0, early);
        assert_eq!(standing.pause(early), Duration::from_secs(30));
        standing.take(1, early);
        assert_eq!(standing.failing_streak, 1);
    }

    #[test]
    fn after_the_start_period_failures_count() {
        let mut standing = standing(60);
        standing.take(1, Duration::from_secs(60));
        assert_eq!(standing.failing_streak, 1);
        assert_eq!(standing.pause(Duration::from_secs(60)), Duration::from_secs(30));
    }

    #[test]
    fn changes_have_times_that_grow_and_the_last_are_kept() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut changes = Changes::default();
        for _ in 0..CHANGES_MAX + 2 {
            changes.add(directory.path(), Status::Healthy, 7);
        }
        let text = fs::read_to_string(directory.path().join(CHANGES)).expect("it is written");
        assert_eq!(text.lines().count(), CHANGES_MAX);
        assert_eq!(text.lines().next(), Some("{\"status\":\"healthy\",\"time_ns\":9}"));
    }

    #[test]
    fn a_process_that_runs_is_not_ending_and_one_that_is_gone_is() {
        assert!(!is_ending(rustix::process::getpid()));
        let mut child = std::process::Command::new("true").spawn().expect("it runs");
        let pid = Pid::from_child(&child);
        child.wait().expect("it ends");
        assert!(is_ending(pid));
    }
}
