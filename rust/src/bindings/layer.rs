//! Bindings of `tar`: layers' indexes, and layers put together.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::root::Root;
use crate::tar::frame::rebuild;
use crate::tar::index::{Hides, Index, Record, What};
use crate::tar::settle::{LayerDirectory, copy_directory, flatten, open_layers, read_index, settle};
use crate::tar::view::View;

/// One name of a layer or of an image.
#[pyclass(frozen, module = "pyctrd._core", name = "Entry")]
struct PyEntry {
    path: Vec<u8>,
    indexes: Arc<Vec<Index>>,
    layer: usize,
    record: usize,
}

impl PyEntry {
    fn record(&self) -> &Record {
        &self.indexes[self.layer].records[self.record]
    }
}

#[pymethods]
impl PyEntry {
    /// From the root, without a slash in front; any bytes.
    #[getter]
    fn path<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.path)
    }

    /// "file", "directory", "symlink", "hardlink", "character", "block", "fifo", "whiteout" or "foreign".
    #[getter]
    fn kind(&self) -> &'static str {
        self.record().what.name()
    }

    /// Permission and set-id bits.
    #[getter]
    fn mode(&self) -> u32 {
        self.record().mode
    }

    /// Owner.
    #[getter]
    fn uid(&self) -> u32 {
        self.record().uid
    }

    /// Group.
    #[getter]
    fn gid(&self) -> u32 {
        self.record().gid
    }

    /// Last modification, in nanoseconds since 1970.
    #[getter]
    fn mtime_ns(&self) -> i128 {
        let time = self.record().mtime;
        i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds)
    }

    /// Bytes of a file, holes included.
    #[getter]
    fn size(&self) -> u64 {
        self.record().size
    }

    /// Major and minor number of a device.
    #[getter]
    fn device(&self) -> (u32, u32) {
        self.record().device
    }

    /// Target of a link.
    #[getter]
    fn link<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.record().link)
    }

    /// Names and values.
    #[getter]
    fn xattrs<'py>(&self, py: Python<'py>) -> Vec<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let pairs = self.record().xattrs.iter();
        pairs.map(|(name, value)| (PyBytes::new(py, name), PyBytes::new(py, value))).collect()
    }

    /// A directory that the layer does not list.
    #[getter]
    fn implied(&self) -> bool {
        self.record().implied
    }

    /// Nothing of lower layers shows in this directory.
    #[getter]
    fn opaque(&self) -> bool {
        self.record().hides != Hides::Nothing
    }

    /// Position of the layer that it comes from, the lowest being 0.
    #[getter]
    fn layer(&self) -> usize {
        self.layer
    }

    fn __repr__(&self) -> String {
        format!("Entry({} '{}')", self.record().what.name(), self.path.escape_ascii())
    }
}

/// A layer's index, read and checked.
#[pyclass(frozen, module = "pyctrd._core", name = "LayerIndex")]
struct PyLayerIndex(Arc<Vec<Index>>);

#[pymethods]
impl PyLayerIndex {
    #[new]
    fn new(py: Python<'_>, layer: PathBuf) -> PyResult<Self> {
        let index = py.detach(|| read_index(&layer))?;
        Ok(Self(Arc::new(vec![index])))
    }

    fn __len__(&self) -> usize {
        self.0[0].records.len()
    }

    /// Every entry, parents before what is in them, names sorted.
    fn walk(&self) -> Vec<PyEntry> {
        let records = self.0[0].records.iter().enumerate();
        records
            .map(|(record, found)| PyEntry {
                path: found.path.clone(),
                indexes: Arc::clone(&self.0),
                layer: 0,
                record,
            })
            .collect()
    }

    /// The entry of a path, links not followed; None where there is none.
    fn find(&self, path: &[u8]) -> Option<PyEntry> {
        let record = self.0[0].records.iter().position(|record| record.path == path)?;
        Some(PyEntry { path: path.to_vec(), indexes: Arc::clone(&self.0), layer: 0, record })
    }
}

/// The merged view of several layers, from their indexes alone.
#[pyclass(frozen, module = "pyctrd._core", name = "ImageView")]
struct PyImageView {
    layers: Vec<LayerDirectory>,
    indexes: Arc<Vec<Index>>,
}

impl PyImageView {
    fn entry(&self, path: Vec<u8>, source: crate::tar::view::Source) -> PyEntry {
        PyEntry { path, indexes: Arc::clone(&self.indexes), layer: source.layer, record: source.record }
    }
}

#[pymethods]
impl PyImageView {
    /// Opens layers, the lowest first.
    #[new]
    fn new(py: Python<'_>, layers: Vec<PathBuf>) -> PyResult<Self> {
        let (layers, indexes) = py.detach(|| open_layers(&layers))?;
        Ok(Self { layers, indexes: Arc::new(indexes) })
    }

