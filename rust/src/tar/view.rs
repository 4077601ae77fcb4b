//! Layers put together from their indexes, with no look at their trees.
//!
//! [`View::applied`] is what applying the layers in order gives: a parent that a layer does not list keeps what the
//! layers below say of it, also where it is a symbolic link there, and a hard link finds its file below.
//! [`View::stacked`] is what overlayfs shows of the same directories. Where they differ, [`super::settle`] mends it.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::index::{Hides, Index, Record, What};
use super::name;
use crate::error::{Error, Result};

/// Symbolic links followed for one path: the kernel's own bound.
const LINKS_MAX: u32 = 40;

/// Where a name's content and attributes are: a layer, lowest first, and a record of its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Position of the layer.
    pub layer: usize,
    /// Position of the record; for a file with several names, of the first.
    pub record: usize,
}

pub(super) type Id = usize;

/// A name in the view.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) source: Source,
    /// None for what is no directory.
    pub(super) children: Option<BTreeMap<Vec<u8>, Id>>,
    /// Bytes of its path from the root.
    path_bytes: usize,
    /// Layers whose directories make up this one.
    parts: u32,
    /// Whether one of these has whiteouts in it.
    whiteouts: bool,
}

impl Name {
    fn new(source: Source, children: Option<BTreeMap<Vec<u8>, Id>>, path_bytes: usize) -> Self {
        Self { source, children, path_bytes, parts: 1, whiteouts: false }
    }

    /// Whether overlayfs lists the whiteouts in it: it shows a directory that only one layer has as it is.
    pub(super) fn shows_whiteouts(&self) -> bool {
        self.parts == 1 && self.whiteouts
    }
}

/// The names of a view without its layers: what to keep of one that is wanted again.
#[derive(Debug)]
pub struct Names(Vec<Name>);

/// Several layers as one tree.
#[derive(Debug)]
pub struct View<'a> {
    layers: &'a [Index],
    pub(super) names: Vec<Name>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Applied,
    Stacked,
}

impl<'a> View<'a> {
    /// The tree that applying the layers in order gives.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] where an entry cannot be applied to what is below it.
    pub fn applied(layers: &'a [Index]) -> Result<Self> {
        Self::build(layers, Rule::Applied, &HashSet::new())
    }

    /// The tree again that [`View::into_names`] was called on, over the same layers.
    #[must_use]
    pub fn again(layers: &'a [Index], names: Names) -> Self {
        Self { layers, names: names.0 }
    }

    /// What is to be kept of it.
    #[must_use]
    pub fn into_names(self) -> Names {
        Names(self.names)
    }

    /// The tree that overlayfs shows of the layers' directories, but for those at some positions.
    ///
    /// # Errors
    /// None that a well-formed index gives.
    pub fn stacked(layers: &'a [Index], without: &HashSet<usize>) -> Result<Self> {
        Self::build(layers, Rule::Stacked, without)
    }

    fn build(layers: &'a [Index], rule: Rule, without: &HashSet<usize>) -> Result<Self> {
        let root = Name::new(Source { layer: 0, record: 0 }, Some(BTreeMap::new()), 0);
        let mut view = Self { layers, names: vec![root] };
        for (position, layer) in layers.iter().enumerate().filter(|(at, _)| !without.contains(at)) {
            Apply { view: &mut view, position, rule, directories: HashMap::new(), files: HashMap::new() }
                .run(layer)?;
        }
        Ok(view)
    }

