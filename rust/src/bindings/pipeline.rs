//! Bindings of `pipeline`: ingests that are filled from Python without a copy.

use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyMemoryView};

use super::lock;
use crate::cas::Durability;
use crate::compression::Compression;
use crate::error::{Error, Result};
use crate::pipeline::{
    Block, Form, IN_BLOCK_BYTES, Ingest, IngestOptions, Keep, Outcome, PACKED_BYTES, Pipeline, StageTimes,
    unpack_file,
};
use crate::root::Root;
use crate::tar::{Limits, Ownership};

/// `pyctrd.Limits`, read attribute by attribute: Python checked that the values make sense.
#[derive(FromPyObject)]
pub(super) struct PyLimits {
    entries: u64,
    bytes: u64,
    ratio: u64,
    name_bytes: u64,
    depth: u64,
    xattr_bytes: u64,
    header_bytes: u64,
}

impl From<PyLimits> for Limits {
    fn from(limits: PyLimits) -> Self {
        let PyLimits { entries, bytes, ratio, name_bytes, depth, xattr_bytes, header_bytes } = limits;
        Self { entries, bytes, ratio, name_bytes, depth, xattr_bytes, header_bytes }
    }
}

/// What a blob was: returned once every byte was checked.
#[pyclass(frozen, get_all, module = "pyctrd", name = "Ingested")]
#[derive(Debug)]
struct PyIngested {
    /// Of the bytes as they came.
    digest: String,
    /// Their number.
    size: u64,
    /// "none", "gzip" or "zstd", as the first bytes told.
    compression: &'static str,
    /// Of the tar; None for what is no layer.
    diff_id: Option<String>,
    /// Content bytes of the layer's files.
    layer_bytes: u64,
    /// Entries of its archive.
    layer_entries: u64,
    /// Parent directories that it does not list.
    implied: u64,
    /// Hard links to files of lower layers.
    foreign_links: u64,
    /// Extended attributes that were not set.
    skipped_xattrs: u64,
    /// Symbolic links that are not root's, where owners are recorded.
    unrecorded_owners: u64,
}

impl From<Outcome> for PyIngested {
    fn from(outcome: Outcome) -> Self {
        Self {
            digest: outcome.digest.to_string(),
            size: outcome.size,
            compression: outcome.compression.name(),
            diff_id: outcome.diff_id.map(|digest| digest.to_string()),
            layer_bytes: outcome.applied.bytes,
            layer_entries: outcome.applied.entries,
            implied: outcome.applied.implied,
            foreign_links: outcome.applied.foreign_links,
            skipped_xattrs: outcome.applied.skipped_xattrs,
            unrecorded_owners: outcome.applied.unrecorded_owners,
        }
    }
}

#[pymethods]
impl PyIngested {
    /// For what was unpacked in another process.
    #[new]
    #[pyo3(signature = (
        *, digest, size, compression, diff_id, layer_bytes, layer_entries, implied, foreign_links, skipped_xattrs,
        unrecorded_owners
    ))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        digest: String,
        size: u64,
        compression: &str,
        diff_id: Option<String>,
        layer_bytes: u64,
        layer_entries: u64,
        implied: u64,
        foreign_links: u64,
        skipped_xattrs: u64,
        unrecorded_owners: u64,
    ) -> PyResult<Self> {
        let compression = Compression::parse(compression)?.name();
        Ok(Self {
            digest,
            size,
            compression,
            diff_id,
            layer_bytes,
            layer_entries,
            implied,
            foreign_links,
            skipped_xattrs,
            unrecorded_owners,
        })
    }

    fn __repr__(&self) -> String {
        format!(
            "Ingested(digest='{}', size={}, layer_entries={})",
            self.digest, self.size, self.layer_entries
        )
    }
}

/// A block lent to Python as a writable buffer.
#[pyclass(frozen, module = "pyctrd._core", name = "Block")]
struct PyBlock {
    /// None once it was handed over.
    block: Mutex<Option<Block>>,
    /// Views that Python holds; the block stays while there are any.
    views: AtomicUsize,
}

#[pymethods]
impl PyBlock {
    /// All of it, writable; to be released before the block is handed over.
    fn view<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyMemoryView>> {
        PyMemoryView::from(slf.as_any())
    }

