//! Images read back as strictly as the strictest of kernels: what the tree was is found again, where nothing can be mounted
//! too. Written from the format's description, not from the writer.

use std::collections::HashMap;

use pyctrd_core::erofs::{Kind, Node, NodeId, Tree};

use super::random::{Random, tree as random_tree};
use super::{directory, file, hole, image, plain, put};

const BLOCK: usize = 4096;
const NO_CHUNK: u64 = 0xFFFF_FFFF;

struct Reader<'a> {
    bytes: &'a [u8],
    epoch: (i64, u32),
    /// Inodes that were read, by number.
    known: HashMap<u64, NodeId>,
    links: HashMap<NodeId, u64>,
}

/// An inode's fields, whichever form it has.
struct Inode {
    layout: u16,
    kind: u32,
    links: u64,
    size: u64,
    union: u32,
    /// Where its fields end.
    fields_end: usize,
    /// Where its content or chunks begin.
    body_end: usize,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let mut reader = Self { bytes, epoch: (0, 0), known: HashMap::new(), links: HashMap::new() };
        assert_eq!(bytes.len() % BLOCK, 0);
        assert_eq!(reader.number(1024, 4), 0xE0F5_E1E2, "magic");
        assert_eq!(reader.number(1036, 1), 12, "block bits");
        assert_eq!(reader.number(1060, 4), (bytes.len() / BLOCK) as u64, "blocks");
        assert_eq!(reader.number(1104, 4) & !4, 0, "no incompatible feature but chunks");
        let mut block = bytes[1024..BLOCK].to_vec();
        block[4..8].fill(0);
        let sum = block.iter().fold(u32::MAX, |sum, &byte| {
            (0..8).fold(sum ^ u32::from(byte), |sum, _| {
                let shifted = sum >> 1;
                if sum % 2 == 0 { shifted } else { shifted ^ 0x82F6_3B78 }
            })
        });
        assert_eq!(reader.number(1028, 4), u64::from(sum), "checksum");
        let nanoseconds = u32::try_from(reader.number(1056, 4)).expect("nanoseconds");
        reader.epoch = (reader.number(1048, 8).cast_signed(), nanoseconds);
        reader
    }

    fn number(&self, at: usize, width: usize) -> u64 {
        self.bytes[at..at + width].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn small(&self, at: usize, width: usize) -> u32 {
        u32::try_from(self.number(at, width)).expect("a small number")
    }

    fn at(nid: u64) -> usize {
        usize::try_from(nid * 32).expect("a small image")
    }

    fn inode(&self, nid: u64) -> (Inode, Node) {
        let at = Self::at(nid);
        let format = self.small(at, 2);
        assert_eq!(format & !0xF, 0, "no unknown bits");
        let extended = format % 2 == 1;
        let units = usize::try_from(self.number(at + 2, 2)).expect("small");
        let mode = self.small(at + 4, 2);
        let (fields_end, links, size, owner, mtime) = if extended {
            let mtime = (self.number(at + 32, 8).cast_signed(), self.small(at + 40, 4));
            let owner = (self.small(at + 24, 4), self.small(at + 28, 4));
            (at + 64, self.number(at + 44, 4), self.number(at + 8, 8), owner, mtime)
        } else {
            assert_eq!(
                self.number(at + 12, 4),
                0,
                "no seconds beside the epoch, which older kernels do not add"
            );
            let owner = (self.small(at + 24, 2), self.small(at + 26, 2));
            (at + 32, self.number(at + 6, 2), self.number(at + 8, 4), owner, self.epoch)
        };
        let body_end = fields_end + if units == 0 { 0 } else { 12 + (units - 1) * 4 };
        let layout = u16::try_from(format >> 1).expect("bits");
        let union = self.small(at + 16, 4);
        let inode = Inode { layout, kind: mode >> 12, links, size, union, fields_end, body_end };
        let xattrs = self.xattrs(fields_end, body_end);
        let node =
            Node { mode: mode & 0o7777, uid: owner.0, gid: owner.1, mtime, xattrs, ..plain(Kind::Fifo) };
        (inode, node)
    }

    fn xattrs(&self, start: usize, end: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = start + 12;
        assert!(start == end || self.number(start + 4, 1) == 0, "none is shared");
        while at < end {
            let name_end = at + 4 + usize::try_from(self.number(at, 1)).expect("small");
            let value_end = name_end + usize::try_from(self.number(at + 2, 2)).expect("small");
            let prefix = match self.bytes[at + 1] {
                1 => "user.",
                2 => "system.posix_acl_access",
                3 => "system.posix_acl_default",
                4 => "trusted.",
                6 => "security.",
                other => panic!("prefix {other}"),
            };
            let name = [prefix.as_bytes(), &self.bytes[at + 4..name_end]].concat();
            found.push((name, self.bytes[name_end..value_end].to_vec()));
            at = value_end.next_multiple_of(4);
        }
        assert_eq!(at.min(end), end);
        found
    }

    fn content(&self, inode: &Inode) -> Vec<u8> {
        let size = usize::try_from(inode.size).expect("small");
        let start = usize::try_from(inode.union).expect("small") * BLOCK;
        match inode.layout {
            0 => self.bytes[if size == 0 { 0..0 } else { start..start + size }].to_vec(),
            2 => {
                let (whole, tail) = (size / BLOCK * BLOCK, size % BLOCK);
                let (first, last) = (inode.body_end / BLOCK, (inode.body_end + tail - 1) / BLOCK);
                assert!(tail > 0 && first == last, "a tail is in one block");
                // Older kernels look for a link in the block where the inode's fields end, if they do so within it.
                let fields = inode.fields_end / BLOCK;
                assert!(inode.kind != 0o12 || fields == first, "a link is in its inode's block");
                let whole = if whole == 0 { 0..0 } else { start..start + whole };
                [&self.bytes[whole], &self.bytes[inode.body_end..inode.body_end + tail]].concat()
            }
            other => panic!("layout {other}"),
        }
    }

    /// Reads an inode, and all below it, into a tree; the nodes to look into are given back.
    fn node(&self, nid: u64) -> (Inode, Node) {
        let (inode, mut node) = self.inode(nid);
        let device = |number: u32| (number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00);
        node.kind = match inode.kind {
            0o04 => Kind::Directory(Vec::new()),
            0o10 if inode.layout == 4 => {
                let chunk = (BLOCK as u64) << inode.union;
                for position in 0..inode.size.div_ceil(chunk) {
                    let at = inode.body_end + 4 * usize::try_from(position).expect("small");
                    assert_eq!(self.number(at, 4), NO_CHUNK);
                }
                Kind::File { size: inode.size, data: Vec::new() }
            }
            0o10 => Kind::File { size: inode.size, data: self.content(&inode) },
            0o12 => Kind::Symlink(self.content(&inode)),
            0o01 => Kind::Fifo,
            0o14 => Kind::Socket,
            0o02 => Kind::Char(device(inode.union).0, device(inode.union).1),
            0o06 => Kind::Block(device(inode.union).0, device(inode.union).1),
            other => panic!("type {other:o}"),
        };
        (inode, node)
    }

    fn entries(&self, inode: &Inode) -> Vec<(Vec<u8>, u64, u8)> {
        let content = self.content(inode);
        let short = |at: usize| usize::from(u16::from_le_bytes([content[at], content[at + 1]]));
        let mut found: Vec<(Vec<u8>, u64, u8)> = Vec::new();
        for start in (0..content.len()).step_by(BLOCK) {
            let end = content.len().min(start + BLOCK);
            let count = short(start + 8) / 12;
            for position in 0..count {
                let at = start + position * 12;
                let name_at = start + short(at + 8);
                let name_end = if position + 1 < count {
                    start + short(at + 20)
                } else {
                    (name_at..end).find(|&at| content[at] == 0).unwrap_or(end)
                };
                let nid = content[at..at + 8].iter().rev().fold(0, |nid, &byte| nid << 8 | u64::from(byte));
                found.push((content[name_at..name_end].to_vec(), nid, content[at + 10]));
            }
        }
        assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "names are in order");
        found
    }

    fn read(mut self) -> Tree {
        let root = self.number(1038, 2);
        let (inode, node) = self.node(root);
        let mut tree = Tree::new(node);
        self.known.insert(root, tree.root());
        self.links.insert(tree.root(), inode.links);
        let mut left = vec![(root, inode, tree.root(), root)];
        while let Some((nid, inode, id, parent)) = left.pop() {
            for (name, child, kind) in self.entries(&inode) {
                if name == b"." || name == b".." {
                    assert_eq!(child, if name == b"." { nid } else { parent });
                    continue;
                }
                let (read, node) = self.node(child);
                let types = [(0o10, 1), (0o04, 2), (0o02, 3), (0o06, 4), (0o01, 5), (0o14, 6), (0o12, 7)];
                assert!(types.contains(&(read.kind, kind)), "a name's type is its inode's");
                let is_directory = read.kind == 0o04;
                let found = *self.known.entry(child).or_insert_with(|| tree.add(node));
                self.links.insert(found, read.links);
                tree.link(id, name, found);
                if is_directory {
                    left.push((child, read, found, nid));
                }
            }
        }
        assert_eq!(self.number(1040, 8), self.known.len() as u64, "inodes");
        self.check_links(&tree);
        tree
    }

    fn check_links(&self, tree: &Tree) {
        let mut counted: HashMap<NodeId, u64> = HashMap::new();
        for id in self.known.values() {
            let Kind::Directory(entries) = &tree.node(*id).kind else { continue };
            *counted.entry(*id).or_insert(0) += 2;
            for (_, child) in entries {
                let is_directory = matches!(tree.node(*child).kind, Kind::Directory(_));
                *counted.entry(if is_directory { *id } else { *child }).or_insert(0) += 1;
            }
        }
        assert_eq!(counted, self.links, "links");
    }
}