    /// The record of a source.
    #[must_use]
    pub fn record(&self, source: Source) -> &'a Record {
        &self.layers[source.layer].records[source.record]
    }

    pub(super) fn source(&self, id: Id) -> Source {
        self.names[id].source
    }

    pub(super) fn children(&self, id: Id) -> Option<&BTreeMap<Vec<u8>, Id>> {
        self.names[id].children.as_ref()
    }

    fn child(&self, parent: Id, name: &[u8]) -> Option<Id> {
        self.children(parent)?.get(name).copied()
    }

    /// What a path leads to inside the view, and its own path there: links on the way are followed, and the last one
    /// too where `follow` is set.
    #[must_use]
    pub fn find(&self, path: &[u8], follow: bool) -> Option<(Vec<u8>, Source)> {
        let (path, id) = self.find_id(path, follow)?;
        Some((path, self.source(id)))
    }

    /// What a path leads to, links followed, and what is below it down to a depth: every name with its own path,
    /// parents first, sorted.
    #[must_use]
    pub fn walk(&self, path: &[u8], depth: usize) -> Option<Vec<(Vec<u8>, Source)>> {
        let (path, id) = self.find_id(path, true)?;
        let found = self.walk_from(path, id, depth);
        Some(found.into_iter().map(|(path, id)| (path, self.source(id))).collect())
    }

    pub(super) fn walk_ids(&self) -> Vec<(Vec<u8>, Id)> {
        self.walk_from(Vec::new(), 0, usize::MAX)
    }

    fn walk_from(&self, path: Vec<u8>, id: Id, depth: usize) -> Vec<(Vec<u8>, Id)> {
        let mut found = Vec::new();
        let mut pending = vec![(path, id, depth)];
        while let Some((path, id, depth)) = pending.pop() {
            if let Some(depth) = depth.checked_sub(1) {
                for (name, &child) in self.children(id).into_iter().flatten().rev() {
                    pending.push((below(&path, name), child, depth));
                }
            }
            found.push((path, id));
        }
        found
    }

    fn find_id(&self, path: &[u8], follow: bool) -> Option<(Vec<u8>, Id)> {
        let way = self.resolve(vec![0], name::components(path).ok()?, follow).ok()?;
        let mut path = Vec::new();
        for pair in way.windows(2) {
            // Names know no parents: once for a call, a look at the siblings is cheaper than keeping that for each.
            let (name, _) = self.children(pair[0])?.iter().find(|(_, id)| **id == pair[1])?;
            path = below(&path, name);
        }
        Some((path, *way.last()?))
    }

    pub(super) fn record_of(&self, id: Id) -> &'a Record {
        self.record(self.names[id].source)
    }

    /// Walks from a directory, given with its ancestors, to what the names lead to; gives the way there.
    fn resolve(&self, from: Vec<Id>, parts: Vec<&[u8]>, follow: bool) -> std::result::Result<Vec<Id>, Stop> {
        let mut at = from;
        let mut pending: Vec<Vec<u8>> = parts.into_iter().rev().map(<[u8]>::to_vec).collect();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            let Some(children) = self.children(at[at.len() - 1]) else { return Err(Stop::Wrong) };
            if part == b".." {
                if at.len() > 1 {
                    at.pop();
                }
                continue;
            }
            let Some(&child) = children.get(&part) else {
                pending.push(part);
                pending.reverse();
                return Err(Stop::Missing(at, pending));
            };
            let record = self.record(self.names[child].source);
            if record.what != What::Symlink || (pending.is_empty() && !follow) {
                at.push(child);
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return Err(Stop::Wrong);
            }
            if record.link.starts_with(b"/") {
                at.truncate(1);
            }
            let parts = name::components(&record.link).map_err(|_| Stop::Wrong)?;
            pending.extend(parts.into_iter().rev().map(<[u8]>::to_vec));
        }
        Ok(at)
    }
}

/// Why a walk did not arrive.
enum Stop {
    /// A directory, with its ancestors, in which the first of these names is not there.
    Missing(Vec<Id>, Vec<Vec<u8>>),
    /// What is there is no directory, or links lead nowhere.
    Wrong,
}

/// One layer on its way into a view.
struct Apply<'v, 'a> {
    view: &'v mut View<'a>,
    position: usize,
    rule: Rule,
    /// This layer's directories, by path, and where in the view they are: a directory and its ancestors.
    directories: HashMap<&'a [u8], Vec<Id>>,
    /// This layer's files, by their first path, where some have others.
    files: HashMap<&'a [u8], Source>,
}

