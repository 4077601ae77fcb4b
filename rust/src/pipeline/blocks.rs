//! The supply of blocks. Its size is what bounds memory, and waiting for it is the only back-pressure.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::pool;
use super::run::Shared;

/// Bytes of a block of input: over 16 TLS records, under a core's second-level cache.
pub const IN_BLOCK_BYTES: usize = 256 << 10;
/// Bytes of a block of output.
pub(super) const OUT_BLOCK_BYTES: usize = 1 << 20;
/// Blocks of input for all pipelines together: 12 MiB.
const IN_SHARED: usize = 48;
/// Blocks of output for all pipelines together: 24 MiB.
const OUT_SHARED: usize = 24;
/// Blocks for what comes before its turn, for all pipelines together: 32 MiB. Six connections of one layer hold 20 to 24.
const AHEAD_SHARED: usize = 128;
/// What each pipeline gets even when others have taken all: so none waits for another to end.
const IN_MINIMUM: usize = 2;
const OUT_MINIMUM: usize = 3;
/// A waiter looks up this often whether its pipeline was ended meanwhile.
const LOOK_UP: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    In,
    Out,
    /// Input that waits for what stands in front of it. Nobody is owed any.
    Ahead,
}

impl Side {
    /// Which blocks are as long as its own: input is input, whether it waits or not.
    fn lengths(self) -> usize {
        usize::from(self == Self::Out)
    }
}

/// Blocks that a pipeline has.
#[derive(Debug, Default)]
pub(super) struct Usage {
    used: [AtomicUsize; 3],
}

/// Bytes on their way; goes back to the supply when the last stage lets go of it.
#[derive(Debug)]
pub struct Block {
    bytes: Vec<u8>,
    filled: usize,
    side: Side,
    usage: Arc<Usage>,
}

impl Block {
    /// All of it, to be filled.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// The bytes that count.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Says how many bytes at its front count.
    pub fn set_filled(&mut self, count: usize) {
        self.filled = count.min(self.bytes.len());
    }

    pub(super) fn filled(&self) -> usize {
        self.filled
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if pool::is_forked() {
            return; // the supply is the parent's
        }
        release(std::mem::take(&mut self.bytes), self.side, &self.usage);
    }
}

#[derive(Debug, Default)]
struct Supply {
    free: [Vec<Vec<u8>>; 2],
    used: [usize; 3],
    /// Pipelines whose inflate stage found no block; woken in turn.
    waiting: VecDeque<Weak<Shared>>,
}

static SUPPLY: Mutex<Supply> =
    Mutex::new(Supply { free: [Vec::new(), Vec::new()], used: [0; 3], waiting: VecDeque::new() });
static FREED: Condvar = Condvar::new();

fn supply() -> MutexGuard<'static, Supply> {
    SUPPLY.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supply {
    fn take(&mut self, side: Side, usage: &Arc<Usage>) -> Option<Block> {
        let at = side as usize;
        let (shared, minimum, size) = match side {
            Side::In => (IN_SHARED, IN_MINIMUM, IN_BLOCK_BYTES),
            Side::Out => (OUT_SHARED, OUT_MINIMUM, OUT_BLOCK_BYTES),
            // What pipelines are owed beyond what they share comes off this.
            Side::Ahead if self.is_exceeded() => return None,
            Side::Ahead => (AHEAD_SHARED, 0, IN_BLOCK_BYTES),
        };
        if self.used[at] >= shared && usage.used[at].load(Ordering::Relaxed) >= minimum {
            return None;
        }
        self.used[at] += 1;
        usage.used[at].fetch_add(1, Ordering::Relaxed);
        let bytes = self.free[side.lengths()].pop().unwrap_or_else(|| vec![0; size]);
        Some(Block { bytes, filled: 0, side, usage: Arc::clone(usage) })
    }

    fn is_exceeded(&self) -> bool {
        self.used[Side::In as usize] > IN_SHARED || self.used[Side::Out as usize] > OUT_SHARED
    }
}

/// Waits for a block of input; None once `ended` says that nobody wants it any more.
pub(super) fn wait_for_input(usage: &Arc<Usage>, ended: impl Fn() -> bool) -> Option<Block> {
    let mut supply = supply();
    loop {
        if ended() {
            return None;
        }
        if let Some(block) = supply.take(Side::In, usage) {
            return Some(block);
        }
        supply = FREED.wait_timeout(supply, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// A block for input that comes before its turn, or None: all are taken.
pub(super) fn ahead(usage: &Arc<Usage>) -> Option<Block> {
    supply().take(Side::Ahead, usage)
}

/// A block of output, or None: then `waiter` is told when there may be one.
pub(super) fn output_or_wait(usage: &Arc<Usage>, waiter: &Arc<Shared>) -> Option<Block> {
    let mut supply = supply();
    let block = supply.take(Side::Out, usage);
    if block.is_none() {
        supply.waiting.push_back(Arc::downgrade(waiter));
    }
    block
}

fn release(bytes: Vec<u8>, side: Side, usage: &Arc<Usage>) {
    let at = side as usize;
    let waiters = {
        let mut supply = supply();
        supply.used[at] -= 1;
        usage.used[at].fetch_sub(1, Ordering::Relaxed);
        if supply.used == [0; 3] {
            // Nothing is under way: the memory goes back to the system.
            supply.free = [Vec::new(), Vec::new()];
        } else {
            supply.free[side.lengths()].push(bytes);
        }
        if side == Side::Out { std::mem::take(&mut supply.waiting) } else { VecDeque::new() }
    };
    if side == Side::In {
        FREED.notify_all();
    }
    for waiter in waiters {
        if let Some(shared) = waiter.upgrade() {
            shared.output_freed();
        }
    }
}

/// Wakes those that wait for input: their pipeline may have ended.
pub(super) fn look_up() {
    drop(supply());
    FREED.notify_all();
}
