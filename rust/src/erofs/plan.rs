//! Where each inode goes: one walk finds them all, then each gets its place in order.

use super::directory;
use super::format::{
    BLOCK, COMPACT, EXTENDED, HOLE, Layout, SLOT, chunks, device, devices_fit, fine_chunks, first_inode_at,
};
use super::node::{Kind, Node, NodeId, Tree};
use super::xattr;
use crate::error::{Error, Result};

/// The kernel's, without the NUL at the end.
const TARGET_MAX: usize = 4095;
/// The kernel counts in a signed number.
const SIZE_MAX: u64 = i64::MAX as u64;
/// Means "no owner" to the kernel.
const NOBODY: u32 = u32::MAX;
const NANOSECONDS: u32 = 1_000_000_000;
const UNPLACED: u32 = u32::MAX;

/// An inode that has a name, and its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub(super) node: NodeId,
    /// The directory where it was met first; of a directory the only one, of the root itself.
    pub(super) parent: NodeId,
    pub(super) links: u32,
    /// Of a directory the bytes of its entries.
    pub(super) size: u64,
    pub(super) xattrs: usize,
    pub(super) compact: bool,
    pub(super) layout: Layout,
    /// Byte of the image where it begins.
    pub(super) at: u64,
    /// The first of its blocks, counted from the first of all.
    pub(super) block: u64,
}

/// The layout of an image.
#[derive(Debug)]
pub(super) struct Plan {
    /// As they stand in the image.
    pub(super) inodes: Vec<Inode>,
    /// By node: which of these it is.
    places: Vec<u32>,
    /// The time that most inodes have.
    pub(super) epoch: (i64, u32),
    /// Where the last inode ends.
    pub(super) end: u64,
    /// Blocks of content, behind the inodes.
    pub(super) blocks: u64,
    pub(super) chunks: bool,
}

impl Plan {
    /// # Errors
    /// [`Error::Invalid`] for a tree that no file system could be, [`Error::Unsupported`] for what EROFS cannot hold.
    pub(super) fn new(tree: &Tree) -> Result<Self> {
        let mut plan = Self {
            inodes: Vec::with_capacity(tree.len()),
            places: vec![UNPLACED; tree.len()],
            epoch: (0, 0),
            end: first_inode_at(tree.devices().len()),
            blocks: 0,
            chunks: false,
        };
        if let Some(name) = tree.stray() {
            return Err(invalid("name", name, "is in no directory"));
        }
        if !matches!(tree.node(tree.root()).kind, Kind::Directory(_)) {
            return Err(invalid("root", b"/", "is no directory"));
        }
        if !devices_fit(tree.devices().len()) {
            return Err(Error::Unsupported {
                feature: format!("an image over {} others", tree.devices().len()),
                needs: "fewer layers".to_owned(),
            });
        }
        plan.walk(tree)?;
        plan.epoch = plan.frequent_time(tree);
        for position in 0..plan.inodes.len() {
            let inode = plan.inodes[position];
            plan.inodes[position] = plan
                .place(inode, tree.node(inode.node), tree.devices())
                .map_err(|e| located(e, &plan.path(tree, inode.node)))?;
        }
        Ok(plan)
    }

    /// Number of a node's inode.
    pub(super) fn nid(&self, node: NodeId) -> u64 {
        self.inodes[self.places[node.0] as usize].at / SLOT
    }

    /// Finds all that has a name. What is in one directory stands together, and after it what is in its first
    /// subdirectory, with all below: programs read neighbours.
    fn walk(&mut self, tree: &Tree) -> Result<()> {
        self.found(tree.root(), tree.root());
        let mut left = vec![tree.root()];
        while let Some(directory) = left.pop() {
            let before = left.len();
            self.enter(tree, directory, &mut left).map_err(|e| located(e, &self.path(tree, directory)))?;
            left[before..].reverse();
        }
        Ok(())
    }

    fn enter(&mut self, tree: &Tree, id: NodeId, left: &mut Vec<NodeId>) -> Result<()> {
        let place = self.places[id.0] as usize;
        let listing = directory::list(tree, id, self.inodes[place].parent);
        directory::check(&listing)?;
        self.inodes[place].size = directory::size(&listing);
        let mut links = 2;
        for (name, child) in listing {
            if name == b"." || name == b".." {
                continue;
            }
            let Some(node) = tree.find(child) else {
                return Err(invalid("name", name, "is another tree's node"));
            };
            let known = self.places[child.0];
            if matches!(node.kind, Kind::Directory(_)) {
                if known != UNPLACED {
                    return Err(invalid("name", name, "is a second name of a directory"));
                }
                links += 1;
                left.push(child);
            }
            if known == UNPLACED {
                self.found(child, id);
            }
            let place = self.places[child.0] as usize;
            self.inodes[place].links += 1;
        }
        self.inodes[place].links = links;
        Ok(())
    }

    fn found(&mut self, node: NodeId, parent: NodeId) {
        // Four thousand million nodes do not fit in memory.
        self.places[node.0] = u32::try_from(self.inodes.len()).unwrap_or(UNPLACED);
        self.inodes.push(Inode {
            node,
            parent,
            links: 0,
            size: 0,
            xattrs: 0,
            compact: false,
            layout: Layout::Plain,
            at: 0,
            block: 0,
        });
    }

    /// The time that spares most inodes from having one of their own; of several the earliest.
    fn frequent_time(&self, tree: &Tree) -> (i64, u32) {
        let mut times: Vec<_> = self.inodes.iter().map(|inode| tree.node(inode.node).mtime).collect();
        times.sort_unstable();
        let runs = times.chunk_by(|one, other| one == other);
        runs.rev().max_by_key(|run| run.len()).map_or((0, 0), |run| run[0])
    }

