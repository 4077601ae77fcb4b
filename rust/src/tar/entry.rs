//! An entry as the archive means it: header, extensions and all.

pub use super::pax::Time;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of an earlier entry.
    Hardlink,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// What a header says that makes nothing, for those who tell it on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Said {
    /// The whole mode: some writers repeat the type in it.
    pub mode: i64,
    /// The device's numbers, whatever the entry is.
    pub device: (i64, i64),
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of the inode.
    pub ctime: Option<Time>,
    /// Why Go's archive/tar would read another entry here than we do; None where it would not.
    pub unlike_go: Option<&'static str>,
}

/// One entry; its buffers are used again for the next.
#[derive(Debug)]
pub struct Entry {
    /// The name as it stands in the archive: any bytes but NUL.
    pub name: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// What it makes.
    pub kind: Kind,
    /// Permission and set-id bits: 0 to 07777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Bytes of the file as it will be, holes included.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the file has holes: data may come at any offset, and its size is set at the end.
    pub sparse: bool,
    /// What the header says beside that.
    pub said: Said,
    /// Where its header starts in the uncompressed stream, in bytes.
    pub offset: u64,
    /// Where its content starts there; of a sparse file, its first stored piece. None where nothing is stored.
    pub content_offset: Option<u64>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            name: Vec::new(),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: false,
            said: Said::default(),
            offset: 0,
            content_offset: None,
        }
    }
}
