//! The container's standard input: a queue before a pipe or a terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// Bytes that wait before clients are asked to wait as well.
const HIGH_WATER_BYTES: usize = 64 << 10;

/// End of file, typed: what a terminal in canonical mode takes for it.
const TERMINAL_EOF: u8 = 4;

/// Standard input of the container; closed once its end was said and all was written.
pub(crate) struct Stdin {
    fd: Option<OwnedFd>,
    terminal: bool,
    pending: Vec<u8>,
    at_end: bool,
}

impl Stdin {
    /// `fd` does not block. None where the container has no input.
    pub(crate) fn new(fd: Option<OwnedFd>, terminal: bool) -> Self {
        Self { fd, terminal, pending: Vec::new(), at_end: false }
    }

    /// Takes bytes of a client.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.fd.is_some() && !self.at_end {
            self.pending.extend_from_slice(bytes);
            self.write();
        }
    }

    /// No more will come.
    pub(crate) fn end(&mut self) {
        if self.terminal {
            self.push(&[TERMINAL_EOF]);
        } else {
            self.at_end = true;
            self.write();
        }
    }

    /// Whether clients should be read: enough of what they sent was taken.
    pub(crate) fn accepts(&self) -> bool {
        self.pending.len() < HIGH_WATER_BYTES
    }

    /// The descriptor to wait for, where something is left to write.
    pub(crate) fn wants_write(&self) -> Option<BorrowedFd<'_>> {
        if self.pending.is_empty() { None } else { self.fd.as_ref().map(AsFd::as_fd) }
    }

    /// Writes what fits.
    pub(crate) fn write(&mut self) {
        while let Some(fd) = &self.fd
            && !self.pending.is_empty()
        {
            match rustix::io::write(fd, &self.pending) {
                Ok(n) => drop(self.pending.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    // The container closed its end, or is gone: nobody will read what is left.
                    self.fd = None;
                    self.pending = Vec::new();
                }
            }
        }
        if self.pending.is_empty() {
            self.pending = Vec::new();
            if self.at_end {
                self.fd = None;
            }
        }
    }
}
