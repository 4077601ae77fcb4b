//! Bindings of `pipeline::Archive`.

use std::fs::File;
use std::os::fd::RawFd;
use std::sync::Mutex;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::lock;
use super::pipeline::PyLimits;
use super::root::borrow;
use crate::error::{Error, Result};
use crate::pipeline::{Archive, Member};
use crate::tar::{Kind, Limits};

/// A member of an archive, by its header.
#[pyclass(frozen, module = "pyctrd._core", name = "Member")]
struct PyMember(Member);

#[pymethods]
impl PyMember {
    /// As it stands in the archive.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.name)
    }

    /// Target of a symbolic or hard link.
    #[getter]
    fn link<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.link)
    }

    /// "file", "directory", "symlink", "hardlink", "character", "block" or "fifo".
    #[getter]
    fn kind(&self) -> &'static str {
        match self.0.kind {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
            Kind::Hardlink => "hardlink",
            Kind::Character => "character",
            Kind::Block => "block",
            Kind::Fifo => "fifo",
        }
    }

    /// Bytes of its content, holes included.
    #[getter]
    fn size(&self) -> u64 {
        self.0.size
    }

    /// Where its content begins in the tar.
    #[getter]
    fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Whether the archive has its content with holes left out.
    #[getter]
    fn sparse(&self) -> bool {
        self.0.sparse
    }
}

/// A tar on a descriptor, plain or compressed, told member by member.
#[pyclass(frozen, module = "pyctrd._core", name = "ArchiveReader")]
struct PyArchiveReader {
    archive: Mutex<Archive>,
    check: Option<Py<PyAny>>,
}

#[pymethods]
impl PyArchiveReader {
    #[new]
    #[pyo3(signature = (source, *, limits = None, check = None))]
    fn new(
        py: Python<'_>,
        source: RawFd,
        limits: Option<PyLimits>,
        check: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let source = borrow(source)?;
        let limits = limits.map_or_else(Limits::default, Limits::from);
        let archive = py.detach(|| Archive::open(duplicate(source)?, limits))?;
        Ok(Self { archive: Mutex::new(archive), check })
    }

    /// Whether members can be read where they are in the file, in any order.
    #[getter]
    fn in_place(&self, py: Python<'_>) -> bool {
        py.detach(|| lock(&self.archive).is_in_place())
    }

    /// The next member; None after the last. While it waits for bytes signals are looked at, and `check` is called, which
    /// may raise.
    fn next(&self, py: Python<'_>) -> PyResult<Option<PyMember>> {
        // Nobody waits for this lock with the interpreter in hand, so that it can be asked for within.
        Ok(py.detach(|| lock(&self.archive).next(|| self.look()))?.map(PyMember))
    }

    /// Writes the current member's content to a file, from its beginning.
    fn copy(&self, py: Python<'_>, dest: RawFd) -> PyResult<()> {
        let dest = borrow(dest)?;
        py.detach(|| lock(&self.archive).copy(&duplicate(dest)?, || self.look()))
    }
}

impl PyArchiveReader {
    fn look(&self) -> PyResult<()> {
        Python::attach(|py| {
            py.check_signals()?;
            self.check.as_ref().map_or(Ok(()), |check| check.call0(py).map(drop))
        })
    }
}

fn duplicate(fd: std::os::fd::BorrowedFd<'_>) -> Result<File> {
    fd.try_clone_to_owned().map(File::from).map_err(|e| Error::io("duplicate", "", &e))
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyMember>()?;
    module.add_class::<PyArchiveReader>()
}
