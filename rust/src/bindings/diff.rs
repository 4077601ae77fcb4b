//! Bindings of `tar::diff` and of the pass that makes a layer of it.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::cas::Staging;
use crate::compression::Compression;
use crate::error::Result;
use crate::pipeline::{Packed, Stop, pack};
use crate::root::Root;
use crate::tar::diff::{Change, Form, Plan, plan};
use crate::tar::layers::open_layers;
use crate::tar::view::View;
use crate::tar::{Below, Layers, Ownership};

/// A layer that was made.
#[pyclass(frozen, get_all, module = "pyctrd", name = "Diffed")]
#[derive(Debug)]
struct PyDiffed {
    /// Of the file's bytes.
    digest: String,
    /// Of the tar.
    diff_id: String,
    /// "none", "gzip" or "zstd".
    compression: &'static str,
    /// Bytes of the file.
    size_bytes: u64,
    /// Bytes of the tar.
    tar_bytes: u64,
    /// Entries of the tar.
    entries: u64,
}

#[pymethods]
impl PyDiffed {
    fn __repr__(&self) -> String {
        format!("Diffed(digest='{}', diff_id='{}', entries={})", self.digest, self.diff_id, self.entries)
    }
}

impl PyDiffed {
    fn new(packed: &Packed, compression: Compression) -> Self {
        Self {
            digest: packed.digest.to_string(),
            diff_id: packed.diff_id.to_string(),
            compression: compression.name(),
            size_bytes: packed.size,
            tar_bytes: packed.tar_bytes,
            entries: packed.entries,
        }
    }
}

/// Runs what asks now and then whether it is to stop. What a signal's handler raises comes out as it was raised.
fn interruptible<T: Send>(py: Python<'_>, run: impl FnOnce(Stop<'_>) -> Result<T> + Send) -> PyResult<T> {
    let raised = Mutex::new(None);
    let stop = || match Python::attach(|py| py.check_signals().inspect_err(|_| ())) {
        Ok(()) => false,
        Err(error) => {
            *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            true
        }
    };
    let done = py.detach(|| run(&stop));
    match raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(done?),
    }
}

/// Makes a layer of a directory: of all that is in it, or of how it differs from another.
#[pyfunction]
#[pyo3(signature = (upper, dest, *, lower = None, compression = "gzip", clamp_mtime = None, ownership = "keep"))]
#[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
fn diff(
    py: Python<'_>,
    upper: PathBuf,
    dest: PathBuf,
    lower: Option<PathBuf>,
    compression: &str,
    clamp_mtime: Option<i64>,
    ownership: &str,
) -> PyResult<PyDiffed> {
    let compression = Compression::parse(compression)?;
    let ownership = Ownership::of_tree(ownership)?;
    let run = |stop: Stop<'_>| -> Result<Packed> {
        let upper = Root::open(upper)?;
        let lower = lower.map(Root::open).transpose()?;
        let below = lower.as_ref().map_or(Below::Nothing, Below::Directory);
        let form = if lower.is_some() { Form::Whole } else { Form::Upper };
        pack(&plan(&upper, form, &below, &ownership)?, &dest, compression, clamp_mtime, true, stop)
    };
    Ok(PyDiffed::new(&interruptible(py, run)?, compression))
}

/// Makes a layer of how a directory differs from layers; with `overlay` it is overlayfs' upper one, with `user_marks` of one
/// that was mounted so.
#[pyfunction]
#[pyo3(signature = (upper, dest, layers, *, overlay, user_marks = false, compression = "gzip", clamp_mtime = None))]
#[allow(clippy::too_many_arguments, reason = "keywords, in Python")]
fn diff_layers(
    py: Python<'_>,
    upper: PathBuf,
    dest: PathBuf,
    layers: Vec<PathBuf>,
    overlay: bool,
    user_marks: bool,
    compression: &str,
    clamp_mtime: Option<i64>,
) -> PyResult<PyDiffed> {
    let compression = Compression::parse(compression)?;
    let run = |stop: Stop<'_>| {
        // Whoever brings it into a store flushes it there.
        with_plan(upper, &layers, form_of(overlay, user_marks), |plan| {
            pack(plan, &dest, compression, clamp_mtime, false, stop)
        })
    };
    Ok(PyDiffed::new(&interruptible(py, run)?, compression))
}

/// What differs between a directory and layers: "A", "C" or "D", and a path.
#[pyfunction]
#[pyo3(signature = (upper, layers, *, overlay, user_marks = false))]
fn list_changes(
    py: Python<'_>,
    upper: PathBuf,
    layers: Vec<PathBuf>,
    overlay: bool,
    user_marks: bool,
) -> PyResult<Vec<(&'static str, Bound<'_, PyBytes>)>> {
    let run = || {
        with_plan(upper, &layers, form_of(overlay, user_marks), |plan| {
            Ok(plan.changes().map(|(change, path)| (letter(change), path.to_vec())).collect::<Vec<_>>())
        })
    };
    let found = py.detach(run)?;
    Ok(found.into_iter().map(|(letter, path)| (letter, PyBytes::new(py, &path))).collect())
}

fn form_of(overlay: bool, user_marks: bool) -> Form {
    match (overlay, user_marks) {
        (false, _) => Form::Whole,
        (true, false) => Form::Upper,
        (true, true) => Form::UserUpper,
    }
}

fn with_plan<T>(
    upper: PathBuf,
    layers: &[PathBuf],
    form: Form,
    run: impl FnOnce(&Plan<'_>) -> Result<T>,
) -> Result<T> {
    let upper = Root::open(upper)?;
    if layers.is_empty() {
        return run(&plan(&upper, form, &Below::Nothing, &Ownership::Keep)?);
    }
    let (trees, indexes) = open_layers(layers)?;
    let view = View::applied(&indexes)?;
    run(&plan(&upper, form, &Below::Layers(Layers::new(&view, &trees)), &Ownership::Keep)?)
}

fn letter(change: Change) -> &'static str {
    match change {
        Change::Added => "A",
        Change::Modified => "C",
        Change::Removed => "D",
    }
}

/// A directory of the store for something that is being made; what is in it at the end, or after a crash, is removed.
#[pyclass(frozen, module = "pyctrd._core", name = "Workspace")]
struct PyWorkspace {
    path: PathBuf,
    staging: Mutex<Option<Staging>>,
}

#[pymethods]
impl PyWorkspace {
    #[new]
    fn new(py: Python<'_>, root: PathBuf, ingest_id: &str) -> PyResult<Self> {
        let staging = py.detach(|| Staging::create(&Root::open(&root)?, ingest_id))?;
        let path = root.join(crate::cas::INGEST).join(ingest_id);
        Ok(Self { path, staging: Mutex::new(Some(staging)) })
    }

    /// Where it is.
    #[getter]
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Removes it; again is a no-op.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.staging.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __exit__(
        &self,
        py: Python<'_>,
        _kind: &Bound<'_, PyAny>,
        _error: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) {
        self.close(py);
    }
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyDiffed>()?;
    module.add_class::<PyWorkspace>()?;
    module.add_function(wrap_pyfunction!(diff, module)?)?;
    module.add_function(wrap_pyfunction!(diff_layers, module)?)?;
    module.add_function(wrap_pyfunction!(list_changes, module)?)
}
