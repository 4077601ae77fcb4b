//! A blob that somebody sends in parts, and whose digest is known at its end only.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::publish::{Durability, Finished, publish};
use super::staging::{KeptBlob, Staging};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::flush::begin_to_write;
use crate::root::Root;

/// The disk is told to begin each time that so much came: then the flush at the end is short.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// One upload, locked for as long as this lives. Dropping it leaves what came for whoever takes it over.
#[derive(Debug)]
pub struct Upload {
    id: String,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    staging: Staging,
    file: File,
    size: u64,
    /// Up to where the disk was told to write.
    begun: u64,
    /// Of all bytes that are there; none where some came before this was opened.
    hasher: Option<Hasher>,
    algorithm: Algorithm,
    /// What all of it was read again to.
    read: Option<Digest>,
}

impl Upload {
    /// Takes `content/ingest/<id>/` over, or makes it; `algorithm` is the one that a digest is most likely to be of.
    ///
    /// # Errors
    /// As [`Staging::take_over`].
    pub fn open(root: &Root, id: &str, algorithm: Algorithm) -> Result<Self> {
        let staging = Staging::take_over(root, id)?;
        let KeptBlob { file, bytes, .. } = staging.open_blob(None)?;
        let hasher = (bytes == 0).then(|| Hasher::new(algorithm));
        let state = State { staging, file, size: bytes, begun: bytes, hasher, algorithm, read: None };
        Ok(Self { id: id.to_owned(), state: Mutex::new(Some(state)) })
    }

    /// How many bytes are there.
    ///
    /// # Errors
    /// [`Error::Conflict`] after its end.
    pub fn size(&self) -> Result<u64> {
        self.with(|state| Ok(state.size))
    }

    /// Takes the next bytes, all of them or none.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Conflict`] after its end.
    pub fn write(&self, bytes: &[u8]) -> Result<u64> {
        self.with(|state| state.write(bytes))
    }

    /// Looks whether all that came is what a digest names. What was not hashed while it came is read again.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`]; [`Error::Io`]; [`Error::Conflict`] after its end.
    pub fn verify(&self, expected: &Digest) -> Result<()> {
        let actual = self.with(|state| state.digest(expected.algorithm()))?;
        if actual == *expected {
            return Ok(());
        }
        let (expected, actual) = (Box::new(*expected), Box::new(actual));
        Err(Error::DigestMismatch { subject: "upload".to_owned(), expected, actual })
    }

    /// Verifies it, and gives it its name; see [`publish`]. Then it has ended.
    ///
    /// # Errors
    /// As [`Upload::verify`] and [`publish`].
    pub fn publish(
        &self,
        root: &Root,
        digest: &Digest,
        durability: Durability,
        journal: Option<&Path>,
    ) -> Result<()> {
        self.verify(digest)?;
        let mut held = self.hold();
        let state = held.as_ref().ok_or_else(|| self.ended())?;
        let blob = Some((*digest, state.size));
        let finished = Finished { staging: &state.staging, blob, layer: None, stays: false };
        publish(root, &[finished], durability, journal)?;
        drop(held.take());
        Ok(())
    }

    /// Lets go of it, and leaves what came. Again is a no-op.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is left then.
    pub fn leave(&self) -> Result<()> {
        let state = self.hold().take();
        state.map_or(Ok(()), |state| state.staging.leave())
    }

    /// Gives it up, with all that came. Again is a no-op.
    pub fn abort(&self) {
        drop(self.hold().take());
    }

    fn hold(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        act(self.hold().as_mut().ok_or_else(|| self.ended())?)
    }

    fn ended(&self) -> Error {
        Error::Conflict {
            kind: "upload",
            name: self.id.clone(),
            state: "over".to_owned(),
            allowed: "open".to_owned(),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Only a crash or a bug comes here with something open: what came may still be gone on with.
        let _ = self.leave();
    }
}

impl State {
    fn write(&mut self, bytes: &[u8]) -> Result<u64> {
        if let Err(e) = self.file.write_all(bytes) {
            // The half that is there was never acknowledged, nor hashed.
            let cut = self.file.set_len(self.size).and_then(|()| self.file.seek(SeekFrom::Start(self.size)));
            if cut.is_err() {
                self.hasher = None; // whoever verifies it reads what there is
            }
            return Err(Error::io("write", "upload", &e));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.read = None;
        self.size += bytes.len() as u64;
        if self.size - self.begun >= WRITE_BACK_BYTES {
            begin_to_write(&self.file, self.begun, self.size - self.begun);
            self.begun = self.size;
        }
        Ok(self.size)
    }

    fn digest(&mut self, algorithm: Algorithm) -> Result<Digest> {
        if let Some(hasher) = self.hasher.as_ref().filter(|_| algorithm == self.algorithm) {
            return Ok(hasher.clone().finish());
        }
        if let Some(read) = self.read.filter(|read| read.algorithm() == algorithm) {
            return Ok(read);
        }
        let file = self.staging.reread_blob(self.size)?;
        let digest = Hasher::read(algorithm, file).map_err(|e| Error::io("read", "upload", &e))?;
        self.read = Some(digest); // it is asked for again before it is published
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cas::BLOBS;

    fn root(directory: &tempfile::TempDir) -> Root {
        Root::open(directory.path()).expect("a root")
    }

    fn digest_of(bytes: &[u8], algorithm: Algorithm) -> Digest {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    #[test]
    fn what_came_in_parts_gets_its_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = root(&directory);
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let upload = Upload::open(&root, "u", Algorithm::Sha256).expect("an upload");
            upload.write(b"some ").expect("written");
            assert_eq!(upload.write(b"bytes").expect("written"), 10);
            let digest = digest_of(b"some bytes", algorithm);
            upload.publish(&root, &digest, Durability::None, None).expect("published");
            let path = directory.path().join(BLOBS).join(algorithm.name()).join(digest.hex());
            assert_eq!(std::fs::read(path).expect("a blob"), b"some bytes");
            assert!(matches!(upload.size(), Err(Error::Conflict { .. })));
        }
    }

    #[test]
    fn what_was_left_is_gone_on_with_and_verified_whole() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = root(&directory);
        let first = Upload::open(&root, "u", Algorithm::Sha256).expect("an upload");
        first.write(b"some ").expect("written");
        assert!(matches!(Upload::open(&root, "u", Algorithm::Sha256), Err(Error::Conflict { .. })));
        first.leave().expect("left");
        let second = Upload::open(&root, "u", Algorithm::Sha256).expect("an upload");
        assert_eq!(second.size().expect("a size"), 5);
        second.write(b"bytes").expect("written");
        let wrong = digest_of(b"bytes", Algorithm::Sha256);
        assert!(matches!(second.verify(&wrong), Err(Error::DigestMismatch { .. })));
        let digest = digest_of(b"some bytes", Algorithm::Sha256);
        second.publish(&root, &digest, Durability::Batch, None).expect("published");
    }

    #[test]
    fn what_is_given_up_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = root(&directory);
        let upload = Upload::open(&root, "u", Algorithm::Sha256).expect("an upload");
        upload.write(b"some").expect("written");
        upload.abort();
        assert!(!directory.path().join("content/ingest/u").exists());
        let again = Upload::open(&root, "u", Algorithm::Sha256).expect("an upload");
        assert_eq!(again.size().expect("a size"), 0);
    }
}
