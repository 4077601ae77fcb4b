//! Detection, decompression and compression of layer blobs.

mod encode;
mod frames;
mod gzip;
mod inflate;
mod zstd;

pub use encode::{Encoder, levels};
pub use frames::{Frames, LONG_FRAME_BYTES};

use crate::error::{Error, Result};

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A tar as it is.
    None,
    /// RFC 1952, any number of members.
    Gzip,
    /// RFC 8878, any number of frames.
    Zstd,
}

impl Compression {
    /// Bytes that [`Compression::detect`] wants to see: fewer are no layer at all.
    pub const PREFIX: usize = 4;

    /// By the first bytes. What is neither gzip nor zstd is taken for a tar, whose parser knows better.
    #[must_use]
    pub fn detect(prefix: &[u8]) -> Self {
        match prefix {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A skippable frame in front is what zstd:chunked and pzstd write.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The name that media types give it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// By the name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "none" => Ok(Self::None),
            "gzip" => Ok(Self::Gzip),
            "zstd" => Ok(Self::Zstd),
            _ => Err(Error::Invalid {
                field: "compression",
                value: name.to_owned(),
                reason: "expected none, gzip or zstd".to_owned(),
            }),
        }
    }
}

/// What one call of [`Decoder::decode`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Input bytes that were used up.
    pub consumed: usize,
    /// Output bytes that were written.
    pub produced: usize,
}

/// A streaming decoder of one blob, which finds out from its first bytes how it is compressed.
#[derive(Default)]
pub struct Decoder {
    /// The first bytes, until there are enough to tell: they may come one by one.
    front: [u8; Compression::PREFIX],
    front_len: usize,
    /// How many of them were decoded.
    front_used: usize,
    kind: Option<Kind>,
}

enum Kind {
    Plain,
    Gzip(Box<gzip::Gzip>),
    Zstd(zstd::Zstd),
}

impl Decoder {
    /// One for what is known to be a tar as it is, whatever its first bytes look like.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            front_len: Compression::PREFIX,
            front_used: Compression::PREFIX,
            kind: Some(Kind::Plain),
            ..Self::default()
        }
    }

    /// Decodes as much as both sides allow. A step that neither consumes nor produces wants more input.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] where the stream is damaged or asks for too large a window; [`Error::Io`] where
    /// memory for a decoder cannot be had.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        let mut consumed = 0;
        if self.front_len < Compression::PREFIX {
            consumed = input.len().min(Compression::PREFIX - self.front_len);
            self.front[self.front_len..self.front_len + consumed].copy_from_slice(&input[..consumed]);
            self.front_len += consumed;
        }
        if self.front_len < Compression::PREFIX {
            return Ok(Step { consumed, produced: 0 });
        }
        let kind = match &mut self.kind {
            Some(kind) => kind,
            empty => empty.insert(Kind::new(Compression::detect(&self.front))?),
        };
        while self.front_used < self.front_len {
            let step = kind.decode(&self.front[self.front_used..], output)?;
            self.front_used += step.consumed;
            if step.produced > 0 || step.consumed == 0 {
                return Ok(Step { consumed, produced: step.produced });
            }
        }
        let step = kind.decode(&input[consumed..], output)?;
        Ok(Step { consumed: consumed + step.consumed, produced: step.produced })
    }

    /// The input has ended.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] where it ended in the middle.
    pub fn finish(&self) -> Result<()> {
        match &self.kind {
            None if self.front_len == 0 => Ok(()),
            None => Err(damaged(0, "blob is too short to be a layer")),
            Some(Kind::Plain) => Ok(()),
            Some(Kind::Gzip(gzip)) => gzip.finish(),
            Some(Kind::Zstd(zstd)) => zstd.finish(),
        }
    }

    /// How the blob is compressed, as far as can be told yet.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match &self.kind {
            None | Some(Kind::Plain) => Compression::None,
            Some(Kind::Gzip(_)) => Compression::Gzip,
            Some(Kind::Zstd(_)) => Compression::Zstd,
        }
    }
}

impl Kind {
    fn new(compression: Compression) -> Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain,
            Compression::Gzip => Self::Gzip(Box::default()),
            Compression::Zstd => Self::Zstd(zstd::Zstd::new()?),
        })
    }

    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        match self {
            Self::Plain => {
                let count = input.len().min(output.len());
                output[..count].copy_from_slice(&input[..count]);
                Ok(Step { consumed: count, produced: count })
            }
            Self::Gzip(gzip) => gzip.decode(input, output),
            Self::Zstd(zstd) => zstd.decode(input, output),
        }
    }
}

/// What gzip is decoded with: "isa-l" or "zlib-rs".
#[must_use]
pub fn inflater() -> &'static str {
    inflate::NAME
}

/// A fault of the compressed stream, at a byte of it.
fn damaged(offset: u64, reason: impl Into<String>) -> Error {
    Error::UnsafeArchive { entry: Vec::new(), offset, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn expand(input: &[u8], chunk: usize, window: usize) -> Result<(Compression, Vec<u8>)> {
        let mut decoder = Decoder::default();
        let mut found = Vec::new();
        let mut output = vec![0; window];
        for piece in input.chunks(chunk) {
            let mut at = 0;
            loop {
                let step = decoder.decode(&piece[at..], &mut output)?;
                at += step.consumed;
                found.extend_from_slice(&output[..step.produced]);
                if at == piece.len() && step.produced < window {
                    break;
                }
            }
        }
        decoder.finish()?;
        Ok((decoder.compression(), found))
    }

    #[test]
    fn the_form_is_told_from_bytes_that_come_one_by_one() {
        let data = b"as plain as it can be".repeat(40);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&data).expect("memory");
        let forms = [
            (Compression::None, data.clone()),
            (Compression::Gzip, gzip.finish().expect("memory")),
            (Compression::Zstd, ::zstd::encode_all(&*data, 1).expect("memory")),
        ];
        for (compression, blob) in forms {
            for chunk in [1, 2, 3, 4, 5, blob.len()] {
                for window in [1, 3, 4096] {
                    let found = expand(&blob, chunk, window).expect("good stream");
                    assert_eq!(found, (compression, data.clone()), "{chunk} {window}");
                }
            }
        }
    }

    #[test]
    fn a_few_bytes_are_no_layer_and_none_are_an_empty_one() {
        assert_eq!(expand(b"", 1, 9).expect("empty"), (Compression::None, Vec::new()));
        for short in [&b"\x1f"[..], b"\x1f\x8b", b"\x28\xb5\x2f", b"abc"] {
            assert!(expand(short, 1, 9).is_err());
        }
    }
}
