//! Unpacked layers, opened to read files from: from a layer's tree, or from its pack and the store's objects.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use super::index::{self, Index, Place, Record};
use crate::cas::{OBJECTS, object_path, open_object};
use crate::error::{Error, Result};
use crate::root::{Root, to_path};

/// Short contents, one after the other, in the directory of a layer that was unpacked as objects.
pub const PACK: &str = "pack";
/// A store is so many directories above a layer: `layers/<algorithm>/<hex>`.
const LEVELS: usize = 3;

/// An unpacked layer, to read files from.
#[derive(Debug)]
pub struct LayerDirectory {
    path: PathBuf,
    files: Files,
}

/// Where its files' contents are.
#[derive(Debug)]
enum Files {
    Tree(Root),
    /// The pack, and where the store's objects are: that is opened when one is asked for.
    Objects(File, PathBuf),
}

/// Opens unpacked layers and reads their indexes, lowest first.
///
/// # Errors
/// [`Error::NotFound`] for a layer that is not there, [`Error::Invalid`] for a damaged index.
pub fn open_layers<P: AsRef<Path>>(paths: &[P]) -> Result<(Vec<LayerDirectory>, Vec<Index>)> {
    let mut layers = Vec::with_capacity(paths.len());
    let mut indexes = Vec::with_capacity(paths.len());
    for path in paths {
        let path = path.as_ref();
        let index = read_index(path)?;
        layers.push(LayerDirectory::open_layer(path, &index)?);
        indexes.push(index);
    }
    Ok((layers, indexes))
}

/// Reads the index of an unpacked layer.
///
/// # Errors
/// As [`open_layers`].
pub fn read_index(layer: &Path) -> Result<Index> {
    let path = layer.join("index");
    let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { kind: "layer", name: layer.display().to_string() },
        _ => Error::io("read", &path, &e),
    })?;
    index::decode(&bytes, &path.display().to_string())
}

impl LayerDirectory {
    /// Opens a layer whose index was read.
    pub(super) fn open_layer(path: &Path, index: &Index) -> Result<Self> {
        if index.pack.is_none() {
            let tree = Root::open(path.join("tree"))?;
            return Ok(Self { path: path.to_owned(), files: Files::Tree(tree) });
        }
        let pack = Root::open(path)?
            .resolve_plain(PACK.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(|e| Error::errno("open", path.join(PACK), e))?;
        let store = path.ancestors().nth(LEVELS).unwrap_or(path);
        Ok(Self { path: path.to_owned(), files: Files::Objects(File::from(pack), store.join(OBJECTS)) })
    }

    /// Whether its files are still there: of a layer that was removed nothing has a name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_there(&self) -> Result<bool> {
        let held = match &self.files {
            Files::Tree(tree) => tree.as_fd(),
            Files::Objects(pack, _) => pack.as_fd(),
        };
        let stat = rustix::fs::fstat(held).map_err(|e| Error::errno("stat", self.path(), e))?;
        Ok(stat.st_nlink > 0)
    }

    /// Where it is: the same for the same layer.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file of the layer for reading.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(&self, record: &Record) -> Result<File> {
        match (record.place, &self.files) {
            (Place::Packed(_), Files::Objects(..)) => {
                in_memory(&self.content(record)?).map_err(|e| Error::io("open", to_path(&record.path), &e))
            }
            (Place::Object(key), Files::Objects(_, objects)) => {
                open_object(Root::open(objects)?.as_fd(), &key)
                    .map_err(|e| Error::errno("open", objects.join(object_path(&key)), e))
            }
            (_, Files::Tree(tree)) => tree
                .open_in(&record.path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty())
                .map(File::from),
            (Place::Tree, Files::Objects(..)) => {
                Err(Error::NotFound { kind: "content", name: to_path(&record.path).display().to_string() })
            }
        }
    }

    /// A content that is in the layer's pack; none of any other.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Invalid`] where the pack has no such bytes.
    pub(super) fn content(&self, record: &Record) -> Result<Vec<u8>> {
        let (Place::Packed(offset), Files::Objects(pack, _)) = (record.place, &self.files) else {
            return Ok(Vec::new());
        };
        let wrong = |e: &std::io::Error| Error::io("read", self.path().join(PACK), e);
        let length = pack.metadata().map_err(|e| wrong(&e))?.len();
        // What the index claims is no more than what is there: memory does not grow by a claim.
        if offset.checked_add(record.size).is_none_or(|end| end > length) {
            return Err(Error::Invalid {
                field: "layer pack",
                value: self.path().display().to_string(),
                reason: "is shorter than its index says; unpack the layer again".to_owned(),
            });
        }
        let mut bytes = vec![0; usize::try_from(record.size).unwrap_or(0)];
        pack.read_exact_at(&mut bytes, offset).map_err(|e| wrong(&e))?;
        Ok(bytes)
    }
}

/// Bytes as a file of its own that nobody changes.
fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let made = rustix::fs::memfd_create(PACK, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(made);
    file.write_all(bytes)?;
    file.rewind()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}