impl<'a> Apply<'_, 'a> {
    fn run(mut self, layer: &'a Index) -> Result<()> {
        // Before anything of this layer is there: a whiteout beside the link must not hide its target.
        let mut foreign = HashMap::new();
        if self.rule == Rule::Applied && layer.foreign_links > 0 {
            for (position, record) in
                layer.records.iter().enumerate().filter(|(_, r)| r.what == What::Foreign)
            {
                foreign.insert(position, self.find_foreign(record)?);
            }
        }
        let has_links = layer.records.iter().any(|record| record.what == What::Hardlink);
        for (position, record) in layer.records.iter().enumerate() {
            let own = Source { layer: self.position, record: position };
            if record.path.is_empty() {
                self.enter_root(record, own);
                continue;
            }
            let split = record.path.iter().rposition(|&b| b == b'/');
            let (parent, name) =
                split.map_or((&b""[..], &record.path[..]), |at| (&record.path[..at], &record.path[at + 1..]));
            let Some(ancestors) = self.directories.get(parent) else {
                return Err(refuse(record, "index has an entry before its directory"));
            };
            let parent = ancestors[ancestors.len() - 1];
            let source = match record.what {
                What::Directory => {
                    let ancestors = ancestors.clone();
                    self.directory(record, own, ancestors, name)?;
                    continue;
                }
                What::Foreign => foreign.get(&position).copied(),
                What::Hardlink => self.files.get(record.link.as_slice()).copied(),
                What::Whiteout => None,
                _ => Some(own),
            };
            self.file(record, source, parent, name)?;
            if has_links
                && record.what != What::Hardlink
                && let Some(source) = source
            {
                self.files.insert(&record.path, source);
            }
        }
        Ok(())
    }

    fn find_foreign(&self, record: &Record) -> Result<Source> {
        let missing = || {
            refuse(record, format!("hard link to what no layer below has: {}", record.link.escape_ascii()))
        };
        let parts = name::components(&record.link).map_err(|e| refuse(record, e))?;
        let way = self.view.resolve(vec![0], parts, false).map_err(|_| missing())?;
        match &self.view.names[way[way.len() - 1]] {
            Name { children: None, source, .. } => Ok(*source),
            Name { children: Some(_), .. } => Err(refuse(record, "hard link to a directory")),
        }
    }

    fn enter_root(&mut self, record: &'a Record, own: Source) {
        let keep = self.rule == Rule::Applied && record.implied && self.position > 0;
        if !keep {
            self.view.names[0].source = own;
        }
        // Overlayfs takes no mark on the root of a layer.
        if record.hides != Hides::Nothing && self.rule == Rule::Applied {
            self.view.names[0].children = Some(BTreeMap::new());
        }
        self.directories.insert(b"", vec![0]);
    }

    fn directory(&mut self, record: &'a Record, own: Source, ancestors: Vec<Id>, name: &[u8]) -> Result<()> {
        let parent = ancestors[ancestors.len() - 1];
        let there = self.view.child(parent, name);
        if self.rule == Rule::Applied
            && record.implied
            && record.hides != Hides::Name
            && let Some(entered) = self.through(record, there, &ancestors, own)?
        {
            if record.hides != Hides::Nothing {
                let id = entered[entered.len() - 1];
                self.view.names[id].children = Some(BTreeMap::new());
            }
            self.directories.insert(&record.path, entered);
            return Ok(());
        }
        let id = match there {
            Some(id) if self.view.names[id].children.is_some() => {
                let there = &mut self.view.names[id];
                there.source = own;
                there.parts += 1;
                if record.hides != Hides::Nothing {
                    *there = Name::new(own, Some(BTreeMap::new()), there.path_bytes);
                }
                id
            }
            _ => self.put(record, parent, name, own, Some(BTreeMap::new()))?,
        };
        let mut entered = ancestors;
        entered.push(id);
        self.directories.insert(&record.path, entered);
        Ok(())
    }

    /// Where a directory that this layer does not list leads to in what is below: itself, or through a link.
    fn through(
        &mut self,
        record: &Record,
        there: Option<Id>,
        ancestors: &[Id],
        own: Source,
    ) -> Result<Option<Vec<Id>>> {
        let Some(id) = there else { return Ok(None) };
        let mut entered = ancestors.to_vec();
        if self.view.names[id].children.is_some() {
            entered.push(id);
            return Ok(Some(entered));
        }
        let target = self.view.record(self.view.names[id].source);
        if target.what != What::Symlink {
            return Err(refuse(record, "a parent of its entries is no directory below"));
        }
        if target.link.starts_with(b"/") {
            entered.truncate(1);
        }
        let mut parts: Vec<Vec<u8>> = name::components(&target.link)
            .map_err(|e| refuse(record, e))?
            .into_iter()
            .map(<[u8]>::to_vec)
            .collect();
        loop {
            let slices = parts.iter().map(Vec::as_slice).collect();
            match self.view.resolve(entered, slices, true) {
                Ok(arrived) if self.view.names[arrived[arrived.len() - 1]].children.is_some() => {
                    return Ok(Some(arrived));
                }
                Ok(_) | Err(Stop::Wrong) => {
                    return Err(refuse(record, "a parent of its entries leads to no directory below"));
                }
                // Each round makes a directory, in which nothing is: the rest are plain names, so this ends.
                Err(Stop::Missing(at, mut rest)) => {
                    let last = at[at.len() - 1];
                    let made = self.put(record, last, &rest.remove(0), own, Some(BTreeMap::new()))?;
                    entered = at;
                    entered.push(made);
                    parts = rest;
                }
            }
        }
    }

    fn file(&mut self, record: &'a Record, source: Option<Source>, parent: Id, name: &[u8]) -> Result<()> {
        match source {
            Some(source) => {
                self.put(record, parent, name, source, None)?;
            }
            None if record.what == What::Whiteout => {
                let parent = &mut self.view.names[parent];
                parent.whiteouts = true;
                if let Some(children) = &mut parent.children {
                    children.remove(name);
                }
            }
            // Stacked: nothing stands for a foreign link in the layer's tree.
            None => {}
        }
        Ok(())
    }

    /// Adds a name; a link of a lower layer on the way there can make its path too long.
    fn put(
        &mut self,
        record: &Record,
        parent: Id,
        name: &[u8],
        source: Source,
        children: Option<BTreeMap<Vec<u8>, Id>>,
    ) -> Result<Id> {
        let path_bytes = match self.view.names[parent].path_bytes {
            0 => name.len(),
            above => above + 1 + name.len(),
        };
        name::check_length(path_bytes).map_err(|e| refuse(record, e))?;
        let id = self.view.names.len();
        self.view.names.push(Name::new(source, children, path_bytes));
        if let Some(siblings) = &mut self.view.names[parent].children {
            siblings.insert(name.to_vec(), id);
        }
        Ok(id)
    }
}

/// A path and a name below it.
pub(super) fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    if !path.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

fn refuse(record: &Record, reason: impl Into<String>) -> Error {
    Error::UnsafeArchive { entry: record.path.clone(), offset: 0, reason: reason.into() }
}
