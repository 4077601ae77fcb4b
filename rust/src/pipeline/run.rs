//! One blob's way through the stages.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::blocks::{self, Block, Usage};
use super::options::{Apply, Options, Outcome};
use super::packer::Repacked;
use super::pool;
use super::stage::{Clock, Doing, STAGES, Stage, StageTimes};
use crate::compression::{Compression, Decoder};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::tar::{AppliedLayer, Limits};

/// A blob on its way. Dropping it gives it up.
pub struct Pipeline(Arc<Shared>);

pub(super) struct Shared {
    pub(super) subject: String,
    pub(super) expected: Option<Digest>,
    pub(super) size: Option<u64>,
    pub(super) expected_diff: Option<Digest>,
    pub(super) limits: Limits,
    pub(super) usage: Arc<Usage>,
    pub(super) received: AtomicU64,
    pub(super) unpacked: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) ended: AtomicBool,
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) actors: Actors,
}

pub(super) struct State {
    pub(super) lanes: [Lane; 4],
    pub(super) receive: Clock,
    /// What ended everything.
    pub(super) error: Option<Error>,
    /// What the content was refused for: told once the bytes are known to be those that the digest names.
    pub(super) verdict: Option<Error>,
    pub(super) digest: Option<Digest>,
    pub(super) diff_id: Option<Digest>,
    pub(super) compression: Compression,
    pub(super) applied: AppliedLayer,
    pub(super) repacked: Option<Repacked>,
}

/// What waits in front of a stage.
pub(super) struct Lane {
    pub(super) queue: VecDeque<Arc<Block>>,
    /// Nothing more will come.
    pub(super) closed: bool,
    pub(super) clock: Clock,
}

/// What each stage keeps from block to block. A stage never runs twice at once: the locks are never waited for.
pub(super) struct Actors {
    pub(super) store: Mutex<Option<Store>>,
    pub(super) inflate: Mutex<Option<Inflate>>,
    pub(super) diff: Mutex<Option<Hasher>>,
    pub(super) apply: Mutex<Option<Apply>>,
}

pub(super) struct Store {
    pub(super) hasher: Hasher,
    pub(super) file: Option<File>,
    /// Bytes that were in the file before.
    pub(super) kept: u64,
    pub(super) written: u64,
    pub(super) flushed: u64,
}

pub(super) struct Inflate {
    pub(super) decoder: Option<Decoder>,
    /// The block that is being read, and how far.
    pub(super) input: Option<(Arc<Block>, usize)>,
    pub(super) output: Option<Block>,
    /// Bytes that went in, and that came out.
    pub(super) compressed: u64,
    pub(super) expanded: u64,
}

/// How a stage's turn ended.
pub(super) enum Turn {
    /// The block is done with.
    Over,
    /// Its last.
    Ended,
    /// It needs a free block to go on.
    Blocked,
}