/// Two trees with the same names for the same nodes, whatever the nodes' numbers.
fn assert_same(one: &Tree, other: &Tree) {
    let mut pairs = HashMap::new();
    let mut left = vec![(one.root(), other.root())];
    while let Some((first, second)) = left.pop() {
        if let Some(known) = pairs.insert(first, second) {
            assert_eq!(known, second, "a node has all of its names");
            continue;
        }
        let (mut a, mut b) = (one.node(first).clone(), other.node(second).clone());
        a.xattrs.sort_unstable();
        b.xattrs.sort_unstable();
        if let (Kind::Directory(a), Kind::Directory(b)) = (&mut a.kind, &mut b.kind) {
            a.sort_unstable();
            b.sort_unstable();
            assert!(a.iter().map(|entry| &entry.0).eq(b.iter().map(|entry| &entry.0)), "names");
            left.extend(a.drain(..).map(|entry| entry.1).zip(b.drain(..).map(|entry| entry.1)));
        }
        assert_eq!(a, b);
    }
}

fn check(tree: &Tree) {
    assert_same(tree, &Reader::new(&image(tree)).read());
}

#[test]
fn random_trees_are_read_back() {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    for round in 0..300 {
        check(&random_tree(&mut random, 1 + round));
    }
}

#[test]
fn a_tree_without_holes_needs_no_feature() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    put(&mut tree, root, "file", file(b"content"));
    assert_eq!(Reader::new(&image(&tree)).number(1104, 4), 0);
    put(&mut tree, root, "hole", hole(1));
    assert_eq!(Reader::new(&image(&tree)).number(1104, 4), 4);
}

