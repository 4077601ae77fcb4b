//! The `PyO3` classes, one file a room; the only code that names pyo3.

#![allow(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over as owned values")]

mod archive;
mod cas;
mod convert;
mod diff;
mod digest;
mod errors;
mod http;
mod layer;
mod mount;
mod pipeline;
mod root;
mod send;
mod spawn;
mod toc;

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;

/// The private native module; its public names are re-exported by `pyctrd`.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("INFLATE", crate::compression::inflater())?;
    archive::register(module)?;
    cas::register(module)?;
    convert::register(module)?;
    diff::register(module)?;
    digest::register(module)?;
    http::register(module)?;
    layer::register(module)?;
    mount::register(module)?;
    pipeline::register(module)?;
    root::register(module)?;
    send::register(module)?;
    spawn::register(module)?;
    toc::register(module)
}

/// What a class keeps, also after a thread has panicked with it: each change of it is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
