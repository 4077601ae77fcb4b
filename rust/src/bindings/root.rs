//! Bindings of `root` and `flush`: files opened beneath a directory, and what is flushed.

use std::os::fd::{BorrowedFd, IntoRawFd, RawFd};
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rustix::fs::{CWD, RenameFlags};

use crate::error::{Error, Result};
use crate::flush::flush_tree as flush_below;
use crate::root::{Links, Root, find_node, open_regular};

/// Opens a regular file beneath the directory `root`, links followed within it; a descriptor.
#[pyfunction]
fn open_in_root(py: Python<'_>, root: RawFd, path: PathBuf) -> PyResult<RawFd> {
    open(py, root, path, Links::Inside)
}

/// Opens a regular file beneath the directory `root`, by a path without links; a descriptor.
#[pyfunction]
fn open_beneath(py: Python<'_>, root: RawFd, path: PathBuf) -> PyResult<RawFd> {
    open(py, root, path, Links::Refused)
}

/// Opens whatever is at a path as if the directory `root` were `/`, to be looked at and not read (`O_PATH`); a link at its end
/// is followed only where that is said.
#[pyfunction]
#[pyo3(signature = (root, path, *, follow = true))]
fn open_node(py: Python<'_>, root: RawFd, path: PathBuf, follow: bool) -> PyResult<RawFd> {
    let root = borrow(root)?;
    Ok(py.detach(move || find_node(root, &path, follow))?.into_raw_fd())
}

/// Gives two directories each other's name, in one step.
#[pyfunction]
fn exchange(py: Python<'_>, first: PathBuf, second: PathBuf) -> PyResult<()> {
    let swap = || {
        rustix::fs::renameat_with(CWD, &first, CWD, &second, RenameFlags::EXCHANGE)
            .map_err(|e| Error::errno("exchange", &first, e))
    };
    Ok(py.detach(swap)?)
}

/// The number by which `statfs(2)` names the file system of a path.
#[pyfunction]
fn file_system(py: Python<'_>, path: PathBuf) -> PyResult<u64> {
    let found = py.detach(|| rustix::fs::statfs(&path)).map_err(|e| Error::errno("statfs", &path, e))?;
    #[allow(clippy::cast_sign_loss, reason = "the kernel's numbers are bit patterns")]
    Ok(found.f_type as u64)
}

/// Flushes the file system of a directory.
#[pyfunction]
fn flush_file_system(py: Python<'_>, directory: PathBuf) -> PyResult<()> {
    let flush = || -> Result<()> {
        let root = Root::open(&directory)?;
        rustix::fs::syncfs(&root).map_err(|e| Error::errno("syncfs", &directory, e))
    };
    Ok(py.detach(flush)?)
}

/// Flushes every file and directory beneath one.
#[pyfunction]
fn flush_tree(py: Python<'_>, directory: PathBuf) -> PyResult<()> {
    Ok(py.detach(|| flush_below(&directory))?)
}

fn open(py: Python<'_>, root: RawFd, path: PathBuf, links: Links) -> PyResult<RawFd> {
    let root = borrow(root)?;
    Ok(py.detach(move || open_regular(root, &path, links))?.into_raw_fd())
}

/// A descriptor of Python's, for the length of one call.
#[allow(unsafe_code, reason = "a number from Python becomes a descriptor")]
pub(super) fn borrow<'a>(fd: RawFd) -> PyResult<BorrowedFd<'a>> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("descriptor: {fd}: expected 0 or more")));
    }
    // SAFETY: it is not -1, and the caller's stack keeps what owns it open until the call returns.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(open_in_root, module)?)?;
    module.add_function(wrap_pyfunction!(open_beneath, module)?)?;
    module.add_function(wrap_pyfunction!(open_node, module)?)?;
    module.add_function(wrap_pyfunction!(exchange, module)?)?;
    module.add_function(wrap_pyfunction!(file_system, module)?)?;
    module.add_function(wrap_pyfunction!(flush_file_system, module)?)?;
    module.add_function(wrap_pyfunction!(flush_tree, module)?)
}
