//! Where a file's content is cut into chunks: by what it is, so that what two files have in common is cut alike.
//!
//! The same places as in containers/storage: behind a byte at which a rolling sum over the last 64 has sixteen bits set,
//! and around a run of 1 KiB of zeros. Content that both tools have seen has the same chunks then.

/// The window of the rolling sum.
const WINDOW_BYTES: usize = 64;
/// What is added to each byte, so that zeros count too.
const BYTE_OFFSET: u32 = 31;
/// Bits that are set at a cut: chunks of 64 KiB on the average.
const CUT_MASK: u32 = (1 << 16) - 1;
/// Zeros that are a hole.
const HOLE_BYTES: usize = 1 << 10;
static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// A piece of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Bytes; with true a chunk ends behind them.
    Data(&'a [u8], bool),
    /// So many zeros, which are a chunk by themselves.
    Hole(u64),
}

/// Finds the cuts of one file.
pub(super) struct Cutter {
    sum: (u32, u32),
    /// The last bytes, oldest first.
    window: [u8; WINDOW_BYTES],
    /// Zeros that may be the beginning of a hole, or are one.
    zeros: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        let window = u32::try_from(WINDOW_BYTES).unwrap_or(0);
        Self {
            sum: (window * BYTE_OFFSET, window * (window - 1) * BYTE_OFFSET),
            window: [0; WINDOW_BYTES],
            zeros: 0,
        }
    }
}

impl Cutter {
    /// Goes on with the next bytes. Zeros at their end are told with what follows.
    pub(super) fn write<'a, E>(
        &mut self,
        bytes: &'a [u8],
        tell: &mut impl FnMut(Piece<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(start) = bytes.iter().position(|&b| b != 0) else {
            self.zeros += bytes.len() as u64;
            return Ok(());
        };
        self.zeros += start as u64;
        self.end_zeros(tell)?;
        let end = bytes.iter().rposition(|&b| b != 0).map_or(start, |last| last + 1);
        self.zeros = (bytes.len() - end) as u64;
        self.between(&bytes[start..end], tell)
    }

    /// The file has ended.
    pub(super) fn finish<'a, E>(
        mut self,
        tell: &mut impl FnMut(Piece<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.end_zeros(tell)
    }