impl Pipeline {
    /// Starts with no bytes.
    ///
    /// # Errors
    /// [`Error::Conflict`] in a process that was forked off one that had a pipeline.
    pub fn start(options: Options) -> Result<Self> {
        pool::check_process()?;
        let algorithm = options.digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let diff_algorithm = options.diff_id.map_or(Algorithm::Sha256, |digest| digest.algorithm());
        let enabled = [true, options.layer, options.layer, options.layer && options.apply.is_some()];
        let lanes = enabled.map(|on| {
            let mut clock = Clock::new();
            if !on {
                clock.turn(Doing::Done);
            }
            Lane { queue: VecDeque::new(), closed: false, clock }
        });
        let store = Store {
            hasher: Hasher::new(algorithm),
            file: options.store,
            kept: options.kept,
            written: 0,
            flushed: 0,
        };
        let decoder = options.plain.then(Decoder::plain);
        let inflate = Inflate { decoder, input: None, output: None, compressed: 0, expanded: 0 };
        Ok(Self(Arc::new(Shared {
            subject: options.subject,
            expected: options.digest,
            size: options.size,
            expected_diff: options.diff_id,
            limits: options.limits,
            usage: Arc::default(),
            received: AtomicU64::new(0),
            unpacked: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                lanes,
                receive: Clock::new(),
                error: None,
                verdict: None,
                digest: None,
                diff_id: None,
                compression: Compression::None,
                applied: AppliedLayer::default(),
                repacked: None,
            }),
            changed: Condvar::new(),
            actors: Actors {
                store: Mutex::new(Some(store)),
                inflate: Mutex::new(Some(inflate)),
                diff: Mutex::new(Some(Hasher::new(diff_algorithm))),
                apply: Mutex::new(options.apply),
            },
        })))
    }

    /// A free block, to be filled and pushed; waits for one.
    ///
    /// # Errors
    /// The first error of any stage; [`Error::Conflict`] in a forked process, as from all that follow.
    pub fn block(&self) -> Result<Block> {
        pool::check_process()?;
        self.0.lock().receive.turn(Doing::Blocked);
        let block = blocks::wait_for_input(&self.0.usage, || self.0.ended.load(Ordering::Acquire));
        let mut state = self.0.lock();
        state.receive.turn(Doing::Busy);
        block.ok_or_else(|| state.error.clone().unwrap_or(Error::Cancelled))
    }

    /// A block for bytes whose turn has not come: to be filled, and pushed once all in front of them was. None while all
    /// such blocks are taken, and never waited for: what stands in front gets [`Pipeline::block`].
    ///
    /// # Errors
    /// As [`Pipeline::block`].
    pub fn block_ahead(&self) -> Result<Option<Block>> {
        pool::check_process()?;
        if self.0.ended.load(Ordering::Acquire) {
            return Err(self.0.lock().error.clone().unwrap_or(Error::Cancelled));
        }
        Ok(blocks::ahead(&self.0.usage))
    }

    /// How many pushed blocks the slower of the stages that read them has not begun: none while bytes come too slowly.
    #[must_use]
    pub fn backlog(&self) -> usize {
        if pool::is_forked() {
            return 0;
        }
        let state = self.0.lock();
        let readers = [Stage::Store, Stage::Inflate];
        readers.into_iter().map(|stage| state.lanes[stage as usize].queue.len()).max().unwrap_or(0)
    }

    /// Hands a filled block to the stages.
    ///
    /// # Errors
    /// The first error of any stage; [`Error::SizeMismatch`] at the first byte too many.
    pub fn push(&self, block: Block) -> Result<()> {
        pool::check_process()?;
        let count = block.filled() as u64;
        if count == 0 {
            return Ok(());
        }
        let received = self.0.received.load(Ordering::Relaxed) + count;
        if let Some(size) = self.0.size.filter(|&size| received > size) {
            let subject = self.0.subject.clone();
            self.0.fail(Error::SizeMismatch { subject, expected: size, actual: size + 1 });
        }
        let block = Arc::new(block); // made before the lock is taken, so that it is let go of after
        let mut state = self.0.lock();
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        if state.is_suspended() {
            return Err(Error::Cancelled);
        }
        self.0.received.store(received, Ordering::Relaxed);
        state.receive.count(block.filled());
        state.receive.turn(Doing::Starved);
        self.0.offer(&mut state, Stage::Store, &block);
        self.0.offer(&mut state, Stage::Inflate, &block);
        Ok(())
    }

    /// Says that no more will come.
    pub fn close(&self) {
        if pool::is_forked() {
            return;
        }
        let received = self.received();
        if let Some(size) = self.0.size.filter(|&size| received != size) {
            let subject = self.0.subject.clone();
            self.0.fail(Error::SizeMismatch { subject, expected: size, actual: received });
        }
        let mut state = self.0.lock();
        state.receive.turn(Doing::Done);
        self.0.close_lane(&mut state, Stage::Store);
        self.0.close_lane(&mut state, Stage::Inflate);
    }

    /// Waits until every stage has ended; None where `timeout` passed before.
    ///
    /// # Errors
    /// The first error of any stage.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<Outcome>> {
        pool::check_process()?;
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.0.lock();
        while !state.is_over() {
            state = match deadline {
                None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        if let Some(error) = state.error.as_ref().or(state.verdict.as_ref()) {
            return Err(error.clone());
        }
        let digest = state.digest.ok_or(Error::Cancelled)?;
        Ok(Some(Outcome {
            digest,
            size: self.received(),
            compression: state.compression,
            diff_id: state.diff_id,
            applied: state.applied,
            repacked: state.repacked,
        }))
    }

    /// Gives it up, and waits until no stage touches anything of it any more.
    pub fn cancel(&self) {
        if pool::is_forked() {
            return;
        }
        self.0.fail(Error::Cancelled);
        self.wait_over();
    }

    /// Gives it up, but for the bytes that were handed over: they are written out first.
    pub fn suspend(&self) {
        if pool::is_forked() {
            return;
        }
        let state = self.0.lock();
        if state.error.is_none() && !state.is_over() {
            self.0.ended.store(true, Ordering::Release);
            self.0.hold_back(state, Error::Cancelled);
            let mut state = self.0.lock();
            state.receive.turn(Doing::Done);
            self.0.close_lane(&mut state, Stage::Store);
            drop(state);
            blocks::look_up();
        } else {
            drop(state);
        }
        self.wait_over();
    }

    fn wait_over(&self) {
        let mut state = self.0.lock();
        while !state.is_over() {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        // Files and directories are closed before the caller removes them.
        drop(self.0.actors.store.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.0.actors.inflate.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.0.actors.apply.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whether this process was forked off the one that has the stages.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        pool::is_forked()
    }

    /// Bytes handed over so far.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    /// Bytes of tar unpacked so far.
    #[must_use]
    pub fn unpacked(&self) -> u64 {
        self.0.unpacked.load(Ordering::Relaxed)
    }

    /// Entries of the tar unpacked so far, the one that is being written included.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.0.entries.load(Ordering::Relaxed)
    }

    /// Where each stage's time went so far, by its name; nothing in a forked process.
    #[must_use]
    pub fn times(&self) -> Vec<(&'static str, StageTimes)> {
        if pool::is_forked() {
            return Vec::new();
        }
        let state = self.0.lock();
        let clocks = std::iter::once(&state.receive).chain(state.lanes.iter().map(|lane| &lane.clock));
        STAGES.into_iter().zip(clocks.map(Clock::times)).collect()
    }
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("subject", &self.0.subject).finish_non_exhaustive()
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        if pool::is_forked() {
            // Stages may have been at work when the process was copied: what they had in hand is never whole here.
            std::mem::forget(Arc::clone(&self.0));
        } else {
            self.cancel();
        }
    }
}