#[test]
fn the_most_frequent_time_makes_inodes_compact() {
    let mut tree = Tree::new(Node { mtime: (1, 0), ..directory() });
    let root = tree.root();
    for number in 0..100 {
        put(&mut tree, root, format!("{number:03}"), Node { mtime: (-7, 9), ..file(b"") });
    }
    let bytes = image(&tree);
    let reader = Reader::new(&bytes);
    assert_eq!(reader.epoch, (-7, 9));
    // The root, its names in one block, and a slot for each file.
    assert_eq!(bytes.len(), 2 * BLOCK);
    assert_same(&tree, &reader.read());
}

#[test]
fn the_same_tree_makes_the_same_bytes() {
    let build = |turned: bool| {
        let mut tree = random_tree(&mut Random(0x2545_f491_4f6c_dd1d), 500);
        if turned {
            // Neither the order of names nor that of attributes is anything of a file system.
            let mut left = vec![tree.root()];
            while let Some(id) = left.pop() {
                tree.node_mut(id).xattrs.reverse();
                let Kind::Directory(entries) = &mut tree.node_mut(id).kind else { continue };
                entries.reverse();
                left.extend(entries.iter().map(|entry| entry.1));
            }
            tree.add(file(b"that has no name"));
        }
        image(&tree)
    };
    let bytes = build(false);
    assert!(bytes == build(false));
    assert!(bytes == build(true));
}
