//! Compression of layers: the same bytes for the same input, whoever runs it and when.

use std::io::{self, Write};

use ::zstd::stream::write::Encoder as ZstdEncoder;
use ::zstd::zstd_safe::CParameter;
use flate2::GzBuilder;
use flate2::write::GzEncoder;

use super::Compression;
use crate::error::{Error, Result};

/// gzip's and Docker's own: beyond it, time grows and bytes hardly shrink.
const GZIP_LEVEL: u32 = 6;
/// RFC 1952's "unknown": what a layer says must not depend on where it was made.
const GZIP_OS_UNKNOWN: u8 = 255;
/// zstd's own.
const ZSTD_LEVEL: u32 = 3;
/// Beyond it, zstd's levels take up to a gigabyte for what they compress, and as large a window for whoever reads it.
const ZSTD_LEVEL_MAX: u32 = 19;

/// What a worker of zstd's takes at once. By itself zstd gives each four windows, and as many megabytes more to keep.
const JOB_BYTES: u32 = 2 << 20;
/// Workers at the most: with buffers and tables each takes 8 MiB, and hashing does not keep up with more.
const WORKERS_MAX: usize = 4;
/// Above this level tables take tens of megabytes, for each worker.
const SHARED_LEVEL_MAX: u32 = 9;

/// How many threads zstd may have beside the one that writes.
fn workers(level: u32) -> u32 {
    let most = if level > SHARED_LEVEL_MAX { 1 } else { WORKERS_MAX };
    let there = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(there.min(most)).unwrap_or(1)
}

/// The levels of a compression: the fastest, the one where none is asked for, the smallest. None where it has none.
#[must_use]
pub fn levels(compression: Compression) -> Option<(u32, u32, u32)> {
    match compression {
        Compression::None => None,
        Compression::Gzip => Some((1, GZIP_LEVEL, 9)),
        Compression::Zstd => Some((1, ZSTD_LEVEL, ZSTD_LEVEL_MAX)),
    }
}

/// The level to use: the one that was asked for, if the compression has it, or its own.
pub(super) fn check_level(compression: Compression, level: Option<u32>) -> Result<u32> {
    let refuse =
        |level: u32, reason: String| Error::Invalid { field: "level", value: level.to_string(), reason };
    match (levels(compression), level) {
        (None, None) => Ok(0),
        (Some((_, own, _)), None) => Ok(own),
        (Some((least, _, most)), Some(level)) if (least..=most).contains(&level) => Ok(level),
        (Some((least, _, most)), Some(level)) => {
            Err(refuse(level, format!("{} has {least} to {most}", compression.name())))
        }
        (None, Some(level)) => Err(refuse(level, "without compression there is none".to_owned())),
    }
}

/// Compresses what is written to it.
pub struct Encoder<W: Write>(Kind<W>);

enum Kind<W: Write> {
    Plain(W),
    Gzip(Box<GzEncoder<W>>),
    Zstd(Box<ZstdEncoder<'static, W>>),
}

impl<W: Write> Encoder<W> {
    /// Starts one; without a level, at the compression's own.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a level that it has not, [`Error::Io`] where memory for it cannot be had.
    pub fn new(compression: Compression, level: Option<u32>, out: W) -> Result<Self> {
        let level = check_level(compression, level)?;
        Ok(Self(match compression {
            Compression::None => Kind::Plain(out),
            // No name, no time.
            Compression::Gzip => Kind::Gzip(Box::new(
                GzBuilder::new()
                    .mtime(0)
                    .operating_system(GZIP_OS_UNKNOWN)
                    .write(out, flate2::Compression::new(level)),
            )),
            Compression::Zstd => {
                let make = || {
                    let mut encoder = ZstdEncoder::new(out, level.cast_signed())?;
                    encoder.include_checksum(true)?;
                    // One worker gives the same bytes as several, and none does not.
                    encoder.multithread(workers(level))?;
                    encoder.set_parameter(CParameter::JobSize(JOB_BYTES))?;
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

    fn compress(compression: Compression, level: Option<u32>, data: &[u8]) -> Vec<u8> {
        let mut encoder = Encoder::new(compression, level, Vec::new()).expect("memory");
        encoder.write_all(data).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn what_was_compressed_is_decoded_again_and_is_the_same_each_time() {
        let data = b"the same bytes, whoever runs it".repeat(5000);
        let forms = [
            (Compression::None, None),
            (Compression::Gzip, None),
            (Compression::Gzip, Some(1)),
            (Compression::Gzip, Some(9)),
            (Compression::Zstd, None),
            (Compression::Zstd, Some(1)),
            (Compression::Zstd, Some(19)),
        ];
        for (compression, level) in forms {
            let blob = compress(compression, level, &data);
            assert_eq!(blob, compress(compression, level, &data));
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
        assert_eq!(compress(Compression::Gzip, None, b"x")[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
    }

    #[test]
    fn a_level_that_a_compression_has_not_is_refused_by_its_name() {
        let wrong = [
            (Compression::None, 1),
            (Compression::Gzip, 0),
            (Compression::Gzip, 10),
            (Compression::Zstd, 20),
        ];
        for (compression, level) in wrong {
            let refused =
                Encoder::new(compression, Some(level), Vec::new()).map(|_| ()).expect_err("refused");
            assert!(matches!(refused, Error::Invalid { field: "level", .. }), "{refused}");
        }
    }
}
