//! What a layer has made so far, in memory: a tree of names over a table of inodes. No I/O.

use std::collections::HashMap;

use super::entry::{Entry, Kind};
use super::index::{Extent, Hides, Place, Record, What};
use super::name;
use super::pax::Time;

/// Symbolic links followed for one name: the kernel's own bound.
const LINKS_MAX: u32 = 40;

pub(super) type NodeId = u32;
pub(super) const ROOT: NodeId = 0;

/// A name.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: NodeId,
    pub(super) name: Box<[u8]>,
    pub(super) inode: u32,
    children: HashMap<Box<[u8]>, NodeId>,
    removed: bool,
    /// Components of its path, and bytes: both are small, since paths are limited to `PATH_MAX`.
    depth: u16,
    path_bytes: u16,
}

/// What one or several names stand for.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) what: What,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) size: u64,
    pub(super) offset: Option<u64>,
    pub(super) blake3: Option<[u8; 32]>,
    pub(super) place: Place,
    pub(super) extent: Option<Extent>,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Target of a symbolic link; path of the lower file for a foreign link.
    pub(super) link: Vec<u8>,
    pub(super) implied: bool,
    pub(super) hides: Hides,
    pub(super) sparse: bool,
}

impl Inode {
    /// A directory that no entry lists: made for what is in it.
    pub(super) fn implied() -> Self {
        Self { implied: true, mode: 0o755, ..Self::bare(What::Directory) }
    }

    pub(super) fn bare(what: What) -> Self {
        Self {
            what,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            offset: None,
            blake3: None,
            place: Place::Tree,
            extent: None,
            device: (0, 0),
            xattrs: Vec::new(),
            link: Vec::new(),
            implied: false,
            hides: Hides::Nothing,
            sparse: false,
        }
    }

    pub(super) fn of(entry: &Entry) -> Self {
        let what = match entry.kind {
            Kind::File | Kind::Hardlink => What::File,
            Kind::Directory => What::Directory,
            Kind::Symlink => What::Symlink,
            Kind::Character => What::Character,
            Kind::Block => What::Block,
            Kind::Fifo => What::Fifo,
        };
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: entry.size,
            offset: entry.content_offset,
            device: entry.device,
            xattrs: super::metadata::applicable(&entry.xattrs, entry.kind)
                .map(|(name, value)| (name.to_vec(), value.to_vec()))
                .collect(),
            link: if entry.kind == Kind::Symlink { entry.link.clone() } else { Vec::new() },
            sparse: entry.sparse,
            ..Self::bare(what)
        }
    }
}

/// How a walk over parents goes on where a name is not there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The walk ended in this directory.
    Found(NodeId),
    /// A directory of this name is to be made in `parent` (where `replaces` is set, in place of a whiteout).
    Missing { parent: NodeId, name: Vec<u8>, replaces: Option<NodeId>, rest: Vec<Vec<u8>> },
}

/// The tree.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
    inodes: Vec<Inode>,
}

impl Default for Nodes {
    fn default() -> Self {
        let root = Node {
            parent: ROOT,
            name: Box::default(),
            inode: 0,
            children: HashMap::new(),
            removed: false,
            depth: 0,
            path_bytes: 0,
        };
        Self { nodes: vec![root], inodes: vec![Inode::implied()] }
    }
}

impl Nodes {
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn inode(&self, id: NodeId) -> &Inode {
        &self.inodes[self.node(id).inode as usize]
    }

    pub(super) fn inode_mut(&mut self, id: NodeId) -> &mut Inode {
        let inode = self.node(id).inode;
        &mut self.inodes[inode as usize]
    }

