//! Bindings of `pipeline::convert`: a layer of the store into a blob of another form.

use std::path::PathBuf;

use pyo3::prelude::*;

use super::pipeline::PyLimits;
use crate::compression::{Compression, levels};
use crate::pipeline::{Conversion, ConversionOptions, Packing, Repacked, Source};
use crate::tar::Limits;

/// A blob that was written.
#[pyclass(frozen, get_all, module = "pyctrd._core", name = "Converted")]
#[derive(Debug)]
struct PyConverted {
    /// Of its bytes.
    digest: String,
    /// Their number.
    size_bytes: u64,
    /// Bytes of the tar.
    tar_bytes: u64,
    /// Entries of the tar.
    entries: u64,
    /// What its descriptor must say, so that its table of contents is found.
    annotations: Vec<(&'static str, String)>,
    /// Why it has none; "" where it has one.
    without_table: &'static str,
}

impl From<Repacked> for PyConverted {
    fn from(repacked: Repacked) -> Self {
        let Repacked { digest, size, tar_bytes, entries, table } = repacked;
        Self {
            digest: digest.to_string(),
            size_bytes: size,
            tar_bytes,
            entries,
            annotations: table.map_or_else(|_| Vec::new(), |table| table.annotations()),
            without_table: table.err().unwrap_or(""),
        }
    }
}

/// A layer that is being written in another form. Run it in one thread; another may give it up.
#[pyclass(frozen, module = "pyctrd._core", name = "Conversion")]
struct PyConversion(Conversion);

#[pymethods]
impl PyConversion {
    /// `source`: a blob of this digest and size, or, without these, an unpacked layer's directory.
    #[new]
    #[pyo3(signature = (source, dest, *, diff_id, digest = None, size = 0, compression = "gzip", level = None, limits = None))]
    #[allow(clippy::too_many_arguments, reason = "keyword-only in Python")]
    fn new(
        py: Python<'_>,
        source: PathBuf,
        dest: PathBuf,
        diff_id: &str,
        digest: Option<&str>,
        size: u64,
        compression: &str,
        level: Option<u32>,
        limits: Option<PyLimits>,
    ) -> PyResult<Self> {
        let source = match digest {
            Some(digest) => Source::Blob(source, digest.parse()?, size),
            None => Source::Layer(source),
        };
        let options = ConversionOptions {
            dest,
            packing: Packing::parse(compression)?,
            level,
            diff_id: diff_id.parse()?,
            limits: limits.map_or_else(Limits::default, Limits::from),
        };
        Ok(Self(py.detach(|| Conversion::start(source, options))?))
    }

    /// Waits until the new blob is written.
    fn run(&self, py: Python<'_>) -> PyResult<PyConverted> {
        Ok(py.detach(|| self.0.run())?.into())
    }

    /// Gives it up, from any thread.
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.0.cancel());
    }

    /// Bytes that were read so far.
    #[getter]
    fn bytes_read(&self) -> u64 {
        self.0.bytes_read()
    }
}

/// The levels of each compression: its name, the least, its own, the most.
fn compression_levels() -> Vec<(&'static str, u32, u32, u32)> {
    let named = [
        ("gzip", Compression::Gzip),
        ("zstd", Compression::Zstd),
        ("zstd:chunked", Packing::Chunked.compression()),
    ];
    let levels = |(name, compression)| levels(compression).map(|(least, own, most)| (name, least, own, most));
    named.into_iter().filter_map(levels).collect()
}

/// "none", "gzip" or "zstd", by the first four bytes of a blob.
#[pyfunction]
fn detect_compression(prefix: &[u8]) -> &'static str {
    Compression::detect(prefix).name()
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyConverted>()?;
    module.add_class::<PyConversion>()?;
    module.add_function(wrap_pyfunction!(detect_compression, module)?)?;
    module.add("COMPRESSION_LEVELS", compression_levels())
}