    /// Every entry of the view, parents before what is in them, names sorted.
    fn walk(&self, py: Python<'_>) -> PyResult<Vec<PyEntry>> {
        let found = py.detach(|| View::applied(&self.indexes).map(|view| view.walk()))?;
        Ok(found.into_iter().map(|(path, source)| self.entry(path, source)).collect())
    }

    /// What a path leads to, links followed inside the view; None where there is nothing.
    fn find(&self, py: Python<'_>, path: &[u8]) -> PyResult<Option<PyEntry>> {
        let found = py.detach(|| View::applied(&self.indexes).map(|view| view.find(path, true)))?;
        Ok(found.map(|source| self.entry(path.to_vec(), source)))
    }

    /// Opens the regular file that a path leads to, for reading; the caller closes the descriptor.
    fn open(&self, py: Python<'_>, path: &[u8]) -> PyResult<RawFd> {
        let open = || -> Result<RawFd> {
            let view = View::applied(&self.indexes)?;
            let missing =
                || Error::NotFound { kind: "file", name: String::from_utf8_lossy(path).into_owned() };
            let source = view.find(path, true).ok_or_else(missing)?;
            let record = view.record(source);
            if record.what != What::File {
                return Err(missing());
            }
            Ok(self.layers[source.layer].open(record)?.into_raw_fd())
        };
        Ok(py.detach(open)?)
    }
}

/// Writes an image's fix-up layer into an empty directory; whether there was anything to write.
#[pyfunction]
fn settle_layers(py: Python<'_>, layers: Vec<PathBuf>, target: PathBuf) -> PyResult<bool> {
    let run = || -> Result<bool> {
        let (layers, indexes) = open_layers(&layers)?;
        settle(&layers, &indexes, &Root::open(target)?)
    };
    Ok(py.detach(run)?)
}

/// Writes the merged view of layers into an empty directory.
#[pyfunction]
fn flatten_layers(py: Python<'_>, layers: Vec<PathBuf>, target: PathBuf) -> PyResult<()> {
    let run = || -> Result<()> {
        let (layers, indexes) = open_layers(&layers)?;
        flatten(&layers, &indexes, &Root::open(target)?)
    };
    Ok(py.detach(run)?)
}

/// Writes an unpacked layer's tar again, bit for bit as it came, into a new file (None only checks that it can be
/// done); its bytes. Raises where they do not hash to `diff_id`.
#[pyfunction]
#[pyo3(signature = (layer, diff_id, dest = None))]
fn rebuild_layer(py: Python<'_>, layer: PathBuf, diff_id: &str, dest: Option<PathBuf>) -> PyResult<u64> {
    let expected: Digest = diff_id.parse()?;
    let run = || -> Result<u64> {
        let mut hasher = Hasher::new(expected.algorithm());
        let mut file = dest.as_ref().map(|path| create_new(path).map(BufWriter::new)).transpose()?;
        let mut count = 0;
        rebuild(&Root::open(&layer)?, |bytes| {
            hasher.update(bytes);
            count += bytes.len() as u64;
            match (&mut file, &dest) {
                (Some(file), Some(path)) => file.write_all(bytes).map_err(|e| Error::io("write", path, &e)),
                _ => Ok(()),
            }
        })?;
        if let (Some(mut file), Some(path)) = (file, &dest) {
            file.flush().map_err(|e| Error::io("write", path, &e))?;
        }
        let actual = hasher.finish();
        if actual == expected {
            return Ok(count);
        }
        let subject = layer.display().to_string();
        Err(Error::DiffIdMismatch { subject, expected: Box::new(expected), actual: Box::new(actual) })
    };
    Ok(py.detach(run)?)
}

fn create_new(path: &PathBuf) -> Result<File> {
    File::create_new(path).map_err(|e| Error::io("create", path, &e))
}

/// Gives a directory the mode, owner, times and xattrs of another.
#[pyfunction]
fn copy_attributes(py: Python<'_>, source: PathBuf, target: PathBuf) -> PyResult<()> {
    Ok(py.detach(|| copy_directory(&Root::open(source)?, &Root::open(target)?))?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEntry>()?;
    module.add_class::<PyLayerIndex>()?;
    module.add_class::<PyImageView>()?;
    module.add_function(wrap_pyfunction!(settle_layers, module)?)?;
    module.add_function(wrap_pyfunction!(flatten_layers, module)?)?;
    module.add_function(wrap_pyfunction!(rebuild_layer, module)?)?;
    module.add_function(wrap_pyfunction!(copy_attributes, module)?)
}