    /// Tells zeros of which the last is known.
    fn end_zeros<'a, E>(&mut self, tell: &mut impl FnMut(Piece<'a>) -> Result<(), E>) -> Result<(), E> {
        let count = std::mem::take(&mut self.zeros);
        match usize::try_from(count) {
            Ok(count) if count < HOLE_BYTES => self.data(&ZEROS[..count], tell),
            _ => self.hole(count, tell),
        }
    }

    /// Bytes that begin and end with another than zero.
    fn between<'a, E>(
        &mut self,
        mut bytes: &'a [u8],
        tell: &mut impl FnMut(Piece<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        // No hole is between two places that are this far from each other and neither zero.
        let mut probe = HOLE_BYTES - 1;
        while let Some(&byte) = bytes.get(probe) {
            if byte == 0 {
                let is_set = |&b: &u8| b != 0;
                let from = bytes[..probe].iter().rposition(is_set).map_or(0, |last| last + 1);
                let to = bytes[probe..].iter().position(is_set).map_or(bytes.len(), |next| probe + next);
                if to - from >= HOLE_BYTES {
                    self.data(&bytes[..from], tell)?;
                    self.hole((to - from) as u64, tell)?;
                    bytes = &bytes[to..];
                    probe = HOLE_BYTES - 1;
                    continue;
                }
            }
            probe += HOLE_BYTES;
        }
        self.data(bytes, tell)
    }

    fn hole<'a, E>(
        &mut self,
        count: u64,
        tell: &mut impl FnMut(Piece<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        // Behind a window of zeros more of them change nothing.
        self.roll(&ZEROS[..WINDOW_BYTES], |_, _| ());
        tell(Piece::Hole(count))
    }

    fn data<'a, E>(
        &mut self,
        bytes: &'a [u8],
        tell: &mut impl FnMut(Piece<'a>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut cuts = Vec::new(); // of 64 KiB on the average: few
        self.roll(bytes, |sum, at| {
            if sum & CUT_MASK == CUT_MASK {
                cuts.push(at + 1);
            }
        });
        let mut from = 0;
        for cut in cuts {
            tell(Piece::Data(&bytes[from..cut], true))?;
            from = cut;
        }
        if from < bytes.len() { tell(Piece::Data(&bytes[from..], false)) } else { Ok(()) }
    }

    /// Rolls over bytes; `look` is given the sum behind each, and where that stands.
    fn roll(&mut self, bytes: &[u8], mut look: impl FnMut(u32, usize)) {
        let (mut first, mut second) = self.sum;
        let mut step = |at: usize, drop: u8, add: u8| {
            let (drop, add) = (u32::from(drop), u32::from(add));
            first = first.wrapping_add(add).wrapping_sub(drop);
            second = second.wrapping_add(first).wrapping_sub((drop + BYTE_OFFSET) << WINDOW_BYTES.ilog2());
            look(second, at);
        };
        for (at, (&drop, &add)) in self.window.iter().zip(bytes).enumerate() {
            step(at, drop, add);
        }
        if let Some(behind) = bytes.get(WINDOW_BYTES..) {
            for (at, (&drop, &add)) in bytes.iter().zip(behind).enumerate() {
                step(at + WINDOW_BYTES, drop, add);
            }
        }
        self.sum = (first, second);
        if let Some(last) = bytes.last_chunk() {
            self.window = *last;
        } else {
            self.window.rotate_left(bytes.len());
            self.window[WINDOW_BYTES - bytes.len()..].copy_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Clone, Copy)]
    enum Kind {
        Data,
        Hole,
    }

    /// Byte by byte, as the other tool does it: runs of zeros, then the sum over a ring.
    fn slowly(content: &[u8]) -> Vec<(Kind, usize)> {
        let mut found: Vec<(Kind, usize)> = Vec::new();
        let (mut s1, mut s2) = (64u32 * 31, 64u32 * 63 * 31);
        let (mut ring, mut place) = ([0u8; 64], 0);
        let mut roll = |byte: u8| {
            let drop = u32::from(ring[place]);
            s1 = s1.wrapping_add(u32::from(byte)).wrapping_sub(drop);
            s2 = s2.wrapping_add(s1.wrapping_sub(64 * (drop + 31)));
            ring[place] = byte;
            place = (place + 1) % 64;
            s2 & 0xffff == 0xffff
        };
        let (mut at, mut length) = (0, 0);
        while at < content.len() {
            let run = content[at..].iter().take_while(|&&b| b == 0).count();
            if run >= 1024 {
                if length > 0 {
                    found.push((Kind::Data, length));
                }
                length = 0;
                found.push((Kind::Hole, run));
                (0..run).for_each(|_| {
                    roll(0);
                });
                at += run;
                continue;
            }
            for &byte in &content[at..at + run.max(1)] {
                length += 1;
                if roll(byte) {
                    found.push((Kind::Data, length));
                    length = 0;
                }
            }
            at += run.max(1);
        }
        if length > 0 {
            found.push((Kind::Data, length));
        }
        found
    }

    fn quickly(content: &[u8], piece: usize) -> Vec<(Kind, usize)> {
        let (mut found, mut length) = (Vec::new(), 0);
        let mut told = Vec::new();
        let mut tell = |piece: Piece<'_>| -> Result<(), ()> {
            match piece {
                Piece::Data(bytes, ends) => {
                    told.extend_from_slice(bytes);
                    length += bytes.len();
                    if ends {
                        found.push((Kind::Data, std::mem::take(&mut length)));
                    }
                }
                Piece::Hole(count) => {
                    let count = usize::try_from(count).expect("small");
                    told.resize(told.len() + count, 0);
                    if length > 0 {
                        found.push((Kind::Data, std::mem::take(&mut length)));
                    }
                    found.push((Kind::Hole, count));
                }
            }
            Ok(())
        };
        let mut cutter = Cutter::default();
        for piece in content.chunks(piece) {
            cutter.write(piece, &mut tell).expect("told");
        }
        cutter.finish(&mut tell).expect("told");
        if length > 0 {
            found.push((Kind::Data, length));
        }
        assert!(told == content);
        found
    }

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[3]
            })
            .collect()
    }

    #[test]
    fn cuts_are_those_of_the_slow_way_whatever_pieces_content_comes_in() {
        let zeros = |count| vec![0u8; count];
        let mut mixed = noise(1, 300_000);
        for run in [1, 63, 64, 1022, 1023, 1024, 1025, 2047, 2048, 5000] {
            mixed.extend(zeros(run));
            mixed.extend(noise(run as u64, 777));
        }
        let contents = [
            Vec::new(),
            vec![7],
            zeros(1023),
            zeros(1024),
            zeros(70_000),
            noise(3, 500_000),
            [zeros(1500), noise(4, 2000), zeros(1023)].concat(),
            [noise(5, 2000), zeros(3000)].concat(),
            mixed,
        ];
        let mut cuts = 0;
        for content in &contents {
            let expected = slowly(content);
            cuts += expected.len();
            for piece in [1, 7, 1000, 1024, 4096, usize::MAX] {
                assert_eq!(quickly(content, piece), expected, "{} bytes by {piece}", content.len());
            }
        }
        assert!(cuts > 25, "{cuts}: content that is cut nowhere shows nothing");
    }
}
