//! zstd frames, compressed several at once by the pool's workers and written in their order.
//!
//! Short frames go to a worker together. Whoever gathers them takes part: a batch that nobody has begun when it is wanted is
//! compressed by whoever wants it, so that a pool of one worker never waits for itself. What the frames come to depends on
//! their content alone.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::measured::Measured;
use super::pool::{self, Job};
use crate::compression::{Frames, LONG_FRAME_BYTES};
use crate::error::{Error, Result};

/// Bytes that go to a worker at once: enough that handing them over costs nothing beside it.
const BATCH_BYTES: usize = 128 << 10;
/// Batches on their way at the most, whatever the number of workers: with what they come to, 12 MiB.
const BATCHES_MAX: usize = 16;

/// Compressors that are not at work; each has tables of a megabyte or more.
struct Contexts {
    level: Option<u32>,
    idle: Mutex<Vec<Frames>>,
}

impl Contexts {
    fn take(&self) -> Result<Frames> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.map_or_else(|| Frames::new(self.level), Ok)
    }

    fn give(&self, frames: Frames) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(frames);
    }
}

/// Frames, one behind the other, and where each ends.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

enum State {
    Waiting(Gathered),
    Begun,
    Done(Result<Gathered>),
}

/// Frames that are compressed together.
struct Batch {
    contexts: Arc<Contexts>,
    state: Mutex<State>,
    done: Condvar,
}

impl Job for Batch {
    fn run(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *state, State::Begun);
        let State::Waiting(gathered) = before else {
            *state = before; // somebody else has it
            return;
        };
        drop(state);
        // Whoever wants it waits for it: a bug must not leave it begun for ever.
        let compressed = catch_unwind(AssertUnwindSafe(|| self.compress(&gathered))).unwrap_or_else(|_| {
            Err(Error::Unsupported { feature: "a job panicked".to_owned(), needs: "a bug report".to_owned() })
        });
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Done(compressed);
        self.done.notify_all();
    }
}

impl Batch {
    fn compress(&self, gathered: &Gathered) -> Result<Gathered> {
        let mut frames = self.contexts.take()?;
        let mut found = Gathered::default();
        let mut from = 0;
        for &end in &gathered.ends {
            let written = frames.write(&gathered.bytes[from..end], &mut found.bytes);
            written.and_then(|()| frames.end(&mut found.bytes)).map_err(|e| super::wrong_layer(&e))?;
            found.ends.push(found.bytes.len());
            from = end;
        }
        self.contexts.give(frames);
        Ok(found)
    }

    fn is_done(&self) -> bool {
        matches!(*self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Done(_))
    }

    /// What it came to. Waits only for a worker that is at it.
    fn finish(&self) -> Result<Gathered> {
        self.run();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match std::mem::replace(&mut *state, State::Begun) {
                State::Done(found) => return found,
                before => *state = before,
            }
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Writes a blob of frames, which are numbered from 0.
pub(super) struct Batches {
    out: Measured<File>,
    contexts: Arc<Contexts>,
    gathered: Gathered,
    /// A frame that is too long to be gathered.
    long: Option<Frames>,
    waiting: VecDeque<Arc<Batch>>,
    waiting_most: usize,
    /// Frames that were ended.
    count: u64,
    /// Where those end that were written, from the `first` on that anybody asks for.
    ends: VecDeque<u64>,
    first: u64,
}

impl Batches {
    pub(super) fn new(out: File, level: Option<u32>) -> Result<Self> {
        let contexts = Contexts { level, idle: Mutex::new(vec![Frames::new(level)?]) };
        Ok(Self {
            out: Measured::new(out),
            contexts: Arc::new(contexts),
            gathered: Gathered::default(),
            long: None,
            waiting: VecDeque::new(),
            waiting_most: (2 * pool::workers()).min(BATCHES_MAX),
            count: 0,
            ends: VecDeque::new(),
            first: 0,
        })
    }

    /// The number of the frame that the next bytes are in.
    pub(super) fn number(&self) -> u64 {
        self.count
    }

    /// Where a frame begins, or, the one before it, ends; None as long as that is not written.
    pub(super) fn place(&self, number: u64) -> Option<u64> {
        let Some(before) = number.checked_sub(1) else { return Some(0) };
        let at = before.checked_sub(self.first)?;
        self.ends.get(usize::try_from(at).ok()?).copied()
    }

    /// Nobody asks for the places of frames before this one any more.
    pub(super) fn forget(&mut self, number: u64) {
        while self.first + 1 < number && self.ends.pop_front().is_some() {
            self.first += 1;
        }
    }

    /// Adds bytes to the frame.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.long.is_none() {
            let from = self.gathered.ends.last().copied().unwrap_or(0);
            if self.gathered.bytes.len() - from + bytes.len() <= LONG_FRAME_BYTES {
                self.gathered.bytes.extend_from_slice(bytes);
                return Ok(());
            }
            let front = self.gathered.bytes.split_off(from);
            self.drain()?;
            let mut long = self.contexts.take()?;
            long.write(&front, &mut self.out).map_err(|e| super::wrong_layer(&e))?;
            self.long = Some(long);
        }
        match &mut self.long {
            Some(long) => long.write(bytes, &mut self.out).map_err(|e| super::wrong_layer(&e)),
            None => Ok(()),
        }
    }

