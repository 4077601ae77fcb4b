//! gzip: our own framing around raw deflate, so that every member's sum and length are checked and
//! what may follow the last member is decided here.

use super::inflate::Inflate;
use super::{Step, damaged};
use crate::error::Result;

const FLAG_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0b1110_0000;
const HEADER_BYTES: usize = 10;
const TRAILER_BYTES: usize = 8;

/// Where in a member we are (RFC 1952, section 2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    ExtraLength,
    Extra(usize),
    Name,
    Comment,
    HeaderCrc,
    Body,
    Trailer,
    /// After a member: another one, zeros, or the end.
    Between,
    /// Only zeros may come.
    Padding,
}

pub(super) struct Gzip {
    state: State,
    flags: u8,
    /// Bytes of the header or the trailer, until there are enough of them.
    held: [u8; HEADER_BYTES],
    held_len: usize,
    inflate: Inflate,
    offset: u64,
}

impl Default for Gzip {
    fn default() -> Self {
        Self {
            state: State::Header,
            flags: 0,
            held: [0; HEADER_BYTES],
            held_len: 0,
            inflate: Inflate::new(),
            offset: 0,
        }
    }
}

impl Gzip {
    pub(super) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let mut at = 0;
        while at < input.len() {
            if self.state == State::Body {
                let step = self.body(&input[at..], output)?;
                at += step.consumed;
                self.offset += step.consumed as u64;
                // The caller gives a fresh output block before more is decoded.
                return Ok(Step { consumed: at, produced: step.produced });
            }
            let used = self.frame(&input[at..])?;
            at += used;
            self.offset += used as u64;
        }
        // Inflate may still hold output that did not fit.
        let produced = if self.state == State::Body { self.body(&[], output)?.produced } else { 0 };
        Ok(Step { consumed: at, produced })
    }

    pub(super) fn finish(&self) -> Result<()> {
        match self.state {
            State::Between | State::Padding => Ok(()),
            _ => Err(damaged(self.offset, "gzip stream is cut off")),
        }
    }

    fn body(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let done = self
            .inflate
            .decode(input, output)
            .map_err(|e| damaged(self.offset, format!("gzip data is damaged: {e}")))?;
        if done.ended {
            self.enter(State::Trailer);
            let ahead = self.inflate.read_ahead();
            let (_, whole) = self.hold(ahead.bytes(), TRAILER_BYTES);
            if whole {
                self.trailer()?;
            }
        }
        Ok(Step { consumed: done.consumed, produced: done.produced })
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.held_len = 0;
    }

    /// Takes bytes until `wanted` are held; true when they are.
    fn hold(&mut self, input: &[u8], wanted: usize) -> (usize, bool) {
        let count = input.len().min(wanted - self.held_len);
        self.held[self.held_len..self.held_len + count].copy_from_slice(&input[..count]);
        self.held_len += count;
        (count, self.held_len == wanted)
    }

    /// One step of what is around the deflate data; returns the bytes used.
    fn frame(&mut self, input: &[u8]) -> Result<usize> {
        match self.state {
            State::Header => {
                let (used, whole) = self.hold(input, HEADER_BYTES);
                if whole {
                    self.header()?;
                }
                Ok(used)
            }
            State::ExtraLength => {
                let (used, whole) = self.hold(input, 2);
                if whole {
                    let length = u16::from_le_bytes([self.held[0], self.held[1]]);
                    self.enter(State::Extra(usize::from(length)));
                }
                Ok(used)
            }
            State::Extra(left) => {
                let used = left.min(input.len());
                if used == left {
                    self.after(FLAG_EXTRA);
                } else {
                    self.state = State::Extra(left - used);
                }
                Ok(used)
            }
            State::Name | State::Comment => {
                let flag = if self.state == State::Name { FLAG_NAME } else { FLAG_COMMENT };
                Ok(match memchr::memchr(0, input) {
                    Some(end) => {
                        self.after(flag);
                        end + 1
                    }
                    None => input.len(),
                })
            }
            State::HeaderCrc => {
                let (used, whole) = self.hold(input, 2);
                if whole {
                    self.after(FLAG_CRC);
                }
                Ok(used)
            }
            State::Trailer => {
                let (used, whole) = self.hold(input, TRAILER_BYTES);
                if whole {
                    self.trailer()?;
                }
                Ok(used)
            }
            State::Between => self.between(input[0]),
            State::Padding => match input.iter().position(|&b| b != 0) {
                None => Ok(input.len()),
                Some(at) => Err(damaged(self.offset + at as u64, "gzip stream is followed by other bytes")),
            },
            State::Body => Ok(0),
        }
    }

    /// After a member comes another, which begins with 1f, or padding.
    fn between(&mut self, first: u8) -> Result<usize> {
        match first {
            0 => self.enter(State::Padding),
            0x1f => {
                self.inflate.reset();
                self.enter(State::Header);
            }
            _ => return Err(damaged(self.offset, "gzip stream is followed by other bytes")),
        }
        Ok(0)
    }

    fn header(&mut self) -> Result<()> {
        let [id1, id2, method, flags, ..] = self.held;
        if (id1, id2) != (0x1f, 0x8b) {
            return Err(damaged(self.offset, "no gzip header"));
        }
        if method != 8 || flags & FLAGS_RESERVED != 0 {
            return Err(damaged(self.offset, "gzip header asks for what RFC 1952 does not have"));
        }
        self.flags = flags;
        self.after(0);
        Ok(())
    }

    /// Goes to the next optional part of the header after the one of `flag`, or to the body.
    fn after(&mut self, flag: u8) {
        let order = [
            (FLAG_EXTRA, State::ExtraLength),
            (FLAG_NAME, State::Name),
            (FLAG_COMMENT, State::Comment),
            (FLAG_CRC, State::HeaderCrc),
        ];
        let start = order.iter().position(|&(f, _)| f == flag).map_or(0, |i| i + 1);
        let next =
            order[start..].iter().find(|&&(f, _)| self.flags & f != 0).map_or(State::Body, |&(_, s)| s);
        self.enter(next);
    }

    fn trailer(&mut self) -> Result<()> {
        let sum = u32::from_le_bytes([self.held[0], self.held[1], self.held[2], self.held[3]]);
        let length = u32::from_le_bytes([self.held[4], self.held[5], self.held[6], self.held[7]]);
        let (actual_sum, actual_length) = self.inflate.sum();
        if sum != actual_sum {
            return Err(damaged(self.offset, "gzip checksum does not match"));
        }
        if length != actual_length {
            return Err(damaged(self.offset, "gzip length does not match"));
        }
        self.enter(State::Between);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compress(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).expect("memory");
        encoder.finish().expect("memory")
    }

    fn expand(input: &[u8], chunk: usize, window: usize) -> Result<Vec<u8>> {
        let mut gzip = Gzip::default();
        let mut found = Vec::new();
        let mut output = vec![0; window];
        for piece in input.chunks(chunk) {
            let mut at = 0;
            loop {
                let step = gzip.decode(&piece[at..], &mut output)?;
                at += step.consumed;
                found.extend_from_slice(&output[..step.produced]);
                if at == piece.len() && step.produced < window {
                    break;
                }
            }
        }
        gzip.finish()?;
        Ok(found)
    }

    #[test]
    fn any_chunking_gives_the_same_bytes() {
        let data: Vec<u8> = (0..200_000u32).flat_map(|i| (i % 977).to_le_bytes()).collect();
        let packed = compress(&data);
        for (chunk, window) in [(1, 7), (3, 4096), (packed.len(), 1 << 20), (4096, 333)] {
            assert_eq!(expand(&packed, chunk, window).expect("good stream"), data);
        }
    }

    #[test]
    fn members_are_joined_and_zeros_may_follow() {
        let mut packed = compress(b"one ");
        packed.extend(compress(b"two"));
        packed.extend([0; 600]);
        assert_eq!(expand(&packed, 5, 64).expect("good stream"), b"one two");
    }

    #[test]
    fn header_fields_are_skipped() {
        let mut encoder = flate2::GzBuilder::new()
            .extra(vec![1, 2, 3])
            .filename("name")
            .comment("words")
            .write(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"body").expect("memory");
        assert_eq!(expand(&encoder.finish().expect("memory"), 2, 64).expect("good stream"), b"body");
    }

    #[test]
    fn damage_is_refused() {
        let packed = compress(b"some bytes that are long enough to be cut");
        let refused = |bytes: &[u8]| expand(bytes, 4096, 4096).is_err();
        for cut in [0, 1, 9, 15, packed.len() - 8, packed.len() - 1] {
            assert!(refused(&packed[..cut]), "cut at {cut}");
        }
        for (at, what) in [(packed.len() - 1, "length"), (packed.len() - 8, "sum")] {
            let mut bad = packed.clone();
            bad[at] ^= 1;
            assert!(refused(&bad), "{what}");
        }
        let mut followed = packed.clone();
        followed.extend(b"junk");
        assert!(refused(&followed), "other bytes after the last member");
        let mut late = packed;
        late.extend([0, 0, 7]);
        assert!(refused(&late), "other bytes after zeros");
    }
}