    #[allow(unsafe_code, reason = "the buffer protocol is a C interface")]
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let this = slf.get();
        let mut block = lock(&this.block);
        let Some(block) = block.as_mut() else {
            return Err(PyBufferError::new_err("the block was handed over"));
        };
        let space = block.space();
        let length = ffi::Py_ssize_t::try_from(space.len()).unwrap_or(ffi::Py_ssize_t::MAX);
        // SAFETY: `view` is the interpreter's, to be filled. The bytes are on the heap, where they stay until
        // `take`, which refuses while `views` counts this one; it is counted before the lock is let go of. Rust
        // does not look at them in the meantime.
        let status = unsafe {
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), space.as_mut_ptr().cast(), length, 0, flags)
        };
        if status != 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        this.views.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    #[allow(unsafe_code, reason = "the buffer protocol is a C interface")]
    unsafe fn __releasebuffer__(&self, _view: *mut ffi::Py_buffer) {
        self.views.fetch_sub(1, Ordering::AcqRel);
    }
}

impl From<Block> for PyBlock {
    fn from(block: Block) -> Self {
        Self { block: Mutex::new(Some(block)), views: AtomicUsize::new(0) }
    }
}

impl PyBlock {
    fn take(&self) -> PyResult<Option<Block>> {
        let mut block = lock(&self.block);
        if self.views.load(Ordering::Acquire) > 0 {
            return Err(PyBufferError::new_err(
                "a memoryview of the block is still held: release it before commit",
            ));
        }
        Ok(block.take())
    }

    /// The block with its first `count` bytes; once.
    fn take_filled(&self, count: usize) -> PyResult<Block> {
        if count > IN_BLOCK_BYTES {
            let reason = format!("a block has {IN_BLOCK_BYTES} bytes");
            return Err(Error::Invalid { field: "count", value: count.to_string(), reason }.into());
        }
        let mut filled = self.take()?.ok_or_else(not_taken)?;
        filled.set_filled(count);
        Ok(filled)
    }
}

fn not_taken() -> Error {
    Error::Conflict {
        kind: "block",
        name: "current".to_owned(),
        state: "not taken".to_owned(),
        allowed: "taken by buffer()".to_owned(),
    }
}

/// One blob's single pass into a store.
#[pyclass(frozen, module = "pyctrd._core", name = "Ingest")]
pub(super) struct PyIngest {
    ingest: Ingest,
    current: Mutex<Option<Py<PyBlock>>>,
}

