//! A tar into a blob, written as it comes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::chunked::{Chunked, Table};
use super::measured::Measured;
use crate::compression::{Compression, Encoder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tar::{Entry, Limits, Meter, Sink, Stream};

/// What a layer's tar is packed into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// One stream.
    Stream(Compression),
    /// zstd in frames of which a table tells which file each is.
    Chunked,
}

impl Packing {
    /// By its name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for any other.
    pub fn parse(name: &str) -> Result<Self> {
        match Compression::parse(name) {
            Ok(compression) => Ok(Self::Stream(compression)),
            Err(_) if name == "zstd:chunked" => Ok(Self::Chunked),
            Err(_) => Err(Error::Invalid {
                field: "compression",
                value: name.to_owned(),
                reason: "expected none, gzip, zstd or zstd:chunked".to_owned(),
            }),
        }
    }

    /// What decodes it.
    #[must_use]
    pub fn compression(self) -> Compression {
        match self {
            Self::Stream(compression) => compression,
            Self::Chunked => Compression::Zstd,
        }
    }
}

/// A blob that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Repacked {
    /// Of its bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// Bytes of the tar.
    pub tar_bytes: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Where its table of contents is, or why it has none.
    pub table: std::result::Result<Table, &'static str>,
}

/// Reads the tar, so that what is none is refused, and writes the blob.
pub struct Packer {
    stream: Stream,
    written: Written,
    path: PathBuf,
    tar_bytes: u64,
}

struct Written {
    meter: Meter,
    kind: Kind,
}

enum Kind {
    Stream(Box<Encoder<Measured<File>>>),
    Chunked(Box<Chunked>),
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Packer {
    /// Makes the blob's file, which must be new.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for a level that there is not.
    pub fn create(path: &Path, packing: Packing, level: Option<u32>, limits: Limits) -> Result<Self> {
        let file = File::create_new(path).map_err(|e| Error::io("create", path, &e))?;
        let kind = match packing {
            Packing::Stream(compression) => {
                Kind::Stream(Box::new(Encoder::new(compression, level, Measured::new(file))?))
            }
            Packing::Chunked => Kind::Chunked(Box::new(Chunked::new(file, path, level)?)),
        };
        let written = Written { meter: Meter::new(limits), kind };
        Ok(Self { stream: Stream::new(limits), written, path: path.to_owned(), tar_bytes: 0 })
    }

    /// Takes in the next bytes of the tar.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] and [`Error::OverLimit`] for what is no tar, or too much of one; [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.tar_bytes += bytes.len() as u64;
        self.stream.write(bytes, &mut self.written)?;
        match &mut self.written.kind {
            // In one piece, so that what it comes to does not depend on where entries begin.
            Kind::Stream(encoder) => encoder.write_all(bytes).map_err(|e| Error::io("write", &self.path, &e)),
            Kind::Chunked(_) => Ok(()),
        }
    }

    /// The tar has ended.
    ///
    /// # Errors
    /// As `write`.
    pub fn finish(self) -> Result<Repacked> {
        self.stream.finish()?;
        let entries = self.written.meter.applied().entries;
        let (digest, size, table) = match self.written.kind {
            Kind::Stream(encoder) => {
                let measured = encoder.finish().map_err(|e| Error::io("write", &self.path, &e))?;
                let (_, digest, size) = measured.finish();
                (digest, size, Err("it was not asked for"))
            }
            Kind::Chunked(chunked) => chunked.finish(self.stream.has_foreign_headers())?,
        };
        Ok(Repacked { digest, size, tar_bytes: self.tar_bytes, entries, table })
    }
}

impl Sink for Written {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        self.meter.count(entry)?;
        if let Kind::Chunked(chunked) = &mut self.kind {
            chunked.begin(entry);
        }
        Ok(())
    }

    fn data(&mut self, _entry: &Entry, _offset: u64, bytes: &[u8]) -> Result<()> {
        match &mut self.kind {
            Kind::Stream(_) => Ok(()),
            Kind::Chunked(chunked) => chunked.data(bytes),
        }
    }

    fn end(&mut self, entry: &Entry) -> Result<()> {
        match &mut self.kind {
            Kind::Stream(_) => Ok(()),
            Kind::Chunked(chunked) => chunked.end(entry),
        }
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.kind {
            Kind::Stream(_) => Ok(()),
            Kind::Chunked(chunked) => chunked.frame(bytes),
        }
    }
}
