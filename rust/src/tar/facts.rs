//! What a name in a directory is and has, read without following it.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::entry::{Kind, Time};
use super::metadata::{is_mark, is_overlay_mark};
use super::ownership::Ownership;
use super::record;
use crate::error::{Error, Result};
use crate::root::{Root, to_path};

/// The kernel's bounds for the names of a file's xattrs, all together, and for the value of one.
const XATTRS_MAX_BYTES: usize = 1 << 16;

pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One name's.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    /// Bytes of a file.
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    /// Target of a symbolic link.
    pub(super) link: Vec<u8>,
    /// Those that go into layers, sorted.
    pub(super) xattrs: Xattrs,
    /// Names with the same key are names of one file.
    pub(super) key: (u64, u64),
    /// How many names it has, here or elsewhere.
    pub(super) names: u64,
    /// Of a file: last change of anything, and bytes on disk.
    pub(super) changed: (i64, u64),
    pub(super) stored: u64,
}

impl Facts {
    /// Whether two are the same for a layer, but for the content of files.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (self.kind == Kind::Symlink || self.mode == other.mode) // a link's means nothing
            && (self.uid, self.gid, self.mtime, self.size) == (other.uid, other.gid, other.mtime, other.size)
            && (self.device, &self.link, &self.xattrs) == (other.device, &other.link, &other.xattrs)
    }

    /// As an index has them.
    pub(super) fn new(kind: Kind, key: (u64, u64), names: u64) -> Self {
        Self {
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            size: 0,
            device: (0, 0),
            link: Vec::new(),
            xattrs: Vec::new(),
            key,
            names,
            changed: (0, 0),
            stored: 0,
        }
    }

    /// Whether its file system says that it has holes.
    pub(super) fn has_holes(&self) -> bool {
        self.stored < self.size
    }

    /// Whether an open file is this one, unchanged.
    pub(super) fn is_still(&self, file: &File) -> std::result::Result<bool, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let found = Self::of_stat(&stat);
        Ok(found.is_some_and(|found| {
            (found.kind, found.key, found.size, found.changed)
                == (self.kind, self.key, self.size, self.changed)
        }))
    }

    /// None for a socket, which no archive can hold.
    fn of_stat(stat: &Stat) -> Option<Self> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::Character,
            FileType::BlockDevice => Kind::Block,
            FileType::Fifo => Kind::Fifo,
            _ => return None,
        };
        let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        let is_device = matches!(kind, Kind::Character | Kind::Block);
        #[allow(clippy::useless_conversion, reason = "st_nlink has 32 bits on some machines")]
        Some(Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Time { seconds: stat.st_mtime, nanoseconds },
            size: if kind == Kind::File { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 },
            device: if is_device {
                (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
            } else {
                (0, 0)
            },
            changed: (stat.st_ctime, stat.st_ctime_nsec),
            stored: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            ..Self::new(kind, (stat.st_dev, stat.st_ino), u64::from(stat.st_nlink))
        })
    }
}

/// Reads facts; its buffers are used again.
pub(super) struct Reader {
    list: Vec<u8>,
    value: Vec<u8>,
    recorded: bool,
}

impl Reader {
    /// With records read where owners are recorded.
    pub(super) fn new(ownership: &Ownership) -> Self {
        let recorded = ownership.is_recorded();
        Self { list: vec![0; XATTRS_MAX_BYTES], value: vec![0; XATTRS_MAX_BYTES], recorded }
    }

    /// Of a name in an open directory, "." being that itself; and overlayfs' own marks, which are never a layer's.
    /// None for a socket.
    pub(super) fn read(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
    ) -> std::result::Result<Option<(Facts, Xattrs)>, Errno> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let Some(mut facts) = Facts::of_stat(&stat) else { return Ok(None) };
        if facts.kind == Kind::Symlink {
            // EINVAL: it is no link any more.
            let read = rustix::fs::readlinkat(parent, name, Vec::new());
            facts.link = read.map_err(|e| if e == Errno::INVAL { Errno::STALE } else { e })?.into_bytes();
        }
        let (marks, mut others) =
            self.xattrs(parent, name)?.into_iter().partition(|(name, _)| is_overlay_mark(name));
        let is_layered = !self.recorded || record::read(&mut facts, &mut others)?;
        facts.xattrs = others;
        facts.xattrs.retain(|(name, _)| goes_into_layers(name));
        // Each call looked the name up again: all of it must be one file's.
        let again = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (again.st_dev, again.st_ino, again.st_ctime, again.st_ctime_nsec)
            != (stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec)
        {
            return Err(Errno::STALE);
        }
        Ok(is_layered.then_some((facts, marks)))
    }

    fn xattrs(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<Xattrs, Errno> {
        // The `l` forms take a path only; through /proc the descriptor's directory is reached.
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend_from_slice(name);
        let length = match rustix::fs::llistxattr(path.as_slice(), &mut self.list[..]) {
            Err(Errno::OPNOTSUPP) => 0,
            found => found?,
        };
        let mut found = Vec::new();
        for key in self.list[..length].split(|&b| b == 0).filter(|key| !key.is_empty()) {
            match rustix::fs::lgetxattr(path.as_slice(), key, &mut self.value[..]) {
                Ok(length) => found.push((key.to_vec(), self.value[..length].to_vec())),
                Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// Labels that this host's policy gives say nothing of the image; capabilities are its own.
pub(super) fn goes_into_layers(xattr: &[u8]) -> bool {
    !is_mark(xattr) && (!xattr.starts_with(b"security.") || xattr == b"security.capability")
}

/// Opens a regular file for reading, by a path without links, if it is still what was seen.
///
/// What is there now may be another thing, a device even, which opening would do something to: it is looked at first.
pub(super) fn open_file(root: &Root, path: &[u8], facts: &Facts) -> Result<File> {
    let failed = |e| wrong(path, "open", e);
    let held = root.resolve_plain(path, OFlags::PATH | OFlags::NOFOLLOW).map(File::from).map_err(failed)?;
    if !facts.is_still(&held).map_err(failed)? {
        return Err(changing(path));
    }
    let through = format!("/proc/self/fd/{}", held.as_fd().as_raw_fd());
    rustix::fs::openat(CWD, through, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map(File::from)
        .map_err(|e| wrong(path, "open", e))
}

/// The kernel's refusal; where what was seen is gone, that it was changed.
pub(super) fn wrong(path: &[u8], operation: &'static str, errno: Errno) -> Error {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE => changing(path),
        record::BAD_RECORD => Error::Invalid {
            field: "user.containers.override_stat",
            value: path.escape_ascii().to_string(),
            reason: "its record says nothing that this file can stand for".to_owned(),
        },
        errno => Error::errno(operation, to_path(path), errno),
    }
}

/// Somebody works on the tree while it is read.
pub(super) fn changing(path: &[u8]) -> Error {
    Error::Conflict {
        kind: "file",
        name: if path.is_empty() { ".".to_owned() } else { path.escape_ascii().to_string() },
        state: "changing".to_owned(),
        allowed: "left alone while it is read".to_owned(),
    }
}