    pub(super) fn is_directory(&self, id: NodeId) -> bool {
        self.inode(id).what == What::Directory
    }

    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(parent).children.get(name).copied()
    }

    /// The children of a directory, sorted by name.
    pub(super) fn children(&self, id: NodeId) -> Vec<NodeId> {
        let mut found: Vec<NodeId> = self.node(id).children.values().copied().collect();
        found.sort_unstable_by(|&a, &b| self.node(a).name.cmp(&self.node(b).name));
        found
    }

    /// A name and all beneath it, parents before what is in them, and one branch after the other: whoever goes along
    /// it, either way, finds the directories that it needs still open.
    pub(super) fn below(&self, id: NodeId) -> Vec<NodeId> {
        let mut found = Vec::new();
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            found.push(id);
            pending.extend(self.children(id));
        }
        found
    }

    /// Adds a name for a new inode.
    ///
    /// # Errors
    /// More than 2^32 names, or a path that is too long.
    pub(super) fn add(&mut self, parent: NodeId, name: &[u8], inode: Inode) -> Result<NodeId, &'static str> {
        let number = u32::try_from(self.inodes.len()).map_err(|_| "too many entries")?;
        self.inodes.push(inode);
        self.link(parent, name, number)
    }

    /// Adds a name for an inode that is there.
    pub(super) fn link(&mut self, parent: NodeId, name: &[u8], inode: u32) -> Result<NodeId, &'static str> {
        let id = u32::try_from(self.nodes.len()).map_err(|_| "too many entries")?;
        let (depth, path_bytes) = self.place(parent, name);
        self.nodes.push(Node {
            parent,
            name: name.into(),
            inode,
            children: HashMap::new(),
            removed: false,
            depth: u16::try_from(depth).unwrap_or(u16::MAX),
            path_bytes: u16::try_from(path_bytes).unwrap_or(u16::MAX),
        });
        self.nodes[parent as usize].children.insert(name.into(), id);
        Ok(id)
    }

    /// Takes a name away, with those beneath it.
    pub(super) fn remove(&mut self, id: NodeId) {
        let (parent, name) = (self.node(id).parent, self.node(id).name.clone());
        self.nodes[parent as usize].children.remove(&name);
        let mut pending = vec![id];
        while let Some(id) = pending.pop() {
            let node = &mut self.nodes[id as usize];
            node.removed = true;
            pending.extend(node.children.drain().map(|(_, child)| child));
        }
    }

    pub(super) fn is_removed(&self, id: NodeId) -> bool {
        self.node(id).removed
    }

    /// Components and bytes of the path that a name in a directory has.
    pub(super) fn place(&self, parent: NodeId, name: &[u8]) -> (usize, usize) {
        let above = self.node(parent);
        let slash = usize::from(parent != ROOT);
        (usize::from(above.depth) + 1, usize::from(above.path_bytes) + slash + name.len())
    }

    /// Path from the root, without a slash in front.
    pub(super) fn path(&self, id: NodeId) -> Vec<u8> {
        let mut parts = Vec::new();
        let mut at = id;
        while at != ROOT {
            parts.push(&*self.node(at).name);
            at = self.node(at).parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }

    /// Walks components from a directory as the kernel would inside a root, links followed.
    ///
    /// # Errors
    /// A component that is no directory, or too many links.
    pub(super) fn walk(&self, from: NodeId, parts: Vec<Vec<u8>>) -> Result<Step, &'static str> {
        let mut at = from;
        let mut links = 0;
        let mut pending: Vec<Vec<u8>> = parts;
        pending.reverse();
        while let Some(part) = pending.pop() {
            if part == b".." {
                at = self.node(at).parent;
                continue;
            }
            let Some(child) = self.child(at, &part) else {
                pending.reverse();
                return Ok(Step::Missing { parent: at, name: part, replaces: None, rest: pending });
            };
            match self.inode(child).what {
                What::Directory => at = child,
                What::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err("too many levels of symbolic links");
                    }
                    let target = &self.inode(child).link;
                    if target.first() == Some(&b'/') {
                        at = ROOT;
                    }
                    let parts = name::components(target)?;
                    pending.extend(parts.into_iter().rev().map(<[u8]>::to_vec));
                }
                What::Whiteout => {
                    pending.reverse();
                    return Ok(Step::Missing {
                        parent: at,
                        name: part,
                        replaces: Some(child),
                        rest: pending,
                    });
                }
                What::Foreign => return Err("a parent of its name is a hard link to what a lower layer has"),
                What::File | What::Hardlink | What::Character | What::Block | What::Fifo => {
                    return Err("a parent of its name is no directory");
                }
            }
        }
        Ok(Step::Found(at))
    }

    /// The index records of all that is there: parents before what is in them, names sorted.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut found = Vec::with_capacity(self.nodes.len());
        let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
        let mut pending = vec![(ROOT, Vec::new())];
        while let Some((id, path)) = pending.pop() {
            for child in self.children(id).into_iter().rev() {
                let mut below = path.clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend_from_slice(&self.node(child).name);
                pending.push((child, below));
            }
            found.push(self.record(id, path, &mut first_names));
        }
        found
    }

    fn record(&self, id: NodeId, path: Vec<u8>, first_names: &mut HashMap<u32, Vec<u8>>) -> Record {
        let number = self.node(id).inode;
        let inode = self.inode(id);
        let mut record = Record {
            what: inode.what,
            implied: inode.implied,
            hides: inode.hides,
            sparse: inode.sparse,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            device: inode.device,
            size: inode.size,
            offset: inode.offset,
            blake3: inode.blake3,
            place: inode.place,
            extent: inode.extent,
            link: inode.link.clone(),
            xattrs: inode.xattrs.clone(),
            path,
        };
        if matches!(inode.what, What::Directory | What::Whiteout) {
            return record;
        }
        match first_names.get(&number) {
            Some(first) => {
                record.what = What::Hardlink;
                record.link.clone_from(first);
                record.xattrs.clear();
                (record.offset, record.blake3) = (None, None);
                (record.place, record.extent) = (Place::Tree, None);
            }
            None => {
                first_names.insert(number, record.path.clone());
            }
        }
        record
    }
}
