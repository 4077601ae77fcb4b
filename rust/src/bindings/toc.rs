//! Bindings of `toc`: what of a layer with a table of contents has to be fetched, and its tar from that.

use std::fs::File;
use std::os::fd::RawFd;
use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyType;

use super::pipeline::{PyIngest, PyLimits};
use super::root::borrow;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::pipeline::Block;
use crate::tar::Limits;
use crate::tar::digests::KnownFiles;
use crate::toc::{self, FOOTER_BYTES, Plan, Table};

/// What of a layer is fetched, and what is here.
#[pyclass(frozen, module = "pyctrd._core", name = "LayerPlan")]
struct PyLayerPlan {
    plan: Plan,
    limits: Limits,
}

#[pymethods]
impl PyLayerPlan {
    /// Of a zstd:chunked layer, by its table and its tar-split, as they stand in the blob.
    #[classmethod]
    #[pyo3(signature = (table, split, *, digest, end, layers, gap, limits = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn zstd_chunked(
        _: &Bound<'_, PyType>,
        py: Python<'_>,
        table: &[u8],
        split: Option<&[u8]>,
        digest: &str,
        end: u64,
        layers: Vec<PathBuf>,
        gap: u64,
        limits: Option<PyLimits>,
    ) -> PyResult<Self> {
        let digest: Digest = digest.parse()?;
        let limits = limits.map_or_else(Limits::default, Limits::from);
        // Both are immutable and held by the caller's frame: other threads cannot change them meanwhile.
        Ok(py.detach(|| {
            Self::of(toc::zstd_chunked(table, &digest, split, end, limits)?, &layers, gap, limits)
        })?)
    }

    /// Of an eStargz layer, by the member that has its table, and where that begins.
    #[classmethod]
    #[pyo3(signature = (member, *, digest, start, layers, gap, limits = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn estargz(
        _: &Bound<'_, PyType>,
        py: Python<'_>,
        member: &[u8],
        digest: &str,
        start: u64,
        layers: Vec<PathBuf>,
        gap: u64,
        limits: Option<PyLimits>,
    ) -> PyResult<Self> {
        let digest: Digest = digest.parse()?;
        let limits = limits.map_or_else(Limits::default, Limits::from);
        Ok(py.detach(|| Self::of(toc::estargz(member, &digest, start, limits)?, &layers, gap, limits))?)
    }

    /// How many ranges there are.
    #[getter]
    fn range_count(&self) -> usize {
        self.plan.ranges().len()
    }

    /// First byte and the one behind the last, of each range that has to be fetched; in order.
    #[getter]
    fn ranges(&self) -> Vec<(u64, u64)> {
        self.plan.ranges().iter().map(|range| (range.start, range.end)).collect()
    }

    /// Bytes of all ranges.
    #[getter]
    fn fetched_bytes(&self) -> u64 {
        self.plan.ranges().iter().map(|range| range.end - range.start).sum()
    }

    /// Bytes of contents that are here and not fetched.
    #[getter]
    fn known_bytes(&self) -> u64 {
        self.plan.known_bytes()
    }

    /// Writes the layer's tar into an ingest, from a file that has the ranges, each at its place, of a blob of `size` bytes.
    #[pyo3(signature = (ingest, source, *, size))]
    fn rebuild(&self, py: Python<'_>, ingest: &PyIngest, source: RawFd, size: u64) -> PyResult<()> {
        let source = borrow(source)?;
        let pipeline = ingest.pipeline();
        let work = || -> Result<()> {
            let source = source.try_clone_to_owned().map_err(|e| Error::io("duplicate", "", &e))?;
            let mut current: Option<(Block, usize)> = None;
            self.plan.rebuild(&File::from(source), size, self.limits, |mut bytes| {
                while !bytes.is_empty() {
                    let (mut block, filled) = match current.take() {
                        Some(current) => current,
                        None => (pipeline.block()?, 0),
                    };
                    let space = &mut block.space()[filled..];
                    let count = bytes.len().min(space.len());
                    space[..count].copy_from_slice(&bytes[..count]);
                    bytes = &bytes[count..];
                    if count < space.len() {
                        current = Some((block, filled + count));
                    } else {
                        block.set_filled(filled + count);
                        pipeline.push(block)?;
                    }
                }
                Ok(())
            })?;
            if let Some((mut block, filled)) = current {
                block.set_filled(filled);
                pipeline.push(block)?;
            }
            Ok(())
        };
        Ok(py.detach(work)?)
    }
}

impl PyLayerPlan {
    fn of(table: Table, layers: &[PathBuf], gap: u64, limits: Limits) -> Result<Self> {
        let known = KnownFiles::find(layers, &table.wanted())?;
        Ok(Self { plan: table.plan(known, gap), limits })
    }
}

/// Where in a blob the member of an eStargz layer's table begins, by the blob's last bytes.
#[pyfunction]
fn estargz_table_offset(footer: &[u8]) -> PyResult<u64> {
    Ok(toc::table_offset(footer)?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyLayerPlan>()?;
    module.add("ESTARGZ_FOOTER_BYTES", FOOTER_BYTES)?;
    module.add_function(wrap_pyfunction!(estargz_table_offset, module)?)
}
