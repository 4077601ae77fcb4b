//! What goes through to a writer, counted and hashed.

use std::io::{self, Write};

use crate::digest::{Algorithm, Digest, Hasher};

/// Counts and hashes what goes through.
pub(super) struct Measured<W> {
    out: W,
    hasher: Hasher,
    bytes: u64,
}

impl<W> Measured<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, hasher: Hasher::new(Algorithm::Sha256), bytes: 0 }
    }

    /// How many went through.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What they went to, the SHA-256 of them and their number.
    pub(super) fn finish(self) -> (W, Digest, u64) {
        (self.out, self.hasher.finish(), self.bytes)
    }
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write_all(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
