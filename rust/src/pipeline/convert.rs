//! A layer of the store into a blob of another form: decompressed, verified and compressed in one pass, on the pool.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::blocks::Block;
use super::ingest::fill;
use super::options::{Apply, Options};
use super::packer::{Packer, Packing, Repacked};
use super::run::Pipeline;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::tar::Limits;
use crate::tar::frame::rebuild;

/// Where a layer's bytes are.
#[derive(Debug, Clone)]
pub enum Source {
    /// In a blob, whose digest and size are these.
    Blob(PathBuf, Digest, u64),
    /// In a layer that was unpacked; its tar is put together again.
    Layer(PathBuf),
}

/// What is to become of it.
#[derive(Debug, Clone)]
pub struct ConversionOptions {
    /// A new file.
    pub dest: PathBuf,
    /// What it is packed into.
    pub packing: Packing,
    /// How well it is compressed; None as the compression does by itself.
    pub level: Option<u32>,
    /// Must be the digest of the tar.
    pub diff_id: Digest,
    /// What of a layer is too much.
    pub limits: Limits,
}

/// One layer on its way. Another thread may give it up.
#[derive(Debug)]
pub struct Conversion {
    source: Source,
    dest: PathBuf,
    pipeline: Pipeline,
}

impl Conversion {
    /// Makes the new file and starts the stages.
    ///
    /// # Errors
    /// As [`Packer::create`] and [`Pipeline::start`].
    pub fn start(source: Source, options: ConversionOptions) -> Result<Self> {
        let ConversionOptions { dest, packing, level, diff_id, limits } = options;
        let packer = Packer::create(&dest, packing, level, limits)?;
        let (digest, size, subject) = match &source {
            Source::Blob(_, digest, size) => (Some(*digest), Some(*size), format!("blob {digest}")),
            Source::Layer(_) => (None, None, format!("layer {diff_id}")),
        };
        let pipeline = Pipeline::start(Options {
            subject,
            digest,
            size,
            layer: true,
            diff_id: Some(diff_id),
            plain: digest.is_none(),
            apply: Some(Apply::Pack(Box::new(packer))),
            limits,
            ..Options::default()
        })?;
        Ok(Self { source, dest, pipeline })
    }

    /// Reads the layer, and waits until the new blob is written. Once.
    ///
    /// # Errors
    /// What the layer is refused for, and the disk's; the new file is removed then.
    pub fn run(&self) -> Result<Repacked> {
        self.feed().and_then(|()| self.end()).inspect_err(|_| {
            self.pipeline.cancel();
            // The error that brought us here is what the caller must hear of.
            let _ = std::fs::remove_file(&self.dest);
        })
    }

    /// Gives it up: whoever runs it is told so.
    pub fn cancel(&self) {
        self.pipeline.cancel();
    }

    /// Bytes that were read so far.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        self.pipeline.received()
    }

    fn end(&self) -> Result<Repacked> {
        self.pipeline.close();
        // Without a deadline it is over when it returns.
        let outcome = self.pipeline.wait(None)?.ok_or(Error::Cancelled)?;
        outcome.repacked.ok_or(Error::Cancelled)
    }

    fn feed(&self) -> Result<()> {
        match &self.source {
            Source::Blob(path, ..) => self.feed_blob(path),
            Source::Layer(path) => self.feed_layer(path),
        }
    }

    fn feed_blob(&self, path: &Path) -> Result<()> {
        let mut file = File::open(path).map_err(|e| Error::io("open", path, &e))?;
        loop {
            let mut block = self.pipeline.block()?;
            let filled = fill(&mut file, block.space(), path)?;
            if filled == 0 {
                return Ok(());
            }
            block.set_filled(filled);
            self.pipeline.push(block)?;
        }
    }

    fn feed_layer(&self, path: &Path) -> Result<()> {
        let mut block: Option<(Block, usize)> = None;
        rebuild(&Root::open(path)?, |mut bytes| {
            while !bytes.is_empty() {
                let (mut filling, filled) = match block.take() {
                    Some(begun) => begun,
                    None => (self.pipeline.block()?, 0),
                };
                let space = &mut filling.space()[filled..];
                let count = space.len().min(bytes.len());
                space[..count].copy_from_slice(&bytes[..count]);
                let is_full = count == space.len();
                filling.set_filled(filled + count);
                bytes = &bytes[count..];
                if is_full {
                    self.pipeline.push(filling)?;
                } else {
                    block = Some((filling, filled + count));
                }
            }
            Ok(())
        })?;
        block.map_or(Ok(()), |(block, _)| self.pipeline.push(block))
    }
}
