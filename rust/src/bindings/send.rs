//! Bindings of `send`.

use std::os::fd::RawFd;
use std::time::Duration;

use pyo3::prelude::*;

use super::root::borrow;
use crate::send;

/// Sends a part of a file for as long as the socket's other side takes it; how many bytes went.
#[pyfunction]
#[pyo3(signature = (target, source, *, start, count, pause_ms, turn_ms))]
fn send_part(
    py: Python<'_>,
    target: RawFd,
    source: RawFd,
    start: u64,
    count: u64,
    pause_ms: u64,
    turn_ms: u64,
) -> PyResult<u64> {
    let (target, source) = (borrow(target)?, borrow(source)?);
    let (pause, turn) = (Duration::from_millis(pause_ms), Duration::from_millis(turn_ms));
    Ok(py.detach(|| send::send_part(target, source, start, count, pause, turn))?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(send_part, module)?)
}
