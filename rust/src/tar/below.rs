//! What a tree is compared with: nothing, another directory, or layers.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::OFlags;

use super::entry::Kind;
use super::facts::{Facts, Reader, goes_into_layers, open_file, wrong};
use super::index::What;
use super::layers::LayerDirectory;
use super::metadata::applicable;
use super::view::{Id, Source, View};
use crate::error::Result;
use crate::root::{Root, names};

/// The state before the changes.
pub enum Below<'a> {
    /// Unknown, or none: all that is there was added.
    Nothing,
    /// Another directory.
    Directory(&'a Root),
    /// The merged view of an image's layers.
    Layers(Layers<'a>),
}

/// The merged view, and where its files' content is.
pub struct Layers<'a> {
    view: &'a View<'a>,
    trees: &'a [LayerDirectory],
    names: HashMap<Source, u64>,
}

impl<'a> Layers<'a> {
    /// Of opened layers.
    #[must_use]
    pub fn new(view: &'a View<'a>, trees: &'a [LayerDirectory]) -> Self {
        let mut names = HashMap::new();
        for (_, id) in view.walk_ids() {
            let source = view.source(id);
            *names.entry(source).or_insert(0) += 1;
        }
        Self { view, trees, names }
    }

    fn facts(&self, id: Id) -> Facts {
        let source = self.view.names[id].source;
        let record = self.view.record(source);
        let kind = match record.what {
            What::Directory => Kind::Directory,
            What::Symlink => Kind::Symlink,
            What::Character => Kind::Character,
            What::Block => Kind::Block,
            What::Fifo => Kind::Fifo,
            // A view holds a name's source, which is a file's first name.
            What::File | What::Hardlink | What::Foreign | What::Whiteout => Kind::File,
        };
        let mut xattrs: Vec<_> = applicable(&record.xattrs, kind)
            .filter(|(name, _)| goes_into_layers(name))
            .map(|(name, value)| (name.to_vec(), value.to_vec()))
            .collect();
        xattrs.sort_unstable();
        let names = self.names.get(&source).copied().unwrap_or(1);
        Facts {
            mode: record.mode,
            uid: record.uid,
            gid: record.gid,
            mtime: record.mtime,
            size: if kind == Kind::File { record.size } else { 0 },
            device: record.device,
            link: record.link.clone(),
            xattrs,
            ..Facts::new(kind, (source.layer as u64, source.record as u64), names)
        }
    }
}

/// A directory of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// There is none.
    Nowhere,
    /// Where the path says.
    There,
    /// In a view.
    In(Id),
}

/// A name in such a directory.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) facts: Facts,
    /// Of what is in it, for a directory.
    pub(super) place: Place,
    source: Option<Source>,
}

impl Below<'_> {
    /// Whether it is known what was there before.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    /// The root directory.
    pub(super) fn root(&self, reader: &mut Reader) -> Result<Option<Known>> {
        Ok(match self {
            Self::Nothing => None,
            Self::Directory(root) => {
                let read = reader.read(root.as_fd(), b".").map_err(|e| wrong(b"", "read", e))?;
                read.map(|(facts, _)| Known { facts, place: Place::There, source: None })
            }
            Self::Layers(layers) => Some(Known { facts: layers.facts(0), place: Place::In(0), source: None }),
        })
    }

    /// The names in a directory.
    pub(super) fn children(
        &self,
        place: Place,
        path: &[u8],
        reader: &mut Reader,
    ) -> Result<BTreeMap<Vec<u8>, Known>> {
        let mut found = BTreeMap::new();
        match (self, place) {
            (Self::Directory(root), Place::There) => {
                let directory = root
                    .resolve_plain(path, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|e| wrong(path, "open", e))?;
                for name in names(directory.as_fd()).map_err(|e| wrong(path, "list", e))? {
                    let name = name.into_bytes();
                    let read = reader.read(directory.as_fd(), &name);
                    if let Some((facts, _)) = read.map_err(|e| wrong(path, "read", e))? {
                        let is_directory = facts.kind == Kind::Directory;
                        let place = if is_directory { Place::There } else { Place::Nowhere };
                        found.insert(name, Known { facts, place, source: None });
                    }
                }
            }
            (Self::Layers(layers), Place::In(id)) => {
                for (name, &child) in layers.view.children(id).into_iter().flatten() {
                    let is_directory = layers.view.children(child).is_some();
                    let place = if is_directory { Place::In(child) } else { Place::Nowhere };
                    let source = Some(layers.view.names[child].source);
                    found.insert(name.clone(), Known { facts: layers.facts(child), place, source });
                }
            }
            _ => {}
        }
        Ok(found)
    }

    /// Opens a regular file; None where there is nothing to read from.
    pub(super) fn open(&self, path: &[u8], known: &Known) -> Result<Option<File>> {
        match (self, known.source) {
            (Self::Directory(root), _) => open_file(root, path, &known.facts).map(Some),
            (Self::Layers(layers), Some(source)) => {
                layers.trees[source.layer].open(layers.view.record(source)).map(Some)
            }
            _ => Ok(None),
        }
    }
}
