//! Sending a part of a file to a client that takes it without a pause.
//!
//! By reads and writes of a block that stays in the processor's cache. `sendfile` copies once less, and leaves that copy
//! to whoever receives, page by page out of memory: to one client on loopback that was 1.4 GB/s at 0.66 s of processor
//! for each GB, where this is 2.2 at 0.45 (blocks of 16 to 64 KiB: 1.4, 1.8, 2.1, 2.3, 1.4; the last fills a segment,
//! for which the receiver is woken each time).

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, pread};
use rustix::net::{SendFlags, send};

use crate::error::{Error, Result};

/// What is read and written at once.
const BLOCK_BYTES: usize = 48 << 10;

/// Sends `count` bytes from `start` on, for as long as the client takes them; how many went.
///
/// It ends before where the client takes nothing for `pause`, where `turn` is over, and at the end of the file.
///
/// # Errors
///
/// The file cannot be read, or the client is gone.
pub fn send_part(
    target: BorrowedFd<'_>,
    source: BorrowedFd<'_>,
    start: u64,
    count: u64,
    pause: Duration,
    turn: Duration,
) -> Result<u64> {
    let pause = Timespec::try_from(pause).ok();
    let end = Instant::now() + turn;
    let mut block = vec![0; BLOCK_BYTES];
    let (mut sent, mut from, mut to) = (0, 0, 0);
    while sent < count && Instant::now() < end {
        if from == to {
            let wanted = BLOCK_BYTES.min(usize::try_from(count - sent).unwrap_or(usize::MAX));
            (from, to) = (0, read(source, &mut block[..wanted], start + sent)?);
            if to == 0 {
                break;
            }
        }
        match send(target, &block[from..to], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(n) => {
                from += n;
                sent += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&target, PollFlags::OUT)], pause.as_ref()) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::errno("wait for", "client", error)),
            },
            Err(error) => return Err(Error::errno("send to", "client", error)),
        }
    }
    Ok(sent)
}

fn read(source: BorrowedFd<'_>, block: &mut [u8], at: u64) -> Result<usize> {
    loop {
        match pread(source, &mut *block, at) {
            Err(Errno::INTR) => {}
            other => return other.map_err(|error| Error::errno("read", "blob", error)),
        }
    }
}