impl State {
    /// Whether it was given up, but for its bytes.
    pub(super) fn is_suspended(&self) -> bool {
        matches!(self.verdict, Some(Error::Cancelled))
    }

    fn is_over(&self) -> bool {
        self.lanes.iter().all(|lane| lane.clock.doing() == Doing::Done)
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes still to come: the pipeline with most of them goes first, since the longest decides when all end.
    pub(super) fn bytes_left(&self) -> u64 {
        self.size.unwrap_or(0).saturating_sub(self.received.load(Ordering::Relaxed))
    }

    /// Ends everything with this error, unless another was first.
    pub(super) fn fail(self: &Arc<Self>, error: Error) {
        let mut state = self.lock();
        if state.error.is_none() && !state.is_over() {
            state.error = Some(error);
        }
        // A block that is let go of takes locks: not while this one is held.
        let mut queues = Vec::new();
        if state.error.is_some() {
            self.ended.store(true, Ordering::Release);
            for lane in &mut state.lanes {
                queues.push(std::mem::take(&mut lane.queue));
                if lane.clock.doing() != Doing::Busy {
                    lane.clock.turn(Doing::Done);
                }
            }
        }
        drop(state);
        drop(queues);
        self.changed.notify_all();
        blocks::look_up();
    }

    /// Ends what reads the content, while its digest is still being taken: bytes that are not those of the blob say
    /// nothing about it, and a fault on the way is not to be told as the image's.
    fn hold_back(self: &Arc<Self>, mut state: MutexGuard<'_, State>, error: Error) {
        state.verdict = Some(error);
        let mut queues = Vec::new();
        for lane in &mut state.lanes[Stage::Inflate as usize..] {
            queues.push(std::mem::take(&mut lane.queue));
            if lane.clock.doing() != Doing::Busy {
                lane.clock.turn(Doing::Done);
            }
        }
        drop(state);
        drop(queues); // letting go of a block takes locks
        self.changed.notify_all();
    }

    pub(super) fn offer(self: &Arc<Self>, state: &mut State, stage: Stage, block: &Arc<Block>) {
        let lane = &mut state.lanes[stage as usize];
        if lane.clock.doing() != Doing::Done {
            lane.queue.push_back(Arc::clone(block));
            self.wake(lane, stage);
        }
    }

    fn close_lane(self: &Arc<Self>, state: &mut State, stage: Stage) {
        let lane = &mut state.lanes[stage as usize];
        lane.closed = true;
        self.wake(lane, stage);
    }

    fn wake(self: &Arc<Self>, lane: &mut Lane, stage: Stage) {
        if lane.clock.doing() == Doing::Starved {
            lane.clock.turn(Doing::Waiting);
            pool::submit(self, stage);
        }
    }

    /// A block of output has become free.
    pub(super) fn output_freed(self: &Arc<Self>) {
        let mut state = self.lock();
        let lane = &mut state.lanes[Stage::Inflate as usize];
        if lane.clock.doing() == Doing::Blocked {
            lane.clock.turn(Doing::Waiting);
            pool::submit(self, Stage::Inflate);
        }
    }

    /// Runs one stage for one block; called by a worker.
    pub(super) fn step(self: &Arc<Self>, stage: Stage) {
        let mut state = self.lock();
        let lane = &mut state.lanes[stage as usize];
        if lane.clock.doing() != Doing::Waiting {
            return; // ended meanwhile
        }
        lane.clock.turn(Doing::Busy);
        let resumed = stage == Stage::Inflate && self.holds_input();
        let block = if resumed { None } else { lane.queue.pop_front() };
        let last = block.is_none() && !resumed;
        if last && !lane.closed {
            lane.clock.turn(Doing::Starved);
            return;
        }
        if let Some(block) = &block {
            lane.clock.count(block.filled());
        }
        drop(state);
        let turn = catch_unwind(AssertUnwindSafe(|| self.turn(stage, block, last))).unwrap_or_else(|_| {
            // A bug; the caller gets an error, not a hang.
            Err(Error::Unsupported {
                feature: format!("stage {stage:?} panicked"),
                needs: "a bug report".to_owned(),
            })
        });
        self.after(stage, turn);
    }

    fn holds_input(&self) -> bool {
        let actor = self.actors.inflate.lock().unwrap_or_else(PoisonError::into_inner);
        actor.as_ref().is_some_and(|inflate| inflate.input.is_some())
    }

    fn after(self: &Arc<Self>, stage: Stage, turn: Result<Turn>) {
        let mut state = self.lock();
        if state.error.is_some() {
            state.lanes[stage as usize].clock.turn(Doing::Done);
            drop(state);
            self.changed.notify_all();
            return;
        }
        if stage != Stage::Store && state.verdict.is_some() {
            state.lanes[stage as usize].clock.turn(Doing::Done);
            drop(state);
            self.changed.notify_all();
            return;
        }
        let lane = &mut state.lanes[stage as usize];
        match turn {
            Err(
                error
                @ (Error::UnsafeArchive { .. } | Error::OverLimit { .. } | Error::DiffIdMismatch { .. }),
            ) if self.expected.is_some() => {
                lane.clock.turn(Doing::Done);
                self.hold_back(state, error);
                return;
            }
            Err(error) => {
                lane.clock.turn(Doing::Done);
                state.error = Some(error.clone());
                drop(state);
                self.fail(error);
                return;
            }
            Ok(Turn::Ended) => {
                lane.clock.turn(Doing::Done);
                if stage == Stage::Inflate {
                    self.close_lane(&mut state, Stage::Diff);
                    self.close_lane(&mut state, Stage::Apply);
                }
                drop(state);
                self.changed.notify_all();
                return;
            }
            Ok(Turn::Blocked) => {
                lane.clock.turn(Doing::Blocked);
                drop(state);
                // A block may have come back between the refusal and this: then nobody would say so again.
                self.retry_output();
                return;
            }
            Ok(Turn::Over) => {}
        }
        lane.clock.turn(Doing::Starved);
        if !lane.queue.is_empty() || lane.closed {
            self.wake(lane, stage);
        }
    }

    /// Looks once more for a block of output after the stage is known to wait for one.
    fn retry_output(self: &Arc<Self>) {
        if let Some(block) = blocks::output_or_wait(&self.usage, self) {
            let mut actor = self.actors.inflate.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(inflate) = actor.as_mut()
                && inflate.output.is_none()
            {
                inflate.output = Some(block);
            }
            drop(actor);
            self.output_freed();
        }
    }
}
