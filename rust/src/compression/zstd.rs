//! zstd: every frame of the blob, skippable ones too.

use ::zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
use ::zstd::zstd_safe::{DParameter, get_frame_content_size};

use super::{Step, damaged};
use crate::error::{Error, Result};

/// 128 MiB: what `zstd --long=27` needs, and what zstd itself takes for a sane default. A frame that asks for
/// more is refused before anything is allocated.
const WINDOW_LOG_MAX: u32 = 27;
/// What libzstd says of such a frame.
const WINDOW_ERROR: &str = "Frame requires too much memory for decoding";

/// The longest header of a frame (RFC 8878, 3.1.1): magic, descriptor, window, dictionary's number, content size.
const HEADER_MAX_BYTES: usize = 18;

pub(super) struct Zstd {
    inner: Decoder<'static>,
    /// Whether the last call left a frame unfinished.
    inside: bool,
    offset: u64,
    frame: Frame,
}

/// The frame that is being decoded: libzstd does not hold one whose last block is empty to the size that it declares.
#[derive(Default)]
struct Frame {
    front: [u8; HEADER_MAX_BYTES],
    front_len: usize,
    produced: u64,
}

impl Frame {
    fn advance(&mut self, consumed: &[u8], produced: usize) {
        let count = consumed.len().min(HEADER_MAX_BYTES - self.front_len);
        self.front[self.front_len..self.front_len + count].copy_from_slice(&consumed[..count]);
        self.front_len += count;
        self.produced += produced as u64;
    }

    /// The size that its header declares, where that is another than came out.
    fn false_size(&self) -> Option<u64> {
        // One that declares none has none to be false; a skippable one declares nothing and comes to nothing.
        let declared = get_frame_content_size(&self.front[..self.front_len]).ok().flatten()?;
        (declared != self.produced).then_some(declared)
    }
}

impl Zstd {
    pub(super) fn new() -> Result<Self> {
        let make = || -> std::io::Result<Decoder<'static>> {
            let mut inner = Decoder::new()?;
            inner.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            Ok(inner)
        };
        // An empty blob has no frame: it is cut off too.
        Ok(Self {
            inner: make().map_err(|e| Error::io("zstd", "", &e))?,
            inside: true,
            offset: 0,
            frame: Frame::default(),
        })
    }

    pub(super) fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let mut from = InBuffer::around(input);
        let mut to = OutBuffer::around(output);
        if !input.is_empty() || self.inside {
            let hint = self.inner.run(&mut from, &mut to).map_err(|e| refused(self.offset, &e))?;
            self.inside = hint != 0;
            self.frame.advance(&input[..from.pos()], to.pos());
            if hint == 0 {
                let frame = std::mem::take(&mut self.frame);
                if let Some(declared) = frame.false_size() {
                    let reason = format!(
                        "zstd data is damaged: a frame of {declared} bytes comes to {}",
                        frame.produced
                    );
                    return Err(damaged(self.offset, reason));
                }
                self.inner.reinit().map_err(|e| Error::io("zstd", "", &e))?;
            }
        }
        self.offset += from.pos() as u64;
        Ok(Step { consumed: from.pos(), produced: to.pos() })
    }

    pub(super) fn finish(&self) -> Result<()> {
        if self.inside { Err(damaged(self.offset, "zstd stream is cut off")) } else { Ok(()) }
    }
}

/// libzstd's error, with its own words; for the window those would not say how much is allowed.
fn refused(offset: u64, error: &std::io::Error) -> Error {
    let words = error.to_string();
    if words == WINDOW_ERROR {
        let most = 1u64 << WINDOW_LOG_MAX;
        return damaged(offset, format!("zstd frame asks for a window of more than {most} bytes"));
    }
    damaged(offset, format!("zstd data is damaged: {words}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(input: &[u8], chunk: usize, window: usize) -> Result<Vec<u8>> {
        let mut zstd = Zstd::new()?;
        let mut found = Vec::new();
        let mut output = vec![0; window];
        for piece in input.chunks(chunk) {
            let mut at = 0;
            loop {
                let step = zstd.decode(&piece[at..], &mut output)?;
                at += step.consumed;
                found.extend_from_slice(&output[..step.produced]);
                if at == piece.len() && step.produced < window {
                    break;
                }
            }
        }
        zstd.finish()?;
        Ok(found)
    }

    fn compress(data: &[u8]) -> Vec<u8> {
        ::zstd::encode_all(data, 1).expect("memory")
    }

    #[test]
    fn frames_are_joined_and_skippable_ones_passed_over() {
        let mut packed = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9];
        packed.extend(compress(b"one "));
        packed.extend([0x5f, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
        packed.extend(compress(b"two"));
        for chunk in [1, 5, 4096] {
            assert_eq!(expand(&packed, chunk, 64).expect("good stream"), b"one two");
        }
    }

    #[test]
    fn any_chunking_gives_the_same_bytes() {
        let data: Vec<u8> = (0..300_000u32).flat_map(|i| (i % 977).to_le_bytes()).collect();
        let packed = compress(&data);
        for (chunk, window) in [(1, 700), (4096, 1 << 20), (packed.len(), 333)] {
            assert_eq!(expand(&packed, chunk, window).expect("good stream"), data);
        }
    }

    #[test]
    fn a_cut_or_damaged_stream_is_refused() {
        let packed = compress(b"some bytes that are long enough to be cut");
        assert!(expand(&packed[..packed.len() - 1], 4096, 4096).is_err());
        assert!(expand(&[], 4096, 4096).is_err());
        let mut junk = packed;
        junk.extend(b"junk");
        assert!(expand(&junk, 4096, 4096).is_err());
    }

    /// A frame of raw blocks under a header that declares a size of eight bytes.
    fn frame(declared: u64, blocks: &[&[u8]]) -> Vec<u8> {
        let mut made = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
        made.extend(declared.to_le_bytes());
        for (at, block) in blocks.iter().enumerate() {
            let size = u32::try_from(block.len()).expect("small");
            let last = u32::from(at + 1 == blocks.len());
            made.extend(&(size << 3 | last).to_le_bytes()[..3]);
            made.extend(*block);
        }
        made
    }

    #[test]
    fn a_frame_of_another_size_than_it_declares_is_refused_also_if_its_last_block_is_empty() {
        for blocks in [&[&b"abc"[..], b"def"][..], &[b"abc", b"def", b""], &[b"abcdef", b"", b""]] {
            assert_eq!(expand(&frame(6, blocks), 4096, 4096).expect("as declared"), b"abcdef");
            for declared in [0, 5, 7, 1 << 20] {
                for (chunk, window) in [(1, 1), (7, 3), (4096, 4096)] {
                    let error = expand(&frame(declared, blocks), chunk, window).expect_err("a false size");
                    assert!(error.to_string().contains("zstd data is damaged"), "{declared}: {error}");
                }
            }
        }
        let mut several = frame(3, &[b"abc", b""]);
        several.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9]);
        several.extend(frame(0, &[b""]));
        several.extend(compress(b"def"));
        assert_eq!(expand(&several, 2, 9).expect("all as declared"), b"abcdef");
        several.extend(frame(2, &[b"g", b""]));
        assert!(expand(&several, 2, 9).is_err());
    }

    #[test]
    fn a_window_over_the_limit_is_refused() {
        // Magic, no single segment, no content size; window descriptor exponent 20: 2^30 bytes.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 20 << 3, 0x01, 0x00, 0x00];
        let error = expand(&frame, 4096, 4096).expect_err("a window of 1 GiB").to_string();
        assert!(error.contains("more than 134217728 bytes"), "{error}");
    }
}
