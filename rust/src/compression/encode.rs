//! Compression of layers: the same bytes for the same input, whoever runs it and when.

use std::io::{self, Write};

use ::zstd::stream::write::Encoder as ZstdEncoder;
use flate2::GzBuilder;
use flate2::write::GzEncoder;

use super::Compression;
use crate::error::{Error, Result};

/// gzip's and Docker's own: beyond it, time grows and bytes hardly shrink.
const GZIP_LEVEL: u32 = 6;
/// RFC 1952's "unknown": what a layer says must not depend on where it was made.
const GZIP_OS_UNKNOWN: u8 = 255;
/// zstd's own.
const ZSTD_LEVEL: i32 = 3;

/// Compresses what is written to it.
pub struct Encoder<W: Write>(Kind<W>);

enum Kind<W: Write> {
    Plain(W),
    Gzip(Box<GzEncoder<W>>),
    Zstd(Box<ZstdEncoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    /// Starts one.
    ///
    /// # Errors
    /// [`Error::Io`] where memory for it cannot be had.
    pub fn new(compression: Compression, out: W) -> Result<Self> {
        Ok(Self(match compression {
            Compression::None => Kind::Plain(out),
            // No name, no time.
            Compression::Gzip => Kind::Gzip(Box::new(
                GzBuilder::new()
                    .mtime(0)
                    .operating_system(GZIP_OS_UNKNOWN)
                    .write(out, flate2::Compression::new(GZIP_LEVEL)),
            )),
            Compression::Zstd => {
                let make = || {
                    let mut encoder = ZstdEncoder::new(out, ZSTD_LEVEL)?;
                    encoder.include_checksum(true)?;
                    Ok(encoder)
                };
                Kind::Zstd(Box::new(make().map_err(|e: io::Error| Error::io("zstd", "", &e))?))
            }
        }))
    }

    /// Writes the end; gives back what it wrote to.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Kind::Plain(out) => Ok(out),
            Kind::Gzip(encoder) => encoder.finish(),
            Kind::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Plain(out) => out.write(bytes),
            Kind::Gzip(encoder) => encoder.write(bytes),
            Kind::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Plain(out) => out.flush(),
            Kind::Gzip(encoder) => encoder.flush(),
            Kind::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Decoder;

    fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(compression, Vec::new()).expect("memory");
        encoder.write_all(data).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn what_was_compressed_is_decoded_again_and_is_the_same_each_time() {
        let data = b"the same bytes, whoever runs it".repeat(5000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let blob = compress(compression, &data);
            assert_eq!(blob, compress(compression, &data));
            assert_eq!(Compression::detect(&blob), compression);
            let mut decoder = Decoder::default();
            let (mut found, mut output, mut at) = (Vec::new(), vec![0; 1 << 16], 0);
            while found.len() < data.len() {
                let step = decoder.decode(&blob[at..], &mut output).expect("good stream");
                at += step.consumed;
                found.extend_from_slice(&output[..step.produced]);
            }
            assert_eq!(found, data);
        }
    }

    #[test]
    fn a_gzip_header_says_nothing_of_time_and_place() {
        assert_eq!(compress(Compression::Gzip, b"x")[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    }
}
