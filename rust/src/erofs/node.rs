//! What goes into an image: inodes, and the names that directories give them.

/// One inode. Names are in the directories; several names of one [`NodeId`] are hard links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is, with what is in it.
    pub kind: Kind,
    /// Permission bits with set-id and sticky, no type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes by full name: "user.x", "trusted.overlay.opaque", "security.capability",
    /// "`system.posix_acl_access`". Their order does not matter.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Names and what they name, in any order; `.` and `..` are added when it is written.
    Directory(Vec<(Vec<u8>, NodeId)>),
    /// A regular file.
    File {
        /// As `stat` shows it.
        size: u64,
        /// All of the content; or nothing, and the file is a hole of its size: overlayfs takes it from an object.
        data: Vec<u8>,
    },
    /// A regular file whose content is asked for when it is written: [`super::write_with`].
    Kept {
        /// Its bytes.
        size: u64,
    },
    /// A regular file whose blocks are on another device, one after the other.
    Stored {
        /// Its bytes, at least one.
        size: u64,
        /// What [`Tree::add_device`] gave.
        device: usize,
        /// The first of its blocks there.
        block: u32,
        /// Of a file with holes, which of its blocks are none: from one up to another, in order.
        data: Option<Vec<(u64, u64)>>,
    },
    /// Where a symbolic link leads.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket's name.
    Socket,
    /// A character device: major and minor number. 0:0 is overlayfs' whiteout.
    Char(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
}

/// A node of one tree; it says nothing in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) usize);

/// Inodes, and how they hang together. Whether they make a file system is checked when they are written.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
    /// The first name that was to go into something else than a directory.
    stray: Option<Vec<u8>>,
    uuid: [u8; 16],
    devices: Vec<u32>,
}

impl Tree {
    /// Nothing but a root directory.
    #[must_use]
    pub fn new(root: Node) -> Self {
        Self { nodes: vec![root], stray: None, uuid: [0; 16], devices: Vec::new() }
    }

    /// Says what the file system is known by, which is nothing otherwise. Overlayfs notes it in what it copies up, and
    /// finds the file's inode number again by it in another mount of the same upper directory.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.uuid = uuid;
    }

    /// Says that there is another device of so many blocks of 4 KiB, to be named in this order when the image is mounted;
    /// its number.
    pub fn add_device(&mut self, blocks: u32) -> usize {
        self.devices.push(blocks);
        self.devices.len() - 1
    }

    /// Takes a node in, which has no name yet. What is never named is not written.
    pub fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId(self.nodes.len() - 1)
    }

    /// Gives a node a name in a directory. If `parent` is none, writing the tree will say so.
    ///
    /// # Panics
    /// If `parent` is another tree's.
    pub fn link(&mut self, parent: NodeId, name: Vec<u8>, child: NodeId) {
        match &mut self.nodes[parent.0].kind {
            Kind::Directory(entries) => entries.push((name, child)),
            _ => _ = self.stray.get_or_insert(name),
        }
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> NodeId {
        NodeId(0)
    }

    /// A node.
    ///
    /// # Panics
    /// If it is another tree's.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// A node, to be changed.
    ///
    /// # Panics
    /// If it is another tree's.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// How many nodes there are, the root and those without a name included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: there is a root.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A node, if it is this tree's.
    pub(super) fn find(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)
    }

    pub(super) fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    pub(super) fn devices(&self) -> &[u32] {
        &self.devices
    }

    pub(super) fn stray(&self) -> Option<&[u8]> {
        self.stray.as_deref()
    }
}