    /// Ends the frame; nothing where none was begun.
    pub(super) fn end(&mut self) -> Result<()> {
        if let Some(mut long) = self.long.take() {
            long.end(&mut self.out).map_err(|e| super::wrong_layer(&e))?;
            self.contexts.give(long);
            self.count += 1;
            self.ends.push_back(self.out.bytes());
            return Ok(());
        }
        let end = self.gathered.bytes.len();
        if end == self.gathered.ends.last().copied().unwrap_or(0) {
            return Ok(());
        }
        self.gathered.ends.push(end);
        self.count += 1;
        if end < BATCH_BYTES { Ok(()) } else { self.submit() }
    }

    /// Ends the last frame and writes all of them.
    pub(super) fn finish_frames(&mut self) -> Result<()> {
        self.end()?;
        self.drain()
    }

    /// What they were written to.
    pub(super) fn finish(mut self) -> Result<Measured<File>> {
        self.finish_frames()?;
        if self.count == 0 {
            // Of an archive of no bytes the blob has a frame all the same: without one it is none of zstd's.
            self.contexts.take()?.write_empty(&mut self.out).map_err(|e| super::wrong_layer(&e))?;
        }
        Ok(self.out)
    }

    fn submit(&mut self) -> Result<()> {
        if self.gathered.ends.is_empty() {
            return Ok(());
        }
        let batch = Arc::new(Batch {
            contexts: Arc::clone(&self.contexts),
            state: Mutex::new(State::Waiting(std::mem::take(&mut self.gathered))),
            done: Condvar::new(),
        });
        self.waiting.push_back(Arc::clone(&batch));
        pool::submit_job(batch);
        while self
            .waiting
            .front()
            .is_some_and(|front| self.waiting.len() > self.waiting_most || front.is_done())
        {
            self.write_front()?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        self.submit()?;
        while !self.waiting.is_empty() {
            self.write_front()?;
        }
        Ok(())
    }

    fn write_front(&mut self) -> Result<()> {
        let Some(batch) = self.waiting.pop_front() else { return Ok(()) };
        let found = batch.finish()?;
        let start = self.out.bytes();
        let written: io::Result<()> = io::Write::write_all(&mut self.out, &found.bytes);
        written.map_err(|e| super::wrong_layer(&e))?;
        self.ends.extend(found.ends.iter().map(|&end| start + end as u64));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(number: usize, length: usize) -> Vec<u8> {
        (0..length).map(|at| ((at / 3 + number) % 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn frames_are_written_in_order_and_each_is_where_it_is_said_to_be() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lengths: Vec<usize> =
            (0..3000).map(|n| if n % 700 == 5 { LONG_FRAME_BYTES + n } else { n % 900 + 1 }).collect();
        let mut blobs = Vec::new();
        for piece in [77, usize::MAX] {
            let path = dir.path().join(piece.to_string());
            let file = File::create_new(&path).expect("made");
            let mut batches = Batches::new(file, None).expect("memory");
            for (number, &length) in lengths.iter().enumerate() {
                assert_eq!(batches.number(), number as u64);
                for piece in content(number, length).chunks(piece.min(length)) {
                    batches.write(piece).expect("written");
                }
                batches.end().expect("ended");
                batches.end().expect("nothing to end");
            }
            batches.finish_frames().expect("written");
            let places: Vec<u64> =
                (0..=lengths.len()).map(|number| batches.place(number as u64).expect("written")).collect();
            batches.forget(7);
            assert_eq!((batches.place(6), batches.place(7)), (None, Some(places[7])));
            let (_, _, size) = batches.finish().expect("written").finish();
            assert_eq!(places.last(), Some(&size));
            let blob = std::fs::read(&path).expect("read");
            for (number, &length) in lengths.iter().enumerate() {
                let [from, to] =
                    [places[number], places[number + 1]].map(|at| usize::try_from(at).expect("small"));
                assert!(
                    zstd::decode_all(&blob[from..to]).expect("a frame") == content(number, length),
                    "{number}"
                );
            }
            blobs.push(blob);
        }
        assert!(blobs[0] == blobs[1]);
    }

    #[test]
    fn what_has_no_frame_has_an_empty_one() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("empty");
        let batches = Batches::new(File::create_new(&path).expect("made"), None).expect("memory");
        batches.finish().expect("written");
        let blob = std::fs::read(&path).expect("read");
        assert!(!blob.is_empty());
        assert_eq!(zstd::decode_all(&*blob).expect("a frame"), b"");
    }
}
