//! The stages of a pipeline and their clocks.

use std::time::Instant;

/// The stages, in the order in which bytes go through them.
pub const STAGES: [&str; 5] = ["receive", "store", "inflate", "diff", "apply"];

/// A stage that runs on the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Digest of the bytes as they came, and the staged blob.
    Store = 0,
    /// Decompression.
    Inflate = 1,
    /// Digest of the uncompressed bytes.
    Diff = 2,
    /// Unpacking.
    Apply = 3,
}

impl Stage {
    /// Which of two runs first: the one that frees memory soonest.
    pub(super) fn urgency(self) -> u8 {
        match self {
            Self::Store => 0,
            Self::Inflate => 1,
            Self::Diff => 2,
            Self::Apply => 3,
        }
    }
}

/// Where a stage's time went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// At work, in nanoseconds.
    pub busy_ns: u64,
    /// Without anything to work on.
    pub starved_ns: u64,
    /// With work, waiting for a free block in front of it.
    pub blocked_ns: u64,
    /// With work, waiting for a worker of the pool.
    pub waiting_ns: u64,
    /// Bytes taken in.
    pub bytes: u64,
}

/// What a stage is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    Starved,
    Waiting,
    Busy,
    Blocked,
    Done,
}

/// Adds up what a stage is doing.
#[derive(Debug)]
pub(super) struct Clock {
    doing: Doing,
    since: Instant,
    times: StageTimes,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self { doing: Doing::Starved, since: Instant::now(), times: StageTimes::default() }
    }

    pub(super) fn doing(&self) -> Doing {
        self.doing
    }

    pub(super) fn turn(&mut self, doing: Doing) {
        let now = Instant::now();
        let passed = u64::try_from(now.duration_since(self.since).as_nanos()).unwrap_or(u64::MAX);
        match self.doing {
            Doing::Starved => self.times.starved_ns += passed,
            Doing::Waiting => self.times.waiting_ns += passed,
            Doing::Busy => self.times.busy_ns += passed,
            Doing::Blocked => self.times.blocked_ns += passed,
            Doing::Done => {}
        }
        self.doing = doing;
        self.since = now;
    }

    pub(super) fn count(&mut self, bytes: usize) {
        self.times.bytes += bytes as u64;
    }

    pub(super) fn times(&self) -> StageTimes {
        self.times
    }
}
