//! Bindings of `cas`: locks between processes, and what is left over after a crash.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use rustix::io::Errno;

use crate::cas::{
    Durability, FileLock, Key, LAYERS, OBJECTS, Upload, count_objects as count_keys,
    empty_trash as empty_below, is_object, list_objects as list_keys, object_path, sweep,
    sweep_objects as sweep_keys,
};
use crate::digest::{Algorithm, Digest};
use crate::error::{Error, Result};
use crate::root::{Root, names, open_directory, remove_tree as remove_below};
use crate::tar::index::Place;
use crate::tar::layers::{PACK, read_index};

/// A lock file between processes and threads, made once and never removed.
#[pyclass(frozen, module = "pyctrd._core", name = "FileLock")]
struct PyFileLock(FileLock);

#[pymethods]
impl PyFileLock {
    #[new]
    #[pyo3(signature = (path, *, shared = false))]
    fn new(path: PathBuf, shared: bool) -> Self {
        Self(FileLock::new(path, shared))
    }

    /// Takes it; false where it was not free within `timeout` seconds. Signals are looked at while it waits.
    #[pyo3(signature = (timeout = None))]
    fn acquire(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let limit = timeout.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)));
        let interrupted = || Python::attach(|py| py.check_signals().inspect_err(|_| ()));
        py.detach(|| self.0.acquire(limit, interrupted))
    }

    /// Lets go.
    fn release(&self) {
        self.0.release();
    }

    /// The pid of who took it last, for messages.
    #[getter]
    fn holder(&self) -> Option<u32> {
        self.0.holder()
    }

    fn __enter__(slf: Bound<'_, Self>) -> PyResult<Bound<'_, Self>> {
        slf.get().acquire(slf.py(), None)?;
        Ok(slf)
    }

    fn __exit__(&self, _kind: &Bound<'_, PyAny>, _error: &Bound<'_, PyAny>, _traceback: &Bound<'_, PyAny>) {
        self.0.release();
    }
}

/// A blob that comes in parts, and whose digest is known at its end.
#[pyclass(frozen, module = "pyctrd._core", name = "Upload")]
struct PyUpload {
    root: PathBuf,
    upload: Upload,
}

#[pymethods]
impl PyUpload {
    #[new]
    #[pyo3(signature = (root, upload_id, *, algorithm = "sha256"))]
    fn new(py: Python<'_>, root: PathBuf, upload_id: &str, algorithm: &str) -> PyResult<Self> {
        let algorithm: Algorithm = algorithm.parse()?;
        let upload = py.detach(|| Upload::open(&Root::open(&root)?, upload_id, algorithm))?;
        Ok(Self { root, upload })
    }

    /// Bytes that are there.
    #[getter]
    fn size(&self, py: Python<'_>) -> PyResult<u64> {
        Ok(py.detach(|| self.upload.size())?)
    }

    /// Takes the next bytes; gives how many are there then.
    fn write(&self, py: Python<'_>, data: &[u8]) -> PyResult<u64> {
        Ok(py.detach(|| self.upload.write(data))?)
    }

    /// Raises unless all that came is what the digest names.
    fn verify(&self, py: Python<'_>, digest: &str) -> PyResult<()> {
        let digest: Digest = digest.parse()?;
        Ok(py.detach(|| self.upload.verify(&digest))?)
    }

    /// Verifies it, flushes it, and gives it its name.
    #[pyo3(signature = (digest, *, durability = "batch", journal = None))]
    fn publish(
        &self,
        py: Python<'_>,
        digest: &str,
        durability: &str,
        journal: Option<PathBuf>,
    ) -> PyResult<()> {
        let digest: Digest = digest.parse()?;
        let durability = Durability::parse(durability)?;
        let journal = journal.as_deref();
        Ok(py.detach(|| self.upload.publish(&Root::open(&self.root)?, &digest, durability, journal))?)
    }

    /// Lets go of it, and leaves what came for whoever goes on.
    fn leave(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.upload.leave())?)
    }

    /// Gives it up; nothing is left.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| self.upload.abort());
    }
}

