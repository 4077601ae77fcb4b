//! zstd frames that end where the caller says, so that each can be decoded by itself.

use std::io::{self, Write};

use ::zstd::zstd_safe::{CCtx, CParameter, ErrorCode, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::Compression;
use super::encode::check_level;
use crate::error::{Error, Result};

/// A frame of at most so many bytes is compressed at once: its header says its size, and tables are made for that, not for
/// the two megabytes that an unknown size is taken for. Nearly all frames of a layer's files are shorter.
pub const LONG_FRAME_BYTES: usize = 256 << 10;
/// What a longer one is written out in.
const OUTPUT_BYTES: usize = 128 << 10;

/// Compresses into one frame after the other. What they come to depends on their content alone, not on the pieces that
/// it is written in.
pub struct Frames {
    context: CCtx<'static>,
    /// The frame's bytes that were not compressed yet.
    input: Vec<u8>,
    output: Vec<u8>,
    /// Whether the frame is longer than what is compressed at once.
    is_long: bool,
}

impl Frames {
    /// Starts, without a frame.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a level that zstd has not, [`Error::Io`] where memory for it cannot be had.
    pub fn new(level: Option<u32>) -> Result<Self> {
        let level = check_level(Compression::Zstd, level)?;
        let make = || {
            let mut context = CCtx::try_create().ok_or_else(|| io::Error::from_raw_os_error(12))?;
            context.set_parameter(CParameter::CompressionLevel(level.cast_signed())).map_err(failed)?;
            context.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
            Ok(context)
        };
        Ok(Self {
            context: make().map_err(|e: io::Error| Error::io("zstd", "", &e))?,
            input: Vec::with_capacity(LONG_FRAME_BYTES),
            output: Vec::new(),
            is_long: false,
        })
    }

    /// Adds bytes to the frame, which begins with the first of them.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&mut self, mut bytes: &[u8], out: &mut impl Write) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.input.len() == LONG_FRAME_BYTES {
                self.write_long(out)?;
            }
            let count = bytes.len().min(LONG_FRAME_BYTES - self.input.len());
            self.input.extend_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Ends the frame; nothing where none was begun.
    ///
    /// # Errors
    /// The writer's.
    pub fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        if self.is_long {
            self.write_long(out)?;
            self.output.reserve(OUTPUT_BYTES);
            loop {
                self.output.clear();
                let left =
                    self.context.end_stream(&mut OutBuffer::around(&mut self.output)).map_err(failed)?;
                out.write_all(&self.output)?;
                if left == 0 {
                    break;
                }
            }
            self.is_long = false;
            return self.context.reset(ResetDirective::SessionOnly).map_err(failed).map(|_| ());
        }
        if self.input.is_empty() { Ok(()) } else { self.write_frame(out) }
    }

    /// Writes a frame that comes to nothing, for a blob that would have no frame.
    ///
    /// # Errors
    /// The writer's.
    pub fn write_empty(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.end(out)?;
        self.write_frame(out)
    }

    fn write_frame(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.output.clear();
        self.output.reserve(::zstd::zstd_safe::compress_bound(self.input.len()));
        self.context.compress2(&mut self.output, &self.input).map_err(failed)?;
        self.input.clear();
        out.write_all(&self.output)
    }

    /// Compresses what was gathered of a frame that goes on.
    fn write_long(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.is_long = true;
        self.output.reserve(OUTPUT_BYTES);
        let mut from = InBuffer::around(&self.input);
        while from.pos() < self.input.len() {
            self.output.clear();
            self.context
                .compress_stream(&mut OutBuffer::around(&mut self.output), &mut from)
                .map_err(failed)?;
            out.write_all(&self.output)?;
        }
        self.input.clear();
        Ok(())
    }
}

fn failed(code: ErrorCode) -> io::Error {
    io::Error::other(get_error_name(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(length: usize) -> Vec<u8> {
        (0..length).map(|i| u8::try_from((i * i / 7 + i / 300) % 251).expect("small")).collect()
    }

    #[test]
    fn each_frame_is_decoded_by_itself_and_is_the_same_whatever_pieces_it_came_in() {
        let lengths = [1, 100, LONG_FRAME_BYTES, LONG_FRAME_BYTES + 1, 3 * LONG_FRAME_BYTES + 5, 7];
        let mut whole: Vec<Vec<u8>> = Vec::new();
        for piece in [usize::MAX, 4096, 100_003] {
            let mut frames = Frames::new(None).expect("memory");
            let mut found = Vec::new();
            for length in lengths {
                let data = content(length);
                let mut frame = Vec::new();
                for piece in data.chunks(piece.min(length)) {
                    frames.write(piece, &mut frame).expect("memory");
                }
                frames.end(&mut frame).expect("memory");
                assert_eq!(::zstd::decode_all(&*frame).expect("a frame"), data);
                found.push(frame);
            }
            frames.end(&mut Vec::new()).expect("nothing to end");
            if whole.is_empty() {
                whole = found;
            } else {
                assert!(whole == found, "pieces of {piece} bytes");
            }
        }
    }

    #[test]
    fn a_frame_that_was_not_begun_is_nothing() {
        let mut out = Vec::new();
        Frames::new(Some(1)).expect("memory").end(&mut out).expect("nothing");
        assert!(out.is_empty());
        assert!(Frames::new(Some(20)).is_err());
    }
}
