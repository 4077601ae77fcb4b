//! One blob's way through the stages.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::Advice;

use super::blocks::{self, Block, Usage};
use super::options::{Apply, Options, Outcome};
use super::pool;
use super::stage::{Clock, Doing, STAGES, Stage, StageTimes};
use crate::compression::{Compression, Decoder};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::tar::AppliedLayer;

/// Bytes of a staged blob after which the kernel is told to begin writing: the flush at the end is short then.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// How far behind the kernel is asked again to forget what it has written by now. A blob is read again seldom; memory
/// that goes round is warm, where a virtual machine's first touch of a page costs ten times the copy.
const FORGET_BYTES: u64 = 4 * WRITE_BACK_BYTES;

/// A blob on its way. Dropping it gives it up.
pub struct Pipeline(Arc<Shared>);

pub(super) struct Shared {
    subject: String,
    expected: Option<Digest>,
    size: Option<u64>,
    expected_diff: Option<Digest>,
    usage: Arc<Usage>,
    received: AtomicU64,
    unpacked: AtomicU64,
    ended: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    actors: Actors,
}

struct State {
    lanes: [Lane; 4],
    receive: Clock,
    error: Option<Error>,
    digest: Option<Digest>,
    diff_id: Option<Digest>,
    compression: Compression,
    applied: AppliedLayer,
}

/// What waits in front of a stage.
struct Lane {
    queue: VecDeque<Arc<Block>>,
    /// Nothing more will come.
    closed: bool,
    clock: Clock,
}

/// What each stage keeps from block to block. A stage never runs twice at once: the locks are never waited for.
struct Actors {
    store: Mutex<Option<Store>>,
    inflate: Mutex<Option<Inflate>>,
    diff: Mutex<Option<Hasher>>,
    apply: Mutex<Option<Apply>>,
}

struct Store {
    hasher: Hasher,
    file: Option<File>,
    written: u64,
    flushed: u64,
}

struct Inflate {
    decoder: Option<Decoder>,
    /// The block that is being read, and how far.
    input: Option<(Arc<Block>, usize)>,
    output: Option<Block>,
}

