//! A pipeline into the store, and one from a file into a directory.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::io::Errno;

use super::options::{Apply, Options, Outcome};
use super::run::Pipeline;
use crate::cas::{Durability, Finished, KeptBlob, LAYERS, Staging, publish};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::root::Root;
use crate::tar::layers::join_forms;
use crate::tar::merge::Merger;
use crate::tar::{LayerWriter, Limits, Ownership};

/// A file of at most so many bytes is in its layer's pack and in images; a longer one is an object. A higher limit makes
/// fewer files, and each image has a copy of its own of what is no object: see ARCHITECTURE.md for what was measured.
pub const PACKED_BYTES: u64 = 1024;

/// How often somebody who waits for a layer's end looks whether the caller has had enough.
const STOP_LOOK: Duration = Duration::from_millis(50);

/// What becomes of a blob's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// They are read, and stored nowhere.
    Nothing,
    /// They are stored.
    Blob,
    /// The same; they go on from what an earlier ingest of the same id left, and another one may go on from them.
    Resumable,
}

/// What an unpacked layer is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A directory.
    Tree,
    /// Objects, with files of at most so many bytes in a pack.
    Objects(u64),
    /// Blocks, in which files of at most so many bytes stand close together.
    Blocks(u64),
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
            "blocks" => Ok(Self::Blocks(packed_bytes)),
            _ => Err(Error::Invalid {
                field: "form",
                value: name.to_owned(),
                reason: "expected tree, objects or blocks".to_owned(),
            }),
        }
    }
}

/// What is to be brought in.
#[derive(Debug, Clone, Copy)]
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
    /// Have a list of files' contents by SHA-256 beside it.
    pub file_digests: bool,
    /// What becomes of the blob itself.
    pub blob: Keep,
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
    published: AtomicBool,
    /// How many bytes an earlier ingest left, and they themselves until they were read.
    kept: u64,
    left: Mutex<Option<File>>,
}

impl Ingest {
    /// Makes the staging directory, or takes it over, and starts the stages.
    ///
    /// # Errors
    /// As [`Staging::create`] or [`Staging::take_over`], and [`Pipeline::start`].
    pub fn start(root: &Root, id: &str, options: IngestOptions) -> Result<Self> {
        let staging = match options.blob {
            Keep::Resumable => Staging::take_over(root, id)?,
            Keep::Blob | Keep::Nothing => Staging::create(root, id)?,
        };
        let (store, left, kept) = match options.blob {
            Keep::Resumable => {
                let KeptBlob { file, reader, bytes } = staging.open_blob(options.size)?;
                (Some(file), Some(reader), bytes)
            }
            Keep::Blob => (Some(staging.create_blob()?), None, 0),
            Keep::Nothing => (None, None, 0),
        };
        let apply = if options.unpack {
            let directory = staging.create_layer()?;
            let mut writer = match options.form {
                Form::Tree => LayerWriter::new(directory, options.limits)?,
                Form::Objects(packed) => {
                    LayerWriter::objects(directory, options.limits, staging.create_objects(root)?, packed)?
                }
                Form::Blocks(short) => LayerWriter::blocks(directory, options.limits, short)?,
            };
            if options.content_digests {
                writer = writer.with_content_digests();
            }
            if options.file_digests {
                writer = writer.with_file_digests();
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
            plain: false,
            diff_id: options.diff_id,
            store,
            kept,
            apply,
            limits: options.limits,
        })?;
        let (staging, left) = (Mutex::new(Some(staging)), Mutex::new(left));
        Ok(Self { options, pipeline, staging, published: AtomicBool::new(false), kept, left })
    }

