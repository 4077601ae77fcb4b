//! What each stage does with a block.

use std::fs::File;
use std::io::Write;
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rustix::fs::Advice;

use super::blocks::{self, Block};
use super::options::Apply;
use super::run::{Shared, Turn};
use super::stage::Stage;
use crate::error::{Error, Result};
use crate::tar::AppliedLayer;

/// Bytes of a staged blob after which the kernel is told to begin writing: the flush at the end is short then.
const WRITE_BACK_BYTES: u64 = 8 << 20;
/// How far behind the kernel is asked again to forget what it has written by now. A blob is read again seldom; memory
/// that goes round is warm, where a virtual machine's first touch of a page costs ten times the copy.
const FORGET_BYTES: u64 = 4 * WRITE_BACK_BYTES;

impl Shared {
    /// Gives a stage its next block; None is its last turn, or one that goes on with what it holds.
    pub(super) fn turn(
        self: &Arc<Self>,
        stage: Stage,
        block: Option<Arc<Block>>,
        last: bool,
    ) -> Result<Turn> {
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
            if self.lock().is_suspended() {
                return Ok(Turn::Ended); // a part of it was written out: what that hashes to says nothing
            }
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
            // A block is of the one kind or of the other, never of both: see `Ingest::replay`.
            if store.written >= store.kept {
                file.write_all(block.content()).map_err(|e| Error::io("write", "blob", &e))?;
            }
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
            inflate.compressed += step.consumed as u64;
            inflate.expanded += step.produced as u64;
            self.limits.check_ratio(inflate.compressed, inflate.expanded)?;
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
                Some(Apply::Pack(packer)) => {
                    let repacked = packer.finish()?;
                    self.lock().repacked = Some(repacked);
                    AppliedLayer::default()
                }
            };
            self.lock().applied = applied;
            return Ok(Turn::Ended);
        };
        match actor.as_mut() {
            None => {}
            Some(Apply::Layer(writer)) => {
                writer.write(block.content())?;
                self.entries.store(writer.entries(), Ordering::Relaxed);
            }
            Some(Apply::Merge(merger)) => {
                merger.write(block.content())?;
                self.entries.store(merger.entries(), Ordering::Relaxed);
            }
            Some(Apply::Pack(packer)) => packer.write(block.content())?,
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