/// How a stage's turn ended.
enum Turn {
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
        let store = Store { hasher: Hasher::new(algorithm), file: options.store, written: 0, flushed: 0 };
        let inflate = Inflate { decoder: None, input: None, output: None };
        Ok(Self(Arc::new(Shared {
            subject: options.subject,
            expected: options.digest,
            size: options.size,
            expected_diff: options.diff_id,
            usage: Arc::default(),
            received: AtomicU64::new(0),
            unpacked: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            state: Mutex::new(State {
                lanes,
                receive: Clock::new(),
                error: None,
                digest: None,
                diff_id: None,
                compression: Compression::None,
                applied: AppliedLayer::default(),
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
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        let digest = state.digest.ok_or(Error::Cancelled)?;
        Ok(Some(Outcome {
            digest,
            size: self.received(),
            compression: state.compression,
            diff_id: state.diff_id,
            applied: state.applied,
        }))
    }

    /// Gives it up, and waits until no stage touches anything of it any more.
    pub fn cancel(&self) {
        if pool::is_forked() {
            return;
        }
        self.0.fail(Error::Cancelled);
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
    fn is_over(&self) -> bool {
        self.lanes.iter().all(|lane| lane.clock.doing() == Doing::Done)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
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

    fn offer(self: &Arc<Self>, state: &mut State, stage: Stage, block: &Arc<Block>) {
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
        let lane = &mut state.lanes[stage as usize];
        match turn {
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

    fn turn(self: &Arc<Self>, stage: Stage, block: Option<Arc<Block>>, last: bool) -> Result<Turn> {
        match stage {
            Stage::Store => self.store(block.as_deref()),
            Stage::Inflate => self.inflate(block, last),
            Stage::Diff => self.diff(block.as_deref()),
            Stage::Apply => self.apply(block.as_deref()),
        }
    }

    fn store(&self, block: Option<&Block>) -> Result<Turn> {
        let mut actor = self.actors.store.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(block) = block else {
            let Some(store) = actor.take() else { return Ok(Turn::Ended) };
            let actual = store.hasher.finish();
            if let Some(expected) = self.expected.filter(|&expected| expected != actual) {
                return Err(Error::DigestMismatch {
                    subject: self.subject.clone(),
                    expected: Box::new(expected),
                    actual: Box::new(actual),
                });
            }
            self.lock().digest = Some(actual);
            return Ok(Turn::Ended);
        };
        let Some(store) = actor.as_mut() else { return Ok(Turn::Ended) };
        store.hasher.update(block.content());
        if let Some(file) = &mut store.file {
            file.write_all(block.content()).map_err(|e| Error::io("write", "blob", &e))?;
            store.written += block.filled() as u64;
            if store.written - store.flushed >= WRITE_BACK_BYTES {
                let from = store.flushed.saturating_sub(FORGET_BYTES);
                write_back_and_forget(file, from, store.written - from);
                store.flushed = store.written;
            }
        }
        Ok(Turn::Over)
    }

    fn inflate(self: &Arc<Self>, block: Option<Arc<Block>>, last: bool) -> Result<Turn> {
        let mut actor = self.actors.inflate.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(inflate) = actor.as_mut() else { return Ok(Turn::Ended) };
        if last {
            if let Some(decoder) = &inflate.decoder {
                decoder.finish()?;
                self.lock().compression = decoder.compression();
            }
            if let Some(output) = inflate.output.take() {
                self.emit(output);
            }
            *actor = None;
            return Ok(Turn::Ended);
        }
        if let Some(block) = block {
            inflate.input = Some((block, 0));
        }
        while let Some((input, at)) = inflate.input.take() {
            let decoder = inflate.decoder.get_or_insert_default();
            let Some(mut output) =
                inflate.output.take().or_else(|| blocks::output_or_wait(&self.usage, self))
            else {
                inflate.input = Some((input, at));
                return Ok(Turn::Blocked);
            };
            let filled = output.filled();
            let step = decoder.decode(&input.content()[at..], &mut output.space()[filled..])?;
            output.set_filled(filled + step.produced);
            if output.filled() == output.space().len() {
                self.emit(output);
            } else {
                inflate.output = Some(output);
            }
            let at = at + step.consumed;
            let stuck = step.consumed == 0 && step.produced == 0;
            if at < input.filled() || (step.produced > 0 && inflate.output.is_none()) {
                if stuck {
                    return Err(Error::UnsafeArchive {
                        entry: Vec::new(),
                        offset: self.received.load(Ordering::Relaxed),
                        reason: "compressed stream makes no progress".to_owned(),
                    });
                }
                inflate.input = Some((input, at));
            }
            if self.ended.load(Ordering::Acquire) {
                return Err(Error::Cancelled);
            }
        }
        Ok(Turn::Over)
    }

    fn emit(self: &Arc<Self>, output: Block) {
        let block = Arc::new(output);
        let mut state = self.lock();
        self.offer(&mut state, Stage::Diff, &block);
        self.offer(&mut state, Stage::Apply, &block);
    }

    fn diff(&self, block: Option<&Block>) -> Result<Turn> {
        let mut actor = self.actors.diff.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(block) = block else {
            let Some(hasher) = actor.take() else { return Ok(Turn::Ended) };
            let actual = hasher.finish();
            if let Some(expected) = self.expected_diff.filter(|&expected| expected != actual) {
                return Err(Error::DiffIdMismatch {
                    subject: self.subject.clone(),
                    expected: Box::new(expected),
                    actual: Box::new(actual),
                });
            }
            self.lock().diff_id = Some(actual);
            return Ok(Turn::Ended);
        };
        if let Some(hasher) = actor.as_mut() {
            hasher.update(block.content());
        }
        Ok(Turn::Over)
    }

    fn apply(&self, block: Option<&Block>) -> Result<Turn> {
        let mut actor = self.actors.apply.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(block) = block else {
            let applied = match actor.take() {
                None => AppliedLayer::default(),
                Some(Apply::Layer(writer)) => writer.finish()?,
                Some(Apply::Merge(merger)) => merger.finish()?,
            };
            self.lock().applied = applied;
            return Ok(Turn::Ended);
        };
        match actor.as_mut() {
            None => {}
            Some(Apply::Layer(writer)) => writer.write(block.content())?,
            Some(Apply::Merge(merger)) => merger.write(block.content())?,
        }
        self.unpacked.fetch_add(block.filled() as u64, Ordering::Relaxed);
        Ok(Turn::Over)
    }
}

/// Lets the kernel begin to write dirty pages out, and forget clean ones. Only a hint, so that a refusal means nothing:
/// the flush before publishing is what counts.
fn write_back_and_forget(file: &File, offset: u64, length: u64) {
    let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(length), Advice::DontNeed);
}
