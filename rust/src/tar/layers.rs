//! Unpacked layers, opened to read files from: from a layer's tree, or from its pack and the store's objects.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};

use super::index::{self, Index, Place, Record};
use super::objects::PACK;
use crate::cas::{object_path, open_object};
use crate::error::{Error, Result};
use crate::root::{Root, to_path};

/// Where the objects are, seen from a layer: it is at `layers/<algorithm>/<hex>` of a store.
const OBJECTS_OF_LAYER: &str = "../../../objects";

/// An unpacked layer, to read files from.
#[derive(Debug)]
pub struct LayerDirectory {
    /// Its tree, or the layer's directory itself where it has none.
    root: Root,
    contents: Option<Contents>,
}

/// What is read in place of a tree.
#[derive(Debug)]
struct Contents {
    pack: File,
    /// Opened when a file is asked for that is an object.
    objects: PathBuf,
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
            return Ok(Self { root: Root::open(path.join("tree"))?, contents: None });
        }
        let root = Root::open(path)?;
        let pack = root
            .resolve_plain(PACK.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
            .map_err(|e| Error::errno("open", path.join(PACK), e))?;
        let contents = Contents { pack: File::from(pack), objects: path.join(OBJECTS_OF_LAYER) };
        Ok(Self { root, contents: Some(contents) })
    }

    /// Whether its tree still has a name: one that was removed has none.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_there(&self) -> Result<bool> {
        let stat = rustix::fs::fstat(&self.root).map_err(|e| Error::errno("stat", self.path(), e))?;
        Ok(stat.st_nlink > 0)
    }

    /// Where it is: the same for the same layer.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Opens a file of the layer for reading.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(&self, record: &Record) -> Result<File> {
        match (record.place, &self.contents) {
            (Place::Packed(_), Some(_)) => {
                in_memory(&self.content(record)?).map_err(|e| Error::io("open", to_path(&record.path), &e))
            }
            (Place::Object(key), Some(contents)) => {
                let objects = Root::open(&contents.objects)?;
                open_object(objects.as_fd(), &key)
                    .map_err(|e| Error::errno("open", contents.objects.join(object_path(&key)), e))
            }
            _ => self
                .root
                .open_in(&record.path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, Mode::empty())
                .map(File::from),
        }
    }

    /// A content that is in the layer's pack; none of any other.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Invalid`] where the pack has no such bytes.
    pub(super) fn content(&self, record: &Record) -> Result<Vec<u8>> {
        let (Place::Packed(offset), Some(contents)) = (record.place, &self.contents) else {
            return Ok(Vec::new());
        };
        let wrong = |e: &std::io::Error| Error::io("read", self.path().join(PACK), e);
        let length = contents.pack.metadata().map_err(|e| wrong(&e))?.len();
        // What the index claims is no more than what is there: memory does not grow by a claim.
        if offset.checked_add(record.size).is_none_or(|end| end > length) {
            return Err(Error::Invalid {
                field: "layer pack",
                value: self.path().display().to_string(),
                reason: "is shorter than its index says; unpack the layer again".to_owned(),
            });
        }
        let mut bytes = vec![0; usize::try_from(record.size).unwrap_or(0)];
        contents.pack.read_exact_at(&mut bytes, offset).map_err(|e| wrong(&e))?;
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
