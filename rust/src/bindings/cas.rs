//! Bindings of `cas`.

use pyo3::prelude::*;

/// Adds this room's names to the module.
#[allow(clippy::unnecessary_wraps, reason = "every room's register has one signature")]
pub(super) fn register(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
