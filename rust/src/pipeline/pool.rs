//! The workers of the process: one pool for all stages of all pipelines.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};

use super::run::Shared;
use super::stage::Stage;
use crate::error::{Error, Result};

/// On one core a second worker still overlaps work with waiting for the disk.
const WORKERS_MINIMUM: usize = 2;

/// Work of a stage that other workers may take over.
pub(super) trait Job: Send + Sync {
    /// Does it, unless somebody has begun.
    fn run(&self);
}

enum Task {
    Stage(Arc<Shared>, Stage),
    Job(Arc<dyn Job>),
}

impl Task {
    /// What goes first: a job, since a stage holds memory until it is done; then the stage that frees memory soonest, of the
    /// pipeline that has most left.
    fn rank(&self) -> (bool, u8, u64) {
        match self {
            Self::Stage(pipeline, stage) => (false, stage.urgency(), pipeline.bytes_left()),
            Self::Job(_) => (true, 0, 0),
        }
    }

    fn run(self) {
        match self {
            Self::Stage(pipeline, stage) => pipeline.step(stage),
            Self::Job(job) => job.run(),
        }
    }
}

struct State {
    ready: Vec<Task>,
    workers: usize,
    idle: usize,
}

static STATE: Mutex<State> = Mutex::new(State { ready: Vec::new(), workers: 0, idle: 0 });
static WORK: Condvar = Condvar::new();
/// Asked for once: the answer comes from files of the process' cgroups.
static WANTED: LazyLock<usize> = LazyLock::new(|| {
    std::thread::available_parallelism().map_or(WORKERS_MINIMUM, usize::from).max(WORKERS_MINIMUM)
});
/// Threads do not survive a fork: the process that the workers belong to, 0 before there are any.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// Whether this is a child that was forked off. There no worker will ever take anything up, and a lock may be held by
/// a thread that only the parent has: nothing of this module is to be touched.
pub(super) fn is_forked() -> bool {
    let process = PROCESS.load(Ordering::Relaxed);
    process != 0 && process != std::process::id()
}

/// Refuses to go on in a child that was forked off.
pub(super) fn check_process() -> Result<()> {
    let own = std::process::id();
    let before = PROCESS.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed);
    if before.is_ok() || before == Err(own) {
        return Ok(());
    }
    Err(Error::Conflict {
        kind: "process",
        name: own.to_string(),
        state: "forked from a process that used the pipeline".to_owned(),
        allowed: "a fresh process (spawn, not fork)".to_owned(),
    })
}

/// Hands a stage to the workers.
pub(super) fn submit(pipeline: &Arc<Shared>, stage: Stage) {
    if !push(Task::Stage(Arc::clone(pipeline), stage)) {
        pipeline.fail(Error::Io { errno: 11, operation: "start thread", path: "pyctrd-worker".into() });
    }
}

/// Hands a job to the workers: the stage that has it will do it, if nobody else does.
pub(super) fn submit_job(job: Arc<dyn Job>) {
    push(Task::Job(job));
}

/// How many workers there are at the most.
pub(super) fn workers() -> usize {
    *WANTED
}

/// Whether there is anybody to do it.
fn push(task: Task) -> bool {
    let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
    state.ready.push(task);
    if state.idle == 0 && state.workers < workers() {
        let name = format!("pyctrd-worker-{}", state.workers);
        // Without a thread the tasks wait for those that there are; with none at all the caller would hang.
        if std::thread::Builder::new().name(name).spawn(work).is_ok() {
            state.workers += 1;
        }
    }
    let lost = state.workers == 0;
    drop(state);
    if !lost {
        WORK.notify_one();
    }
    !lost
}

fn work() {
    loop {
        let task = {
            let mut state = STATE.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                let best =
                    state.ready.iter().enumerate().max_by_key(|(_, task)| task.rank()).map(|(at, _)| at);
                if let Some(at) = best {
                    break state.ready.swap_remove(at);
                }
                state.idle += 1;
                state = WORK.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        };
        task.run();
    }
}
