//! Bindings of `cas`: locks between processes, and what is left over after a crash.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;

use crate::cas::{FileLock, sweep};
use crate::root::{Root, remove_tree as remove_below};

/// A lock file between processes and threads, made once and never removed.
#[pyclass(frozen, module = "pyctrd._core", name = "FileLock")]
struct PyFileLock(FileLock);

#[pymethods]
impl PyFileLock {
    #[new]
    #[pyo3(signature = (path, *, shared = false))]
    fn new(path: PathBuf, shared: bool) -> Self {
        Self(FileLock::new(path, shared))
    }

    /// Takes it; false where it was not free within `timeout` seconds. Signals are looked at while it waits.
    #[pyo3(signature = (timeout = None))]
    fn acquire(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let limit = timeout.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        let interrupted = || Python::attach(|py| py.check_signals().inspect_err(|_| ()));
        py.detach(|| self.0.acquire(limit, interrupted))
    }

    /// Lets go.
    fn release(&self) {
        self.0.release();
    }

    /// The pid of who took it last, for messages.
    #[getter]
    fn holder(&self) -> Option<u32> {
        self.0.holder()
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().acquire(slf.py(), None)?;
        Ok(slf)
    }

    fn __exit__(&self, _kind: &Bound<'_, PyAny>, _error: &Bound<'_, PyAny>, _traceback: &Bound<'_, PyAny>) {
        self.0.release();
    }
}

/// Removes what dead processes left in staging, but for some ingests; gives the ids.
#[pyfunction]
#[pyo3(signature = (root, *, keep = Vec::new()))]
fn sweep_ingests(py: Python<'_>, root: PathBuf, keep: Vec<String>) -> PyResult<Vec<String>> {
    Ok(py.detach(|| sweep(&Root::open(root)?, &keep))?)
}

/// Removes a name below a directory with all that is in it, links not followed.
#[pyfunction]
fn remove_tree(py: Python<'_>, directory: PathBuf, name: PathBuf) -> PyResult<()> {
    use std::os::unix::ffi::OsStrExt;
    Ok(py.detach(|| remove_below(Root::open(directory)?.as_fd(), name.as_os_str().as_bytes()))?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyFileLock>()?;
    module.add_function(wrap_pyfunction!(sweep_ingests, module)?)?;
    module.add_function(wrap_pyfunction!(remove_tree, module)?)
}