/// In how many seconds something is to end.
fn deadline(seconds: Option<f64>) -> Option<Instant> {
    seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.max(0.0)))
}

/// Takes out of staging what dead processes left there, but for some ingests; gives the ids. What is in the trash then
/// is removed, for `seconds` at most.
#[pyfunction]
#[pyo3(signature = (root, *, keep = Vec::new(), seconds = None))]
fn sweep_ingests(
    py: Python<'_>,
    root: PathBuf,
    keep: Vec<String>,
    seconds: Option<f64>,
) -> PyResult<Vec<String>> {
    Ok(py.detach(|| sweep(&Root::open(root)?, &keep, deadline(seconds)))?)
}

/// Removes what is in the trash, for `seconds` at most; whether nothing is left there.
#[pyfunction]
#[pyo3(signature = (root, *, seconds = None))]
fn empty_trash(py: Python<'_>, root: PathBuf, seconds: Option<f64>) -> PyResult<bool> {
    Ok(py.detach(|| empty_below(&Root::open(root)?, deadline(seconds)))?)
}

/// An object that a layer names.
#[pyclass(frozen, get_all, eq, hash, module = "pyctrd._core", name = "ObjectRef")]
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PyObjectRef {
    /// 64 hex digits.
    key: String,
    /// Its bytes, holes included.
    size: u64,
    /// Whether its key is made as those of sparse files are.
    sparse: bool,
}

fn hex(key: &Key) -> String {
    object_path(key).replace('/', "")
}

fn parse_key(key: &str) -> Result<Key> {
    blake3::Hash::from_hex(key).map(Into::into).map_err(|e| Error::Invalid {
        field: "object",
        value: key.to_owned(),
        reason: e.to_string(),
    })
}

/// The objects that a layer names, each once; none for a layer with a tree.
#[pyfunction]
fn layer_objects(py: Python<'_>, layer: PathBuf) -> PyResult<Vec<PyObjectRef>> {
    let read = || -> Result<Vec<PyObjectRef>> {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        for record in &read_index(&layer)?.records {
            if let Place::Object(key) = record.place
                && seen.insert(key)
            {
                found.push(PyObjectRef { key: hex(&key), size: record.size, sparse: record.sparse });
            }
        }
        Ok(found)
    };
    Ok(py.detach(read)?)
}

/// Whether a root has an object, whole; its content is digested.
#[pyfunction]
fn verify_object(py: Python<'_>, root: PathBuf, r#ref: PyRef<'_, PyObjectRef>) -> PyResult<bool> {
    let object = r#ref.clone();
    let verify = || -> Result<bool> {
        let objects = Root::open(root)?.directory(OBJECTS)?;
        is_object(objects.as_fd(), &parse_key(&object.key)?, object.size, object.sparse)
    };
    Ok(py.detach(verify)?)
}

/// The keys of all objects of a root.
#[pyfunction]
fn list_objects(py: Python<'_>, root: PathBuf) -> PyResult<HashSet<String>> {
    Ok(py.detach(|| -> Result<_> { Ok(list_keys(&Root::open(root)?)?.iter().map(hex).collect()) })?)
}

/// Removes the objects that no layer of a root names, for `seconds` at most: how many, the bytes on disk that this frees,
/// and whether it ended before it had looked at all. None where a layer is being written now: it may count on objects that
/// no other names.
#[pyfunction]
#[pyo3(signature = (root, *, seconds = None))]
fn sweep_objects(py: Python<'_>, root: PathBuf, seconds: Option<f64>) -> PyResult<Option<(u64, u64, bool)>> {
    let deadline = deadline(seconds);
    let run = || {
        let root = Root::open(root)?;
        let mut seen = None;
        // Looked at under the lock: a layer that came before it is among them, and none comes meanwhile.
        sweep_keys(&root, deadline, || {
            let now = Some(indexes(&root)?);
            if now == seen {
                return Ok(None);
            }
            seen = now;
            named_objects(&root, &HashSet::new()).map(Some)
        })
    };
    Ok(py.detach(run)?.map(|swept| (swept.removed, swept.freed_bytes, swept.ended_early)))
}