#[pymethods]
impl PyIngest {
    #[new]
    #[pyo3(signature = (
        root, ingest_id, *, digest, size = None, diff_id = None, unpack = false, content_digests = false,
        file_digests = false, keep_blob = true, resumable = false, limits = None, form = "tree", packed_bytes = None
    ))]
    #[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools, reason = "keyword-only in Python")]
    fn new(
        py: Python<'_>,
        root: PathBuf,
        ingest_id: &str,
        digest: &str,
        size: Option<u64>,
        diff_id: Option<&str>,
        unpack: bool,
        content_digests: bool,
        file_digests: bool,
        keep_blob: bool,
        resumable: bool,
        limits: Option<PyLimits>,
        form: &str,
        packed_bytes: Option<u64>,
    ) -> PyResult<Self> {
        let options = IngestOptions {
            digest: digest.parse()?,
            size,
            diff_id: diff_id.map(str::parse).transpose()?,
            unpack,
            form: Form::parse(form, packed_bytes.unwrap_or(PACKED_BYTES))?,
            content_digests,
            file_digests,
            blob: match (keep_blob, resumable) {
                (false, _) => Keep::Nothing,
                (true, false) => Keep::Blob,
                (true, true) => Keep::Resumable,
            },
            limits: limits.map_or_else(Limits::default, Limits::from),
        };
        let ingest = py.detach(|| Ingest::start(&Root::open(root)?, ingest_id, options))?;
        Ok(Self { ingest, current: Mutex::new(None) })
    }

    /// A free block as a writable view; waits for one.
    fn buffer<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyMemoryView>> {
        let held = lock(&self.current).as_ref().map(|block| block.clone_ref(py));
        let block = if let Some(block) = held {
            block
        } else {
            let block = py.detach(|| self.ingest.pipeline().block())?;
            let block = Py::new(py, PyBlock::from(block))?;
            *lock(&self.current) = Some(block.clone_ref(py));
            block
        };
        PyMemoryView::from(block.bind(py))
    }

    /// Hands over the first `count` bytes of the current block.
    fn commit(&self, py: Python<'_>, count: usize) -> PyResult<()> {
        let held = lock(&self.current).as_ref().map(|block| block.clone_ref(py));
        let filled = held.ok_or_else(not_taken)?.get().take_filled(count)?;
        *lock(&self.current) = None;
        Ok(py.detach(|| self.ingest.pipeline().push(filled))?)
    }

    /// A free block for bytes whose turn has not come, or None: none is waited for.
    fn block_ahead(&self, py: Python<'_>) -> PyResult<Option<PyBlock>> {
        Ok(py.detach(|| self.ingest.pipeline().block_ahead())?.map(PyBlock::from))
    }

    /// A free block for the bytes whose turn it is, in the place of `buffer`; waits for one.
    fn block(&self, py: Python<'_>) -> PyResult<PyBlock> {
        Ok(py.detach(|| self.ingest.pipeline().block())?.into())
    }

    /// Hands over the first `count` bytes of such a block; once.
    fn push(&self, py: Python<'_>, block: &Bound<'_, PyBlock>, count: usize) -> PyResult<()> {
        let filled = block.get().take_filled(count)?;
        Ok(py.detach(|| self.ingest.pipeline().push(filled))?)
    }

    /// Blocks handed over that the slower of the stages has not begun.
    #[getter]
    fn backlog(&self) -> usize {
        self.ingest.pipeline().backlog()
    }

    /// Copies bytes in: for small documents.
    fn write(&self, py: Python<'_>, data: &[u8]) -> PyResult<()> {
        let pipeline = self.ingest.pipeline();
        let copy = || -> Result<()> {
            for part in data.chunks(IN_BLOCK_BYTES) {
                let mut block = pipeline.block()?;
                block.space()[..part.len()].copy_from_slice(part);
                block.set_filled(part.len());
                pipeline.push(block)?;
            }
            Ok(())
        };
        // `data` is immutable and held by the caller's frame: other threads cannot change it meanwhile.
        Ok(py.detach(copy)?)
    }

    /// Bytes that an earlier ingest of this id left.
    #[getter]
    fn kept(&self) -> u64 {
        self.ingest.kept()
    }

    /// Puts those through the stages; before anything else is handed over.
    fn replay(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.ingest.replay())?)
    }

    /// Bytes handed over so far.
    #[getter]
    fn received(&self) -> u64 {
        self.ingest.pipeline().received()
    }

    /// Bytes of tar unpacked so far.
    #[getter]
    fn bytes_unpacked(&self) -> u64 {
        self.ingest.pipeline().unpacked()
    }

    /// Entries of the tar unpacked so far, the one that is being written included.
    #[getter]
    fn entries_unpacked(&self) -> u64 {
        self.ingest.pipeline().entries()
    }

    /// Says that all bytes came, and waits until they are checked and unpacked.
    #[pyo3(signature = (*, timeout = None))]
    fn finish(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<PyIngested> {
        let limit = timeout.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        let outcome = py.detach(|| {
            self.ingest.pipeline().close();
            self.ingest.pipeline().wait(limit)
        })?;
        match outcome {
            Some(outcome) => Ok(outcome.into()),
            None => Err(deadline(py, "ingest", timeout)?),
        }
    }

    /// Gives it up; what was handed over is written out, and stays until it is aborted or left.
    fn suspend(&self, py: Python<'_>) {
        py.detach(|| self.ingest.suspend());
    }

    /// Gives it up, and leaves its bytes for another of the same id, if it is resumable.
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.ingest.leave())?)
    }

    /// Gives it up; nothing is left in staging.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| self.ingest.abort());
    }

    /// Where each stage's time went, by its name.
    fn stages<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        for (name, times) in self.ingest.pipeline().times() {
            found.set_item(name, Py::new(py, PyStageTimes(times))?)?;
        }
        Ok(found)
    }
}

impl PyIngest {
    /// Its stages, for whoever makes bytes for them in Rust.
    pub(super) fn pipeline(&self) -> &Pipeline {
        self.ingest.pipeline()
    }
}

impl Drop for PyIngest {
    fn drop(&mut self) {
        // The last reference may go in any thread, with the interpreter held: stages never need it to end.
        self.ingest.abort();
    }
}

