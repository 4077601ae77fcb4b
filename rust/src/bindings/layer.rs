//! Bindings of `tar`: layers' indexes, and layers put together.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::lock;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::root::Root;
use crate::tar::changes::{Change, changes, same_content};
use crate::tar::compose::{Contents, Sample, compose, compose_sample as compose_sample_at};
use crate::tar::frame::rebuild;
use crate::tar::index::{Hides, Index, Place, Record, What};
use crate::tar::layers::{LayerDirectory, open_layers, read_forms, read_index};
use crate::tar::settle::{compose_directory as compose_directory_at, copy_directory, flatten, settle};
use crate::tar::view::{Names, Source, View};

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

    /// Where its content begins in the layer's uncompressed archive; None where nothing is stored, or it is not known.
    #[getter]
    fn offset(&self) -> Option<u64> {
        self.record().offset
    }

    /// BLAKE3 of its content, where the layer was made with it.
    #[getter]
    fn blake3<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.record().blake3.map(|digest| PyBytes::new(py, &digest))
    }

    /// Position in its layer's index; with `layer`, the same for all names of one file of a view.
    #[getter]
    fn position(&self) -> usize {
        self.record
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

    /// Bytes of the layer's blocks; None for a layer that has none.
    #[getter]
    fn blocks_bytes(&self) -> Option<u64> {
        self.0[0].blocks
    }

    /// The least bytes that the layer's pack has; None for a layer without one.
    #[getter]
    fn pack_bytes(&self) -> Option<u64> {
        let index = &self.0[0];
        let ends = index.records.iter().map(|record| match record.place {
            Place::Packed(offset) => offset.saturating_add(record.size),
            _ => 0,
        });
        index.pack.map(|_| ends.max().unwrap_or(0))
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
struct PyImageView(Arc<Layers>);

/// What a view is made of.
struct Layers {
    directories: Vec<LayerDirectory>,
    indexes: Arc<Vec<Index>>,
    /// How the layers come together, once somebody asked.
    names: Mutex<Option<Names>>,
}

impl Layers {
    /// Looks at the layers put together. One caller at a time; none of them has the interpreter meanwhile.
    fn look<T>(&self, act: impl FnOnce(&View<'_>) -> T) -> Result<T> {
        let mut names = lock(&self.names);
        let view = match names.take() {
            Some(known) => View::again(&self.indexes, known),
            None => View::applied(&self.indexes)?,
        };
        let found = act(&view);
        *names = Some(view.into_names());
        Ok(found)
    }

    fn entry(&self, path: Vec<u8>, source: Source) -> PyEntry {
        PyEntry { path, indexes: Arc::clone(&self.indexes), layer: source.layer, record: source.record }
    }

    fn file(&self, source: Source) -> (&LayerDirectory, &Record) {
        (&self.directories[source.layer], &self.indexes[source.layer].records[source.record])
    }

    /// A number for each layer that is the same for the same directory.
    fn identities<'a>(&'a self, known: &mut HashMap<&'a Path, usize>) -> Vec<usize> {
        if self.directories.is_empty() {
            return vec![usize::MAX]; // the root that is there of no layers
        }
        let numbers = self.directories.iter().map(|layer| {
            let next = known.len();
            *known.entry(layer.path()).or_insert(next)
        });
        numbers.collect()
    }
}

impl PyImageView {
    fn look(&self, py: Python<'_>, path: &[u8], follow: bool) -> PyResult<Option<PyEntry>> {
        let find = || self.0.look(|view| view.find(path, follow));
        Ok(py.detach(find)?.map(|(path, source)| self.0.entry(path, source)))
    }
}

#[pymethods]
impl PyImageView {
    /// Opens layers, the lowest first.
    #[new]
    fn new(py: Python<'_>, layers: Vec<PathBuf>) -> PyResult<Self> {
        let (directories, mut indexes) = py.detach(|| open_layers(&layers))?;
        if indexes.is_empty() {
            indexes.push(Index::empty()); // of no layers there is a root all the same
        }
        let names = Mutex::new(None);
        Ok(Self(Arc::new(Layers { directories, indexes: Arc::new(indexes), names })))
    }

    /// What a path leads to, links followed, and what is below it, `depth` levels down (all by default): parents before
    /// what is in them, names sorted. None where there is nothing.
    #[pyo3(signature = (path, *, depth = None))]
    fn walk(&self, py: Python<'_>, path: &[u8], depth: Option<usize>) -> PyResult<Option<PyViewWalk>> {
        let depth = depth.unwrap_or(usize::MAX);
        let found = py.detach(|| self.0.look(|view| view.walk(path, depth)))?;
        Ok(found.map(|found| PyViewWalk { layers: Arc::clone(&self.0), left: Mutex::new(found.into_iter()) }))
    }

    /// Whether all of its layers are still there. One that came again meanwhile is another.
    fn is_current(&self, py: Python<'_>) -> PyResult<bool> {
        let look = || -> Result<bool> {
            for layer in &self.0.directories {
                if !layer.is_there()? {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        Ok(py.detach(look)?)
    }

    /// What a path leads to, links followed inside the view; None where there is nothing.
    fn find(&self, py: Python<'_>, path: &[u8]) -> PyResult<Option<PyEntry>> {
        self.look(py, path, true)
    }

    /// As `find`, but a link at the end of the path is not followed.
    fn find_link(&self, py: Python<'_>, path: &[u8]) -> PyResult<Option<PyEntry>> {
        self.look(py, path, false)
    }

    /// Opens the regular file that a path leads to, for reading; the caller closes the descriptor.
    fn open(&self, py: Python<'_>, path: &[u8]) -> PyResult<RawFd> {
        let open = || -> Result<RawFd> {
            let missing = |kind| Error::NotFound { kind, name: String::from_utf8_lossy(path).into_owned() };
            let (_, source) = self.0.look(|view| view.find(path, true))?.ok_or_else(|| missing("file"))?;
            let (_, record) = self.0.file(source);
            if record.what != What::File {
                return Err(missing("regular file"));
            }
            Ok(self.0.directories[source.layer].open(record)?.into_raw_fd())
        };
        Ok(py.detach(open)?)
    }

    /// What another view has otherwise than this one: parents before what is in them, names sorted.
    fn changes(&self, py: Python<'_>, other: PyRef<'_, Self>) -> PyResult<PyViewChanges> {
        let (before, after) = (Arc::clone(&self.0), Arc::clone(&other.0));
        let compare = || -> Result<Vec<Change>> {
            let mut known = HashMap::new();
            let identities = (before.identities(&mut known), after.identities(&mut known));
            let views = (View::applied(&before.indexes)?, View::applied(&after.indexes)?);
            Ok(changes(&views.0, &views.1, (&identities.0, &identities.1)))
        };
        let found = py.detach(compare)?;
        Ok(PyViewChanges { before, after, left: Mutex::new(found.into_iter()) })
    }
}

/// A walk over a view, read a part at a time.
#[pyclass(frozen, module = "pyctrd._core", name = "ViewWalk")]
struct PyViewWalk {
    layers: Arc<Layers>,
    left: Mutex<std::vec::IntoIter<(Vec<u8>, Source)>>,
}

#[pymethods]
impl PyViewWalk {
    /// The next entries, at most `count`; none at the end.
    fn read(&self, count: usize) -> Vec<PyEntry> {
        let mut left = lock(&self.left);
        left.by_ref().take(count).map(|(path, source)| self.layers.entry(path, source)).collect()
    }
}

/// The differences of two views, read a part at a time.
#[pyclass(frozen, module = "pyctrd._core", name = "ViewChanges")]
struct PyViewChanges {
    before: Arc<Layers>,
    after: Arc<Layers>,
    left: Mutex<std::vec::IntoIter<Change>>,
}

impl PyViewChanges {
    /// Whether it is a difference: where the indexes leave it open, the files are read.
    fn differs(&self, change: &Change) -> Result<bool> {
        let (Some(one), Some(other)) = (change.before, change.after) else { return Ok(true) };
        if !change.doubtful {
            return Ok(true);
        }
        Ok(!same_content(self.before.file(one), self.after.file(other))?)
    }
}

#[pymethods]
impl PyViewChanges {
    /// The next differences, at most `count`, each with what was there and what is; none at the end.
    fn read(&self, py: Python<'_>, count: usize) -> PyResult<Vec<(Option<PyEntry>, Option<PyEntry>)>> {
        let next = || -> Result<Vec<Change>> {
            let mut left = lock(&self.left);
            let mut found = Vec::new();
            while found.len() < count
                && let Some(change) = left.next()
            {
                if self.differs(&change)? {
                    found.push(change);
                }
            }
            Ok(found)
        };
        let entry = |layers: &Layers, path: &[u8], source: Option<Source>| {
            source.map(|source| layers.entry(path.to_vec(), source))
        };
        let pairs = py.detach(next)?.into_iter().map(|change| {
            let before = entry(&self.before, &change.path, change.before);
            (before, entry(&self.after, &change.path, change.after))
        });
        Ok(pairs.collect())
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

/// Whether an unpacked layer has a pack and whether it has blocks, by what its index says in front.
#[pyfunction]
fn layer_forms(py: Python<'_>, layer: PathBuf) -> PyResult<(bool, bool)> {
    Ok(py.detach(|| read_forms(&layer))?)
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

/// Writes the image of layers that were unpacked as objects, or as `blocks`, into an empty directory, as `image.erofs`, and
/// beside it an empty `root` with the attributes of its root. The file system is known by `identity`. Gives the positions of
/// the layers whose blocks it is to be mounted with, in their order.
#[pyfunction]
#[pyo3(signature = (layers, target, identity, *, blocks = false))]
fn compose_layers(
    py: Python<'_>,
    layers: Vec<PathBuf>,
    target: PathBuf,
    identity: &str,
    blocks: bool,
) -> PyResult<Vec<usize>> {
    let contents = if blocks { Contents::Blocks } else { Contents::Objects };
    let run = || -> Result<Vec<usize>> {
        let (layers, indexes) = open_layers(&layers)?;
        compose(&layers, &indexes, &Root::open(target)?, identity, contents)
    };
    Ok(py.detach(run)?)
}

/// Writes the directory of layers that were unpacked as objects into an empty one: with holes that name objects.
#[pyfunction]
fn compose_directory(py: Python<'_>, layers: Vec<PathBuf>, target: PathBuf) -> PyResult<()> {
    let run = || -> Result<()> {
        let (layers, indexes) = open_layers(&layers)?;
        compose_directory_at(&layers, &indexes, &Root::open(target)?)
    };
    Ok(py.detach(run)?)
}

/// Writes `image.erofs` of one `file` into a directory: an "image" of an object, of "blocks", or, as `tree`, a "directory".
#[pyfunction]
fn compose_sample(py: Python<'_>, target: PathBuf, content: &[u8], kind: &str) -> PyResult<()> {
    let sample = match kind {
        "directory" => Sample::Directory,
        "blocks" => Sample::Blocks,
        "image" => Sample::Image,
        _ => {
            let reason = "expected image, directory or blocks".to_owned();
            return Err(Error::Invalid { field: "kind", value: kind.to_owned(), reason }.into());
        }
    };
    Ok(py.detach(|| compose_sample_at(&Root::open(target)?, content, sample))?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEntry>()?;
    module.add_class::<PyLayerIndex>()?;
    module.add_class::<PyImageView>()?;
    module.add_class::<PyViewWalk>()?;
    module.add_class::<PyViewChanges>()?;
    module.add_function(wrap_pyfunction!(settle_layers, module)?)?;
    module.add_function(wrap_pyfunction!(flatten_layers, module)?)?;
    module.add_function(wrap_pyfunction!(layer_forms, module)?)?;
    module.add_function(wrap_pyfunction!(rebuild_layer, module)?)?;
    module.add_function(wrap_pyfunction!(copy_attributes, module)?)?;
    module.add_function(wrap_pyfunction!(compose_layers, module)?)?;
    module.add_function(wrap_pyfunction!(compose_directory, module)?)?;
    module.add_function(wrap_pyfunction!(compose_sample, module)?)
}
