//! Bindings of `mount`.

use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;

use pyo3::prelude::*;

use super::root::borrow;
use crate::mount;

/// Mounts an overlay on a directory: `lower` with the uppermost first.
#[pyfunction]
#[pyo3(signature = (lower, target, *, upper = None, work = None, volatile = false, data = Vec::new(), user_marks = false, ids = None))]
#[allow(clippy::fn_params_excessive_bools, clippy::too_many_arguments, reason = "keywords, in Python")]
fn mount_overlay(
    py: Python<'_>,
    lower: Vec<PathBuf>,
    target: PathBuf,
    upper: Option<PathBuf>,
    work: Option<PathBuf>,
    volatile: bool,
    data: Vec<PathBuf>,
    user_marks: bool,
    ids: Option<RawFd>,
) -> PyResult<()> {
    let ids = ids.map(borrow).transpose()?;
    let overlay = mount::Overlay { lower, data, upper: upper.zip(work), volatile, user_marks, ids };
    Ok(py.detach(|| mount::mount_overlay(&overlay, &target))?)
}

/// Mounts an EROFS image on a directory, read-only, with the files that have its other blocks; with `loop_device` not straight
/// from files, whatever the kernel can.
#[pyfunction]
#[pyo3(signature = (image, target, *, devices = Vec::new(), loop_device = false))]
fn mount_erofs(
    py: Python<'_>,
    image: PathBuf,
    target: PathBuf,
    devices: Vec<PathBuf>,
    loop_device: bool,
) -> PyResult<()> {
    let mount = if loop_device { mount::mount_erofs_by_loop } else { mount::mount_erofs };
    Ok(py.detach(|| mount(&image, &target, &devices))?)
}

/// Makes a directory or file visible at another place.
#[pyfunction]
#[pyo3(signature = (source, target, *, readonly = false, ids = None))]
fn mount_bind(
    py: Python<'_>,
    source: PathBuf,
    target: PathBuf,
    readonly: bool,
    ids: Option<RawFd>,
) -> PyResult<()> {
    let ids = ids.map(borrow).transpose()?;
    Ok(py.detach(|| mount::mount_bind(&source, &target, readonly, ids))?)
}

/// Takes the uppermost mount at a place away; whether there was one.
#[pyfunction]
#[pyo3(signature = (target, *, lazy = false))]
fn unmount(py: Python<'_>, target: PathBuf, lazy: bool) -> PyResult<bool> {
    Ok(py.detach(|| mount::unmount(&target, lazy))?)
}

/// Takes the uppermost mount at a place away without waiting for what its end takes: a descriptor that still has it,
/// read-only, and whose closing ends it; None where nothing is mounted.
#[pyfunction]
fn retire_mount(py: Python<'_>, target: PathBuf) -> PyResult<Option<RawFd>> {
    Ok(py.detach(|| mount::retire(&target))?.map(IntoRawFd::into_raw_fd))
}

/// Makes this thread another user and group to files; its capabilities stay.
#[pyfunction]
fn set_file_ids(uid: u32, gid: u32) -> PyResult<()> {
    Ok(mount::set_file_ids(uid, gid)?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(mount_overlay, module)?)?;
    module.add_function(wrap_pyfunction!(mount_erofs, module)?)?;
    module.add_function(wrap_pyfunction!(mount_bind, module)?)?;
    module.add_function(wrap_pyfunction!(unmount, module)?)?;
    module.add_function(wrap_pyfunction!(retire_mount, module)?)?;
    module.add_function(wrap_pyfunction!(set_file_ids, module)?)
}
