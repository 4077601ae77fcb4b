//! The restart policy: whether a container that has ended is started again, and when.
//!
//! The policy and the user's wish to stop are files in the bundle, looked at when they matter: whoever changes them need
//! not find this process, and they are there after a reboot.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec};
use rustix::io::Errno;

use crate::clients::Clients;
use crate::record::{self, Exit};

/// Holds the policy's words, in the bundle; absent is "no".
const POLICY: &str = "restart";

/// There once the user wants the container to end, in the bundle; the next start removes it.
const STOPPED: &str = "stopped";

/// Ends of runs that were followed by another one, a line each, in the bundle.
const RUNS: &str = "runs";

/// As many are kept: who looks more rarely than every sixteenth run hears of the last ones.
const RUNS_MAX: usize = 16;

/// As Docker's: the first wait, its double, and so on up to the longest.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(60);

/// As Docker's: after a run of this length the waits begin anew.
const LONG_RUN: Duration = Duration::from_secs(10);

/// What the policy says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    No,
    /// After another status than 0, so many times; 0 is without end.
    OnFailure(u32),
    /// "unless-stopped" too: they differ after a reboot alone.
    Always,
}

impl Policy {
    /// The bundle's; what cannot be read is "no".
    fn read(bundle: &Path) -> Self {
        fs::read_to_string(bundle.join(POLICY)).map_or(Self::No, |text| Self::parse(text.trim()))
    }

    fn parse(text: &str) -> Self {
        let (name, times) = text.split_once(':').unwrap_or((text, "0"));
        match (name, times.parse()) {
            ("always" | "unless-stopped", _) => Self::Always,
            ("on-failure", Ok(times)) => Self::OnFailure(times),
            _ => Self::No,
        }
    }

    fn wants(self, failed: bool, restarts: u32) -> bool {
        match self {
            Self::No => false,
            Self::OnFailure(times) => failed && (times == 0 || restarts < times),
            Self::Always => true,
        }
    }
}

/// The wait before the next run.
fn next_delay(before: Duration, lived: Duration) -> Duration {
    if lived >= LONG_RUN || before.is_zero() { FIRST_DELAY } else { (before * 2).min(LAST_DELAY) }
}

/// The runs of one container under one shim.
pub(crate) struct Restarts<'a> {
    bundle: &'a Path,
    /// How often it was started again.
    pub(crate) count: u32,
    delay: Duration,
    ends: Vec<String>,
}

impl<'a> Restarts<'a> {
    pub(crate) fn new(bundle: &'a Path) -> Self {
        Self { bundle, count: 0, delay: Duration::ZERO, ends: Vec::new() }
    }

    /// Whether the user wants it to end.
    pub(crate) fn is_stopped(&self) -> bool {
        self.bundle.join(STOPPED).exists()
    }

    /// Whether another run follows on this end; if so, it is recorded, and that nothing runs now.
    pub(crate) fn follows(&mut self, exit: &Exit) -> io::Result<bool> {
        if self.is_stopped() || !Policy::read(self.bundle).wants(exit.has_failed(), self.count) {
            return Ok(false);
        }
        self.count += 1;
        self.delay =
            next_delay(self.delay, Duration::from_nanos(exit.exited_ns.saturating_sub(exit.started_ns)));
        if self.ends.len() == RUNS_MAX {
            self.ends.remove(0);
        }
        self.ends.push(exit.to_json());
        // Before the state that has none: whoever sees "restarting" can read how the last run ended.
        // Where a full disk does not take it, it waits here for the next one: the container goes on all the same.
        let _ = record::write_whole(self.bundle, RUNS, self.ends.concat().as_bytes());
        record::write_restarting(exit.started_ns, self.count)?;
        Ok(true)
    }

    /// Waits, and serves clients meanwhile; false where the user wants it to end.
    pub(crate) fn rest(&self, clients: &mut Clients) -> io::Result<bool> {
        let end = Instant::now() + self.delay;
        let mut requests = Vec::new();
        while !self.is_stopped() {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else { return Ok(true) };
            if left.is_zero() {
                return Ok(true);
            }
            let mut fds = Vec::new();
            // Input is for the next run: it stays where it is until then.
            clients.poll_for(&mut fds, false);
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let events: Vec<_> = fds.iter().map(PollFd::revents).collect();
            clients.serve(&events, false, &mut requests);
            // A signal has nobody to go to; that somebody sent one is what this loop is woken for.
            requests.clear();
            clients.sweep();
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_as_a_user_writes_them() {
        assert_eq!(Policy::parse("always"), Policy::Always);
        assert_eq!(Policy::parse("unless-stopped"), Policy::Always);
        assert_eq!(Policy::parse("on-failure"), Policy::OnFailure(0));
        assert_eq!(Policy::parse("on-failure:3"), Policy::OnFailure(3));
        assert_eq!(Policy::parse("on-failure:x"), Policy::No);
        assert_eq!(Policy::parse(""), Policy::No);
    }

    #[test]
    fn on_failure_counts_and_asks_for_a_failure() {
        let policy = Policy::OnFailure(2);
        assert!(policy.wants(true, 0) && policy.wants(true, 1));
        assert!(!policy.wants(true, 2) && !policy.wants(false, 0));
        assert!(Policy::OnFailure(0).wants(true, 1000));
        assert!(Policy::Always.wants(false, 1000) && !Policy::No.wants(true, 0));
    }

    #[test]
    fn delays_double_up_to_a_minute_and_begin_anew_after_a_long_run() {
        let short = Duration::from_secs(1);
        let mut delay = Duration::ZERO;
        let mut seen = Vec::new();
        for _ in 0..12 {
            delay = next_delay(delay, short);
            seen.push(delay.as_millis());
        }
        assert_eq!(seen[..4], [100, 200, 400, 800]);
        assert_eq!(seen[9..], [51_200, 60_000, 60_000]);
        assert_eq!(next_delay(delay, LONG_RUN), FIRST_DELAY);
    }
}