    fn place(&mut self, mut inode: Inode, node: &Node, devices: &[u32]) -> Result<Inode> {
        check(node)?;
        check_blocks(node, devices)?;
        inode.size = match &node.kind {
            Kind::Directory(_) => inode.size,
            Kind::File { size, .. } | Kind::Kept { size } | Kind::Stored { size, .. } => *size,
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        inode.xattrs = xattr::size(node)?;
        inode.compact = node.mtime == self.epoch
            && inode.size <= u32::MAX.into()
            && inode.links <= u16::MAX.into()
            && node.uid.max(node.gid) <= u16::MAX.into();
        let head = if inode.compact { COMPACT } else { EXTENDED } + inode.xattrs;
        let length = if is_hole(node) {
            self.chunks = true;
            inode.layout = Layout::Chunks;
            head as u64 + chunks(inode.size).1 * HOLE.len() as u64
        } else if let Kind::Stored { data, .. } = &node.kind {
            if data.is_some() {
                self.chunks = true;
                inode.layout = Layout::Chunks;
                head as u64 + fine_chunks(inode.size).1 * HOLE.len() as u64
            } else {
                head as u64
            }
        } else {
            self.place_content(&mut inode, head)
        };
        inode.at = self.end;
        self.end = (self.end + length).next_multiple_of(SLOT);
        Ok(inode)
    }

    /// Decides where the content's last piece goes; gives the bytes that stand at the inode.
    fn place_content(&mut self, inode: &mut Inode, head: usize) -> u64 {
        let block = BLOCK as u64;
        let (whole, tail) = (inode.size / block, inode.size % block);
        inode.block = self.blocks;
        self.blocks += whole;
        let record = head as u64 + tail;
        // The kernel wants a tail in one block, and of a symbolic link the inode with it.
        let room = block - self.end % block;
        let skipped = if record <= room { 0 } else { room };
        if tail > 0 && record <= block && tail + skipped <= block {
            inode.layout = Layout::Inline;
            self.end += skipped;
            return record;
        }
        inode.layout = Layout::Plain;
        self.blocks += tail.min(1);
        head as u64
    }

    /// A node's path, for messages.
    fn path(&self, tree: &Tree, id: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = id;
        while at != tree.root() {
            let parent = self.inodes[self.places[at.0] as usize].parent;
            let Kind::Directory(entries) = &tree.node(parent).kind else { break };
            names.extend(entries.iter().find(|entry| entry.1 == at).map(|entry| entry.0.as_slice()));
            at = parent;
        }
        names.reverse();
        [b"/", names.join(&b'/').as_slice()].concat()
    }
}

/// Whether its size is all that is known of a file's content.
fn is_hole(node: &Node) -> bool {
    matches!(&node.kind, Kind::File { size: 1.., data } if data.is_empty())
}

/// Refuses what an inode cannot be.
fn check(node: &Node) -> Result<()> {
    if node.mode & !0o7777 != 0 {
        return Err(invalid("mode", format!("{:o}", node.mode).as_bytes(), "has more than permission bits"));
    }
    if node.mtime.1 >= NANOSECONDS {
        return Err(invalid("mtime", node.mtime.1.to_string().as_bytes(), "is more than a second"));
    }
    if node.uid.max(node.gid) == NOBODY {
        return Err(invalid("owner", NOBODY.to_string().as_bytes(), "is nobody's number"));
    }
    match &node.kind {
        Kind::File { size, .. } | Kind::Kept { size } | Kind::Stored { size, .. } if *size > SIZE_MAX => {
            Err(over(format!("a file of {size} bytes"), SIZE_MAX))
        }
        Kind::File { size, data } if !data.is_empty() && *size != data.len() as u64 => Err(invalid(
            "size",
            size.to_string().as_bytes(),
            &format!("is not that of the data, {}", data.len()),
        )),
        Kind::Symlink(target) if target.is_empty() => Err(invalid("target", target, "is empty")),
        Kind::Symlink(target) if target.contains(&0) => Err(invalid("target", target, "has a NUL")),
        Kind::Symlink(target) if target.len() > TARGET_MAX => {
            Err(over(format!("a link's target of {} bytes", target.len()), TARGET_MAX as u64))
        }
        Kind::Char(major, minor) | Kind::Block(major, minor) if device(*major, *minor).is_none() => {
            Err(Error::Unsupported {
                feature: format!("device {major}:{minor}"),
                needs: "at most 4095:1048575".to_owned(),
            })
        }
        _ => Ok(()),
    }
}

/// Refuses blocks that no device has.
fn check_blocks(node: &Node, devices: &[u32]) -> Result<()> {
    let Kind::Stored { size, device, block, .. } = node.kind else { return Ok(()) };
    let end = u64::from(block) + size.div_ceil(BLOCK as u64);
    if size > 0 && devices.get(device).is_some_and(|&blocks| end <= blocks.into()) {
        return Ok(());
    }
    Err(invalid("blocks", format!("{block} to {end}").as_bytes(), "are not on the device"))
}

fn over(feature: String, most: u64) -> Error {
    Error::Unsupported { feature, needs: format!("at most {most}") }
}

fn invalid(field: &'static str, value: &[u8], reason: &str) -> Error {
    Error::Invalid { field, value: value.escape_ascii().to_string(), reason: reason.to_owned() }
}

/// The same error, with the path that it is about.
fn located(error: Error, path: &[u8]) -> Error {
    let path = path.escape_ascii();
    match error {
        Error::Unsupported { feature, needs } => {
            Error::Unsupported { feature: format!("{path}: {feature}"), needs }
        }
        Error::Invalid { field, value, reason } => {
            Error::Invalid { field, value: format!("{path}: {value}"), reason }
        }
        other => other,
    }
}