/// `DeadlineError` has no native variant: only waits that Python asked for have deadlines.
fn deadline(py: Python<'_>, operation: &str, timeout: Option<f64>) -> PyResult<PyErr> {
    let attributes = PyDict::new(py);
    attributes.set_item("operation", operation)?;
    attributes.set_item("timeout_seconds", timeout)?;
    let class = PyModule::import(py, "pyctrd.errors")?.getattr("DeadlineError")?;
    let message = format!("{operation}: not done within {} s", timeout.unwrap_or(0.0));
    Ok(PyErr::from_value(class.call((message,), Some(&attributes))?))
}

/// Where the time of one stage went, in nanoseconds.
#[pyclass(frozen, module = "pyctrd._core", name = "StageTimes")]
struct PyStageTimes(StageTimes);

#[pymethods]
impl PyStageTimes {
    /// At work.
    #[getter]
    fn busy_ns(&self) -> u64 {
        self.0.busy_ns
    }

    /// Without anything to work on.
    #[getter]
    fn starved_ns(&self) -> u64 {
        self.0.starved_ns
    }

    /// Waiting for a free block.
    #[getter]
    fn blocked_ns(&self) -> u64 {
        self.0.blocked_ns
    }

    /// With work, waiting for a worker.
    #[getter]
    fn waiting_ns(&self) -> u64 {
        self.0.waiting_ns
    }

    /// Bytes taken in.
    #[getter]
    fn bytes(&self) -> u64 {
        self.0.bytes
    }

    fn __repr__(&self) -> String {
        let times = &self.0;
        format!(
            "StageTimes(busy_ns={}, starved_ns={}, blocked_ns={}, waiting_ns={}, bytes={})",
            times.busy_ns, times.starved_ns, times.blocked_ns, times.waiting_ns, times.bytes
        )
    }
}

/// Flushes finished ingests with one flush, and a file that says what they are, and gives them their names.
#[pyfunction]
#[pyo3(signature = (root, ingests, *, durability = "batch", journal = None))]
fn publish(
    py: Python<'_>,
    root: PathBuf,
    ingests: Vec<Py<PyIngest>>,
    durability: &str,
    journal: Option<PathBuf>,
) -> PyResult<()> {
    let durability = Durability::parse(durability)?;
    let finished: Vec<&Ingest> = ingests.iter().map(|ingest| &ingest.get().ingest).collect();
    let journal = journal.as_deref();
    Ok(py.detach(|| Ingest::publish_all(&Root::open(root)?, &finished, durability, journal))?)
}

/// Applies a layer file to a directory.
#[pyfunction]
#[pyo3(signature = (source, dest, *, diff_id = None, digest = None, limits = None, ownership = "keep"))]
#[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
fn unpack(
    py: Python<'_>,
    source: PathBuf,
    dest: PathBuf,
    diff_id: Option<&str>,
    digest: Option<&str>,
    limits: Option<PyLimits>,
    ownership: &str,
) -> PyResult<PyIngested> {
    let ownership = Ownership::parse(ownership)?;
    let digest = digest.map(str::parse).transpose()?;
    let diff_id = diff_id.map(str::parse).transpose()?;
    let limits = limits.map_or_else(Limits::default, Limits::from);
    let interrupted = || Python::attach(|py| py.check_signals().inspect_err(|_| ()));
    let outcome =
        py.detach(|| unpack_file(&source, &dest, digest, diff_id, limits, ownership, interrupted))?;
    Ok(outcome.into())
}

/// The limits that hold where none are given, by name.
fn default_limits() -> [(&'static str, u64); 7] {
    let Limits { entries, bytes, ratio, name_bytes, depth, xattr_bytes, header_bytes } = Limits::default();
    [
        ("entries", entries),
        ("bytes", bytes),
        ("ratio", ratio),
        ("name_bytes", name_bytes),
        ("depth", depth),
        ("xattr_bytes", xattr_bytes),
        ("header_bytes", header_bytes),
    ]
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyBlock>()?;
    module.add_class::<PyIngest>()?;
    module.add_class::<PyIngested>()?;
    module.add_class::<PyStageTimes>()?;
    module.add("BLOCK_BYTES", IN_BLOCK_BYTES)?;
    module.add("DEFAULT_LIMITS", default_limits())?;
    module.add_function(wrap_pyfunction!(publish, module)?)?;
    module.add_function(wrap_pyfunction!(unpack, module)?)
}