    /// Bytes that an earlier ingest left.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.kept
    }

    /// Puts what an earlier ingest left through the stages, before anything else is handed over. Once: again does
    /// nothing.
    ///
    /// # Errors
    /// As [`Pipeline::block`] and [`Pipeline::push`]; [`Error::Io`] for a disk that cannot give them back, or gives
    /// fewer.
    pub fn replay(&self) -> Result<()> {
        let Some(mut left) = self.left.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let mut to_come = self.kept;
        while to_come > 0 {
            let mut block = self.pipeline.block()?;
            let length = block.space().len();
            let wanted = usize::try_from(to_come).map_or(length, |to_come| to_come.min(length));
            let filled = fill(&mut left, &mut block.space()[..wanted], Path::new("blob"))?;
            if filled < wanted {
                return Err(Error::errno("read", "blob", Errno::IO)); // somebody cut it off meanwhile
            }
            block.set_filled(filled);
            self.pipeline.push(block)?;
            to_come -= filled as u64;
        }
        Ok(())
    }

    /// The stages.
    #[must_use]
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Gives it up, and waits until no stage touches anything of it. What was handed over is written out, and stays
    /// until it is aborted or left.
    pub fn suspend(&self) {
        self.pipeline.suspend();
    }

    /// Gives it up, and leaves the blob's bytes that came for an ingest of the same id; nothing where it is not
    /// resumable.
    ///
    /// # Errors
    /// [`Error::Io`]; nothing is left then.
    pub fn leave(&self) -> Result<()> {
        if self.pipeline.is_forked() || self.options.blob != Keep::Resumable {
            self.abort();
            return Ok(());
        }
        self.pipeline.suspend();
        self.close_left();
        let staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner).take();
        staging.map_or(Ok(()), Staging::leave)
    }

    /// Gives it up; nothing is left in staging. Doing it again does nothing, and after publishing only that.
    pub fn abort(&self) {
        if self.pipeline.is_forked() {
            return; // it is the parent's to give up
        }
        self.pipeline.cancel();
        self.close_left();
        drop(self.staging.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Whoever stops before the first byte never reads them: they must not stay open for as long as somebody has a
    /// name for this.
    fn close_left(&self) {
        drop(self.left.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn conflict(&self, state: &str) -> Error {
        Error::Conflict {
            kind: "ingest",
            name: self.options.digest.to_string(),
            state: state.to_owned(),
            allowed: "finished, once".to_owned(),
        }
    }

    /// Publishes finished ingests together; see [`publish`]. A layer that is there in another form keeps that: whoever calls
    /// sees to it that nobody else publishes or removes it meanwhile. Of resumable ones the bytes stay in staging as well, until
    /// they are aborted or left.
    ///
    /// # Errors
    /// [`Error::Conflict`] for one that has not finished well, or is named twice; as [`publish`].
    pub fn publish_all(
        root: &Root,
        ingests: &[&Self],
        durability: Durability,
        journal: Option<&Path>,
    ) -> Result<()> {
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
            let staging = staging
                .as_ref()
                .filter(|_| !ingest.published.load(Ordering::Acquire))
                .ok_or_else(|| ingest.conflict("published or given up"))?;
            let outcome = ingest.pipeline.wait(Some(std::time::Duration::ZERO))?.ok_or_else(unfinished)?;
            let layer = outcome.diff_id.filter(|_| options.unpack);
            if let Some(diff_id) = layer.filter(|_| options.form != Form::Tree) {
                let path = format!("{LAYERS}/{}/{}", diff_id.algorithm().name(), diff_id.hex());
                join_forms(staging.directory().as_fd(), &root.path().join(path))?;
            }
            finished.push(Finished {
                staging,
                blob: (options.blob != Keep::Nothing).then_some((outcome.digest, outcome.size)),
                layer,
                stays: options.blob == Keep::Resumable,
            });
        }
        publish(root, &finished, durability, journal)?;
        drop(finished);
        for (ingest, mut staging) in ingests.iter().zip(held) {
            ingest.published.store(true, Ordering::Release);
            if ingest.options.blob != Keep::Resumable {
                drop(staging.take()); // removes what is left of it: the lock file and its directory
            }
        }
        Ok(())
    }
}

/// Applies a layer file to a directory that may hold the layers below. `stop` is asked again and again; what it returns
/// as an error ends the work.
///
/// # Errors
/// What the layer or the kernel refuses; a mismatch with `digest` or `diff_id`, after which the content of
/// `target` is undefined.
pub fn unpack_file<E: From<Error>>(
    source: &Path,
    target: &Path,
    digest: Option<Digest>,
    diff_id: Option<Digest>,
    limits: Limits,
    ownership: Ownership,
    stop: impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<Outcome, E> {
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
        let filled = fill(&mut file, block.space(), source)?;
        if filled == 0 {
            break;
        }
        block.set_filled(filled);
        pipeline.push(block)?;
        stop().inspect_err(|_| pipeline.cancel())?;
    }
    pipeline.close();
    loop {
        if let Some(outcome) = pipeline.wait(Some(STOP_LOOK))? {
            return Ok(outcome);
        }
        stop().inspect_err(|_| pipeline.cancel())?;
    }
}

/// Reads until all of a space is filled, or the file has ended: how many bytes.
pub(super) fn fill(file: &mut File, space: &mut [u8], name: &Path) -> Result<usize> {
    let mut filled = 0;
    while filled < space.len() {
        match file.read(&mut space[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", name, &e)),
        }
    }
    Ok(filled)
}
