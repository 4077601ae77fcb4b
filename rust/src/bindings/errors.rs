//! Every `Error` variant becomes one class of `pyctrd.errors`; `io::Error` becomes `OSError`.

use std::os::unix::ffi::OsStrExt;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::{Error, over};

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| build(py, &error).unwrap_or_else(|failed| failed))
    }
}

/// The exception for `error`: `pyctrd.errors.<Class>(message, **attributes)`.
fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    if let Error::Io { errno, operation, path } = error {
        let strerror = std::io::Error::from_raw_os_error(*errno).to_string();
        let text = strerror.split(" (os error").next().unwrap_or(&strerror);
        let filename = pyo3::types::PyModule::import(py, "os")?
            .getattr("fsdecode")?
            .call1((PyBytes::new(py, path.as_os_str().as_bytes()),))?;
        return Ok(PyOSError::new_err((*errno, format!("{operation}: {text}"), filename.unbind())));
    }
    let attributes = PyDict::new(py);
    let class = fill(py, error, &attributes)?;
    let class = PyModule::import(py, "pyctrd.errors")?.getattr(class)?;
    Ok(PyErr::from_value(class.call((error.to_string(),), Some(&attributes))?))
}

/// Sets the keyword attributes of `error` and names its class.
fn fill(py: Python<'_>, error: &Error, to: &Bound<'_, PyDict>) -> PyResult<&'static str> {
    match error {
        // `build` returned before; a match without it would let a new variant be forgotten.
        Error::Io { .. } => Ok("PyctrdError"),
        Error::DigestMismatch { subject, expected, actual } => {
            set(to, subject, &expected.to_string(), &actual.to_string())?;
            Ok("DigestMismatchError")
        }
        Error::SizeMismatch { subject, expected, actual } => {
            to.set_item("subject", subject)?;
            to.set_item("expected", expected)?;
            to.set_item("actual", actual)?;
            Ok("SizeMismatchError")
        }
        Error::DiffIdMismatch { subject, expected, actual } => {
            set(to, subject, &expected.to_string(), &actual.to_string())?;
            Ok("DiffIDMismatchError")
        }
        Error::UnsafeArchive { entry, offset, reason } => {
            to.set_item("entry", PyBytes::new(py, entry))?;
            to.set_item("offset", offset)?;
            to.set_item("reason", reason)?;
            Ok("UnsafeArchiveError")
        }
        Error::OverLimit { limit, most, what, entry, offset } => {
            to.set_item("entry", PyBytes::new(py, entry))?;
            to.set_item("offset", offset)?;
            to.set_item("reason", over(limit, *most, what))?;
            to.set_item("limit", limit)?;
            to.set_item(
                "hint",
                format!("if you trust the image: limits=Limits({limit}=…), or --limit {limit}=…"),
            )?;
            Ok("UnsafeArchiveError")
        }
        Error::Invalid { field, value, .. } => {
            to.set_item("field", field)?;
            to.set_item("value", value)?;
            Ok("InvalidError")
        }
        Error::UnmappedId { entry, kind, id, mapped } => {
            to.set_item("feature", format!("owner {kind} {id} of {}", entry.escape_ascii()))?;
            to.set_item("needs", format!("a user namespace that maps {kind} {id}"))?;
            // Ranges follow one another from 1 on: what is missing is what lies between.
            let more = (u64::from(*id) + 1).saturating_sub(*mapped);
            to.set_item(
                "hint",
                format!("give the user {more} more ids in /etc/sub{kind}, or record ownership"),
            )?;
            Ok("UnsupportedError")
        }
        Error::Unsupported { feature, needs } => {
            to.set_item("feature", feature)?;
            to.set_item("needs", needs)?;
            Ok("UnsupportedError")
        }
        Error::NotFound { kind, name } => named(to, kind, name, "NotFoundError"),
        Error::AlreadyExists { kind, name } => named(to, kind, name, "AlreadyExistsError"),
        Error::Conflict { kind, name, state, allowed } => {
            to.set_item("state", state)?;
            to.set_item("allowed", allowed)?;
            named(to, kind, name, "ConflictError")
        }
        Error::Cancelled => Ok("CancelledError"),
    }
}

fn set(to: &Bound<'_, PyDict>, subject: &str, expected: &str, actual: &str) -> PyResult<()> {
    to.set_item("subject", subject)?;
    to.set_item("expected", expected)?;
    to.set_item("actual", actual)
}

fn named(to: &Bound<'_, PyDict>, kind: &str, name: &str, class: &'static str) -> PyResult<&'static str> {
    to.set_item("kind", kind)?;
    to.set_item("name", name)?;
    Ok(class)
}
