//! Detection and decompression of layer blobs.

mod gzip;
mod zstd;

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
    /// Bytes that [`Compression::detect`] wants to see, where the blob has that many.
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

/// A streaming decoder of one blob.
pub struct Decoder(Kind);

enum Kind {
    Plain,
    Gzip(Box<gzip::Gzip>),
    Zstd(zstd::Zstd),
}

impl Decoder {
    /// A decoder at the start of a blob.
    ///
    /// # Errors
    /// [`Error::Io`] where memory for the decoder cannot be had.
    pub fn new(compression: Compression) -> Result<Self> {
        Ok(Self(match compression {
            Compression::None => Kind::Plain,
            Compression::Gzip => Kind::Gzip(Box::default()),
            Compression::Zstd => Kind::Zstd(zstd::Zstd::new()?),
        }))
    }

    /// Decodes as much as both sides allow. A step that neither consumes nor produces wants more input.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] where the stream is damaged or asks for too large a window.
    pub fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Step> {
        match &mut self.0 {
            Kind::Plain => {
                let count = input.len().min(output.len());
                output[..count].copy_from_slice(&input[..count]);
                Ok(Step { consumed: count, produced: count })
            }
            Kind::Gzip(gzip) => gzip.decode(input, output),
            Kind::Zstd(zstd) => zstd.decode(input, output),
        }
    }

    /// The input has ended.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] where it ended in the middle.
    pub fn finish(&self) -> Result<()> {
        match &self.0 {
            Kind::Plain => Ok(()),
            Kind::Gzip(gzip) => gzip.finish(),
            Kind::Zstd(zstd) => zstd.finish(),
        }
    }
}

/// A fault of the compressed stream, at a byte of it.
fn damaged(offset: u64, reason: impl Into<String>) -> Error {
    Error::UnsafeArchive { entry: Vec::new(), offset, reason: reason.into() }
}
