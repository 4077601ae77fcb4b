//! Bindings of `spawn`.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::spawn;

/// Starts the shim; returns once it has detached. Its words go to `report`, the end of a pipe.
#[pyfunction]
#[pyo3(signature = (argv, *, report))]
fn spawn_shim(py: Python<'_>, argv: Vec<Vec<u8>>, report: RawFd) -> PyResult<()> {
    let argv: Vec<_> = argv.into_iter().map(OsString::from_vec).collect();
    let report = borrow(report)?;
    Ok(py.detach(|| spawn::spawn_shim(&argv, report))?)
}

/// Puts this process into a new user namespace without ids, and lets it die with its parent.
#[pyfunction]
#[pyo3(signature = (*, parent))]
fn enter_user_namespace(parent: i32) -> PyResult<()> {
    Ok(spawn::enter_user_namespace(parent)?)
}

/// Opens a regular file beneath the directory `root`, links followed within it; a descriptor.
#[pyfunction]
fn open_in_root(py: Python<'_>, root: RawFd, path: PathBuf) -> PyResult<RawFd> {
    let root = borrow(root)?;
    Ok(py.detach(move || spawn::open_in_root(root, &path))?.into_raw_fd())
}

/// A descriptor of Python's, for the length of one call.
#[allow(unsafe_code, reason = "a number from Python becomes a descriptor")]
fn borrow<'a>(fd: RawFd) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("descriptor: {fd}: expected 0 or more")));
    }
    // SAFETY: it is not -1, and the caller's stack keeps what owns it open until the call returns.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(spawn_shim, module)?)?;
    module.add_function(wrap_pyfunction!(enter_user_namespace, module)?)?;
    module.add_function(wrap_pyfunction!(open_in_root, module)?)
}
