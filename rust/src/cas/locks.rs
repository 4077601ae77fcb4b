//! Lock files between processes: made once, never removed, held with `flock`.
//!
//! The kernel lets go when the holder dies, so taking over needs no timeout. The file holds the holder's pid, for
//! people only.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// A waiter looks again after this, then after longer and longer.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// Up to this.
const LONGEST_PAUSE: Duration = Duration::from_millis(25);

/// A lock file.
#[derive(Debug)]
pub struct FileLock {
    path: PathBuf,
    shared: bool,
    held: Mutex<Option<Held>>,
}

#[derive(Debug)]
struct Held {
    file: File,
    /// Who took it. `flock` belongs to the open file, which a forked child shares: letting go there would let go here.
    process: u32,
}

impl FileLock {
    /// Names a lock; nothing is opened yet.
    #[must_use]
    pub fn new(path: PathBuf, shared: bool) -> Self {
        Self { path, shared, held: Mutex::new(None) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the lock, waiting up to `timeout` (for ever without one); false where it was not free in time.
    ///
    /// `stop` is asked between tries; what it returns as an error ends the wait.
    ///
    /// # Errors
    /// [`Error::Conflict`] where this object holds it already, also in a child that was forked off its holder;
    /// [`Error::Io`].
    pub fn acquire<E: From<Error>>(
        &self,
        timeout: Option<Duration>,
        stop: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        self.check_free()?;
        let mut file = self.open()?;
        if !self.wait(&file, timeout, stop)? {
            return Ok(false);
        }
        let mut held = self.lock();
        if let Some(other) = held.as_ref() {
            return Err(self.conflict(other).into()); // taken by another thread through this same object
        }
        if !self.shared {
            // For messages only: a failure to write it changes nothing.
            let _ = file.set_len(0).and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        }
        *held = Some(Held { file, process: std::process::id() });
        Ok(true)
    }

    /// Lets go; nothing where it is not held.
    pub fn release(&self) {
        let held = self.lock().take();
        if let Some(held) = held.filter(|held| held.process == std::process::id()) {
            // Closing alone would leave it held for as long as a forked child lives.
            let _ = flock(&held.file, FlockOperation::Unlock);
        }
    }

    fn wait<E: From<Error>>(
        &self,
        file: &File,
        timeout: Option<Duration>,
        stop: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<bool, E> {
        let operation = if self.shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut pause = FIRST_PAUSE;
        loop {
            match flock(file, operation) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(E::from(Error::errno("lock", &self.path, e))),
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
            std::thread::sleep(left.map_or(pause, |left| left.min(pause)));
            pause = (pause * 2).min(LONGEST_PAUSE);
            stop()?;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_free(&self) -> Result<()> {
        self.lock().as_ref().map_or(Ok(()), |held| Err(self.conflict(held)))
    }

    fn conflict(&self, held: &Held) -> Error {
        let state = if held.process == std::process::id() {
            "held by this object".to_owned()
        } else {
            format!("held by process {}, which this one was forked from", held.process)
        };
        Error::Conflict {
            kind: "lock",
            name: self.path.display().to_string(),
            state,
            allowed: "free".to_owned(),
        }
    }

    /// Who wrote its pid last: the holder, if there is one.
    #[must_use]
    pub fn holder(&self) -> Option<u32> {
        let mut text = String::new();
        let mut file = File::open(&self.path).ok()?;
        file.rewind().ok()?;
        file.take(16).read_to_string(&mut text).ok()?;
        text.trim().parse().ok()
    }

    fn open(&self) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(CWD, &self.path, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("open", &self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::unnecessary_wraps, reason = "what acquire() calls")]
    fn go_on() -> Result<()> {
        Ok(())
    }

    #[test]
    fn one_holder_at_a_time_and_many_readers() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("lock");
        let (first, second) = (FileLock::new(path.clone(), false), FileLock::new(path.clone(), false));
        let now = Some(Duration::ZERO);
        assert!(first.acquire(now, go_on).expect("asked"));
        assert!(!second.acquire(now, go_on).expect("asked"));
        assert_eq!(second.holder(), Some(std::process::id()));
        first.release();
        first.release();
        assert!(second.acquire(now, go_on).expect("asked"));
        second.release();
        let (one, two) = (FileLock::new(path.clone(), true), FileLock::new(path, true));
        assert!(one.acquire(now, go_on).expect("asked"));
        assert!(two.acquire(now, go_on).expect("asked"));
        assert!(!first.acquire(now, go_on).expect("asked"));
    }
}