/// The indexes of the layers on disk: each is written under a name of its own, and never changed. Where it is, its file
/// system's number of it, and when it was written.
fn indexes(root: &Root) -> Result<Vec<(PathBuf, u64, i64, i64)>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for (_, layer) in layers(root)? {
        match layer.join("index").symlink_metadata() {
            Ok(index) => found.push((layer, index.ino(), index.mtime(), index.mtime_nsec())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("look at", LAYERS, &e)),
        }
    }
    Ok(found)
}

/// Counts objects: those that layers name, other than `without` (`diff_ids`), and their bytes on disk; and the same of those
/// that no such layer names. What is being written meanwhile may be counted or not.
#[pyfunction]
#[pyo3(signature = (root, *, without = HashSet::new()))]
fn count_objects(py: Python<'_>, root: PathBuf, without: HashSet<String>) -> PyResult<(u64, u64, u64, u64)> {
    let run = || -> Result<_> {
        let root = Root::open(root)?;
        let kept = named_objects(&root, &without)?;
        count_keys(&root, |key| kept.contains(key))
    };
    let swept = py.detach(run)?;
    Ok((swept.kept, swept.kept_bytes, swept.removed, swept.freed_bytes))
}

/// The layers on disk: their `diff_ids`, and where they are.
fn layers(root: &Root) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let wrong = |e| Error::errno("list", LAYERS, e);
    let layers = root.directory(LAYERS)?;
    for algorithm in names(layers.as_fd()).map_err(wrong)? {
        let algorithm = algorithm.to_string_lossy().into_owned();
        // Whatever cannot be looked at may name any object: to go on without it would sweep what it needs.
        let directory = match open_directory(layers.as_fd(), algorithm.as_bytes()) {
            Ok(directory) => directory,
            Err(Errno::NOTDIR) => continue, // not ours
            Err(e) => return Err(wrong(e)),
        };
        for name in names(directory.as_fd()).map_err(wrong)? {
            let name = name.to_string_lossy();
            let layer = root.path().join(LAYERS).join(&algorithm).join(name.as_ref());
            found.push((format!("{algorithm}:{name}"), layer));
        }
    }
    Ok(found)
}

/// The objects that layers on disk name, all but some.
fn named_objects(root: &Root, without: &HashSet<String>) -> Result<HashSet<Key>> {
    let mut kept = HashSet::new();
    for (diff_id, layer) in layers(root)? {
        let has_pack = layer.join(PACK).try_exists().map_err(|e| Error::io("look at", LAYERS, &e))?;
        if has_pack && !without.contains(&diff_id) {
            kept.extend(read_index(&layer)?.records.iter().filter_map(|record| match record.place {
                Place::Object(key) => Some(key),
                _ => None,
            }));
        }
    }
    Ok(kept)
}

/// Removes a name below a directory with all that is in it, links not followed.
#[pyfunction]
fn remove_tree(py: Python<'_>, directory: PathBuf, name: PathBuf) -> PyResult<()> {
    use std::os::unix::ffi::OsStrExt;
    Ok(py.detach(|| remove_below(Root::open(directory)?.as_fd(), name.as_os_str().as_bytes()))?)
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyFileLock>()?;
    module.add_class::<PyUpload>()?;
    module.add_class::<PyObjectRef>()?;
    module.add_function(wrap_pyfunction!(layer_objects, module)?)?;
    module.add_function(wrap_pyfunction!(verify_object, module)?)?;
    module.add_function(wrap_pyfunction!(list_objects, module)?)?;
    module.add_function(wrap_pyfunction!(sweep_objects, module)?)?;
    module.add_function(wrap_pyfunction!(count_objects, module)?)?;
    module.add_function(wrap_pyfunction!(sweep_ingests, module)?)?;
    module.add_function(wrap_pyfunction!(empty_trash, module)?)?;
    module.add_function(wrap_pyfunction!(remove_tree, module)?)
}
