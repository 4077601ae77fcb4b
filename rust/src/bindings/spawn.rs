//! Bindings of `spawn`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStringExt;

use pyo3::prelude::*;

use super::root::borrow;
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

/// Moves this process, which has one thread, into a namespace of users or mounts; others are any thread's to join.
#[pyfunction]
fn join_namespace(namespace: RawFd) -> PyResult<()> {
    Ok(spawn::join_namespace(borrow(namespace)?)?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(spawn_shim, module)?)?;
    module.add_function(wrap_pyfunction!(enter_user_namespace, module)?)?;
    module.add_function(wrap_pyfunction!(join_namespace, module)?)
}
