//! A pipeline into the store, and one from a file into a directory.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::options::{Apply, Options, Outcome};
use super::run::Pipeline;
use crate::cas::{Durability, Finished, Staging, publish};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::tar::merge::Merger;
use crate::tar::{LayerWriter, Limits, Ownership};

/// A file of at most so many bytes is in its layer's pack and in images; a longer one is an object. A higher limit makes
/// fewer files, and each image has a copy of its own of what is no object: see ARCHITECTURE.md for what was measured.
pub const PACKED_BYTES: u64 = 1024;

/// What an unpacked layer is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A directory.
    Tree,
    /// Objects, with files of at most so many bytes in a pack.
    Objects(u64),
}

impl Form {
    /// By its name.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn parse(name: &str, packed_bytes: u64) -> Result<Self> {
        match name {
            "tree" => Ok(Self::Tree),
            "objects" => Ok(Self::Objects(packed_bytes)),
            _ => Err(Error::Invalid {
                field: "form",
                value: name.to_owned(),
                reason: "expected tree or objects".to_owned(),
            }),
        }
    }
}

/// What is to be brought in.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// Must be the digest of the bytes.
    pub digest: Digest,
    /// Must be their number, where it is known.
    pub size: Option<u64>,
    /// For a layer: must be the digest of its tar.
    pub diff_id: Option<Digest>,
    /// Unpack the layer.
    pub unpack: bool,
    /// As what.
    pub form: Form,
    /// Have the BLAKE3 of every file's content in the layer's index.
    pub content_digests: bool,
    /// Keep the blob.
    pub keep_blob: bool,
    /// What of a layer is too much.
    pub limits: Limits,
}

/// One blob on its way into the store.
#[derive(Debug)]
pub struct Ingest {
    options: IngestOptions,
    /// Declared before the staging: stages end before their directory is removed.
    pipeline: Pipeline,
    staging: Mutex<Option<Staging>>,
}

impl Ingest {
    /// Makes the staging directory and starts the stages.
    ///
    /// # Errors
    /// As [`Staging::create`] and [`Pipeline::start`].
    pub fn start(root: &Root, id: &str, options: IngestOptions) -> Result<Self> {
        let staging = Staging::create(root, id)?;
        let store = if options.keep_blob { Some(staging.create_blob()?) } else { None };
        let apply = if options.unpack {
            let directory = staging.create_layer()?;
            let mut writer = match options.form {
                Form::Tree => LayerWriter::new(directory, options.limits)?,
                Form::Objects(packed) => {
                    LayerWriter::objects(directory, options.limits, staging.create_objects(root)?, packed)?
                }
            };
            if options.content_digests {
                writer = writer.with_content_digests();
            }
            Some(Apply::Layer(Box::new(writer)))
        } else {
            None
        };
        let pipeline = Pipeline::start(Options {
            subject: format!("blob {}", options.digest),
            digest: Some(options.digest),
            size: options.size,
            layer: options.diff_id.is_some() || options.unpack,
            diff_id: options.diff_id,
            store,
            apply,
            limits: options.limits,
        })?;
        Ok(Self { options, pipeline, staging: Mutex::new(Some(staging)) })
    }

    /// The stages.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Gives it up; nothing is left. Doing it again, or after publishing, does nothing.
    pub fn abort(&self) {
        if self.pipeline.is_forked() {
            return; // it is the parent's to give up
        }
        self.pipeline.cancel();
        drop(self.staging.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn conflict(&self, state: &str) -> Error {
        Error::Conflict {
            kind: "ingest",
            name: self.options.digest.to_string(),
            state: state.to_owned(),
            allowed: "finished, once".to_owned(),
        }
    }

    /// Publishes finished ingests together; see [`publish`].
    ///
    /// # Errors
    /// [`Error::Conflict`] for one that has not finished well, or is named twice; as [`publish`].
    pub fn publish_all(root: &Root, ingests: &[&Self], durability: Durability) -> Result<()> {
        // In one order for all callers: two threads that publish some of the same never wait for each other.
        let mut ingests = ingests.to_vec();
        ingests.sort_by_key(|ingest| std::ptr::from_ref(*ingest));
        if let Some(twice) = ingests.windows(2).find(|pair| std::ptr::eq(pair[0], pair[1])) {
            return Err(twice[0].conflict("named twice"));
        }
        let held: Vec<_> = ingests
            .iter()
            .map(|ingest| ingest.staging.lock().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let mut finished = Vec::with_capacity(ingests.len());
        for (ingest, staging) in ingests.iter().zip(&held) {
            let options = &ingest.options;
            let unfinished = || ingest.conflict("not finished");
            let staging = staging.as_ref().ok_or_else(|| ingest.conflict("published or given up"))?;
            let outcome = ingest.pipeline.wait(Some(std::time::Duration::ZERO))?.ok_or_else(unfinished)?;
            finished.push(Finished {
                staging,
                blob: options.keep_blob.then_some((outcome.digest, outcome.size)),
                layer: outcome.diff_id.filter(|_| options.unpack),
            });
        }
        publish(root, &finished, durability)?;
        drop(finished);
        for mut staging in held {
            drop(staging.take()); // removes what is left of it: the lock file and its directory
        }
        Ok(())
    }
}

/// Applies a layer file to a directory that may hold the layers below.
///
/// # Errors
/// What the layer or the kernel refuses; a mismatch with `digest` or `diff_id`, after which the content of
/// `target` is undefined.
pub fn unpack_file(
    source: &Path,
    target: &Path,
    digest: Option<Digest>,
    diff_id: Option<Digest>,
    limits: Limits,
    ownership: Ownership,
) -> Result<Outcome> {
    let mut file = File::open(source).map_err(|e| Error::io("open", source, &e))?;
    let merger = Merger::new(Root::open(target)?, limits, ownership)?;
    let pipeline = Pipeline::start(Options {
        subject: source.display().to_string(),
        digest,
        layer: true,
        diff_id,
        apply: Some(Apply::Merge(Box::new(merger))),
        limits,
        ..Options::default()
    })?;
    loop {
        let mut block = pipeline.block()?;
        let mut filled = 0;
        while filled < block.space().len() {
            match file.read(&mut block.space()[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io("read", source, &e)),
            }
        }
        if filled == 0 {
            break;
        }
        block.set_filled(filled);
        pipeline.push(block)?;
    }
    pipeline.close();
    pipeline.wait(None)?.ok_or(Error::Cancelled)
}
