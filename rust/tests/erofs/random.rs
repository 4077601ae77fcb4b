//! Trees that come out the same each time.

use std::collections::HashSet;

use pyctrd_core::erofs::{Kind, Node, NodeId, Tree};

use super::{directory, put};

/// Around what decides where a piece of content goes.
const LENGTHS: [usize; 18] =
    [0, 1, 2, 31, 32, 33, 100, 1000, 2000, 3000, 3900, 4031, 4032, 4064, 4096, 4097, 8192, 65_537];
const HOLES: [u64; 8] =
    [1, 4095, 4096, 4097, 1 << 20, u32::MAX as u64 + 1, (8 << 40) + 1, 100_000_000_000_000];

pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("below a usize")
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn number(&mut self, most: u32) -> u32 {
        u32::try_from(self.below(most as usize + 1)).expect("no more than that")
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Any bytes that a name can have.
    fn name(&mut self) -> Vec<u8> {
        let length = match self.below(8) {
            0 => 255,
            1 => 1,
            2 => 1 + self.below(255),
            _ => 1 + self.below(20),
        };
        let mut name = self.bytes(length);
        name.iter_mut().filter(|byte| matches!(byte, 0 | b'/')).for_each(|byte| *byte = b'.');
        name
    }
}

/// A tree of about as many nodes, all of which the kernel can show.
pub(crate) fn tree(random: &mut Random, nodes: usize) -> Tree {
    let mut root = directory();
    decorate(random, &mut root);
    let mut tree = Tree::new(root);
    let mut directories = vec![tree.root()];
    let mut others: Vec<NodeId> = Vec::new();
    let mut names = HashSet::from([vec![b'.'], vec![b'.', b'.']].map(|name| (tree.root(), name)));
    for _ in 0..nodes {
        // Half of all in one directory, which then has several blocks.
        let parent = if random.below(2) == 0 { directories[0] } else { random.pick(&directories) };
        let name = random.name();
        if name == b"." || name == b".." || !names.insert((parent, name.clone())) {
            continue;
        }
        if !others.is_empty() && random.below(10) == 0 {
            tree.link(parent, name, random.pick(&others));
            continue;
        }
        let node = node(random);
        let is_directory = matches!(node.kind, Kind::Directory(_));
        let id = put(&mut tree, parent, name, node);
        if is_directory { directories.push(id) } else { others.push(id) }
    }
    tree
}

fn node(random: &mut Random) -> Node {
    let mut node = directory();
    node.kind = match random.below(12) {
        0 | 1 => Kind::Directory(Vec::new()),
        2..=4 => {
            let length = random.pick(&LENGTHS);
            Kind::File { size: length as u64, data: random.bytes(length) }
        }
        5 | 6 => Kind::File { size: random.pick(&HOLES), data: Vec::new() },
        7 | 8 => {
            let most = random.pick(&[4095, 60, 60]);
            let length = 1 + random.below(most);
            let mut target = random.bytes(length);
            target.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b'x');
            Kind::Symlink(target)
        }
        9 if random.below(2) == 0 => Kind::Fifo,
        9 => Kind::Socket,
        10 => Kind::Char(random.number(4095), random.number(1_048_575)),
        _ => Kind::Block(random.pick(&[0, 1, 255, 256, 4095]), random.pick(&[0, 1, 255, 256, 1_048_575])),
    };
    decorate(random, &mut node);
    node
}

fn decorate(random: &mut Random, node: &mut Node) {
    node.mode = random.number(0o7777);
    node.uid = random.pick(&[0, 1000, 65_535, 65_536, u32::MAX - 1]);
    node.gid = random.pick(&[0, 0, 100, 65_536]);
    let seconds = random.pick(&[1_700_000_000, 1_700_000_000, 0, -1, -5_000_000_000, 1 << 40]);
    node.mtime = (seconds, random.pick(&[0, 0, 1, 999_999_999]));
    if random.below(3) == 0 {
        node.xattrs = xattrs(random, &node.kind);
    }
}

fn xattrs(random: &mut Random, kind: &Kind) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for position in 0..=random.below(4) {
        let prefix = random.pick(&["user.", "trusted.", "trusted.overlay.", "security."]);
        let rest = random.below(20);
        let name = format!("{prefix}{position}{}", "n".repeat(rest));
        let length = random.pick(&[0, 1, 3, 4, 36, 300, 4096, 20_000]);
        found.push((name.into_bytes(), random.bytes(length)));
    }
    if matches!(kind, Kind::File { .. } | Kind::Directory(_)) && random.below(3) == 0 {
        found.push((b"system.posix_acl_access".to_vec(), acl(random)));
    }
    if matches!(kind, Kind::File { .. }) && random.below(3) == 0 {
        // Version 2: flags, and two masks of two words.
        let mut capability = vec![1, 0, 0, 2];
        capability.extend_from_slice(&random.bytes(4));
        capability.extend_from_slice(&[0; 12]);
        found.push((b"security.capability".to_vec(), capability));
    }
    found
}

/// Owner, a user, group, mask and others: what `getfattr` shows of a file that `setfacl` was used on.
fn acl(random: &mut Random) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, id) in [(1u16, u32::MAX), (2, 1000), (4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)] {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&u16::try_from(random.below(8)).expect("permissions").to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}
