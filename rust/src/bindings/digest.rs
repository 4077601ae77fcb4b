//! Bindings of `digest`: hashing with no engine.

use std::fs::File;
use std::path::PathBuf;

use pyo3::prelude::*;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};

/// The digest of a file's bytes, as `algorithm:hex`.
#[pyfunction]
#[pyo3(signature = (path, *, algorithm = "sha256"))]
fn digest_file(py: Python<'_>, path: PathBuf, algorithm: &str) -> PyResult<String> {
    let algorithm: Algorithm = algorithm.parse()?;
    Ok(py.detach(|| hash_file(&path, algorithm))?.to_string())
}

/// The SHA-256 digest of a few bytes: names that are made of others. Loading `hashlib` for that takes 2 ms.
#[pyfunction]
fn digest_bytes(py: Python<'_>, content: &[u8]) -> String {
    py.detach(|| {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content);
        hasher.finish().to_string()
    })
}

/// Raises unless the file's bytes hash to `digest`.
#[pyfunction]
fn verify_file(py: Python<'_>, path: PathBuf, digest: &str) -> PyResult<()> {
    let expected: Digest = digest.parse()?;
    let actual = py.detach(|| hash_file(&path, expected.algorithm()))?;
    if actual == expected {
        return Ok(());
    }
    let (expected, actual) = (Box::new(expected), Box::new(actual));
    Err(Error::DigestMismatch { subject: path.display().to_string(), expected, actual }.into())
}

fn hash_file(path: &PathBuf, algorithm: Algorithm) -> Result<Digest> {
    let file = File::open(path).map_err(|e| Error::io("open", path, &e))?;
    Hasher::read(algorithm, file).map_err(|e| Error::io("read", path, &e))
}

/// Adds this room's names to the module.
pub(super) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(digest_file, module)?)?;
    module.add_function(wrap_pyfunction!(digest_bytes, module)?)?;
    module.add_function(wrap_pyfunction!(verify_file, module)?)
}
