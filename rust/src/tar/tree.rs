//! A layer as a directory, in the form that overlayfs stacks: whiteouts are character devices 0:0, and opaque
//! directories have overlayfs' mark.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::form::{Ended, Form, Made};
use super::index::{Hides, Place, What};
use super::metadata::{Attributes, Maker, mark_opaque};
use super::name;
use super::nodes::{NodeId, Nodes, ROOT};
use super::{failed, refuse};
use crate::error::{Error, Result};
use crate::root;

/// Descriptors of directories kept open: archives go depth first, so nearly every file finds its own.
const OPEN_DIRECTORIES: usize = 256;
/// Until the end nobody but the owner enters.
const WORKING_MODE: u32 = 0o700;

/// Makes `tree/` in a layer's directory.
#[derive(Debug)]
pub(super) struct TreeForm {
    /// The layer's own.
    directory: OwnedFd,
    open: Directories,
    maker: Maker,
    current: Option<File>,
}

impl TreeForm {
    pub(super) fn new(directory: &OwnedFd) -> Result<Self> {
        rustix::fs::mkdirat(directory, "tree", Mode::from_raw_mode(WORKING_MODE))
            .map_err(|e| Error::errno("make directory", "tree", e))?;
        let maker = Maker::of_this_process();
        let tree =
            root::open_directory(directory.as_fd(), b"tree").map_err(|e| Error::errno("open", "tree", e))?;
        maker.take_over(tree.as_fd()).map_err(|(operation, e)| Error::errno(operation, "tree", e))?;
        let directory = directory.try_clone().map_err(|e| Error::io("open", "layer", &e))?;
        let open = Directories { open: HashMap::from([(ROOT, (Arc::new(tree), 0))]), clock: 0 };
        Ok(Self { directory, open, maker, current: None })
    }

    fn finish_directory(&mut self, nodes: &Nodes, id: NodeId) -> Result<u64> {
        let (parent, name) = if id == ROOT {
            (None, b"tree".as_slice())
        } else {
            (Some(self.open.get(nodes, nodes.node(id).parent)?), &*nodes.node(id).name)
        };
        let parent = parent.as_ref().map_or(self.directory.as_fd(), |fd| fd.as_fd());
        let inode = nodes.inode(id);
        let attributes = Attributes {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: &inode.xattrs,
        };
        let wrong = |(operation, errno)| Error::errno(operation, root::to_path(&nodes.path(id)), errno);
        if inode.hides != Hides::Nothing && id != ROOT {
            mark_opaque(parent, name).map_err(|e| wrong(("mark opaque", e)))?;
        }
        self.maker.finish_at(parent, name, Kind::Directory, &attributes).map_err(wrong)
    }
}

impl Form for TreeForm {
    fn digests(&self) -> bool {
        false
    }

    fn make_directory(&mut self, nodes: &Nodes, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<()> {
        let fd = self.open.get(nodes, parent)?;
        rustix::fs::mkdirat(fd.as_fd(), name, Mode::from_raw_mode(WORKING_MODE))
            .map_err(|e| failed(entry, "make directory", e))
    }

    fn begin_file(&mut self, nodes: &Nodes, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<()> {
        let fd = self.open.get(nodes, parent)?;
        self.current = Some(create_file(entry, entry.mode, fd.as_fd(), name)?);
        Ok(())
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.current else { return Ok(()) };
        let written = if entry.sparse {
            std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
        } else {
            std::io::Write::write_all(file, bytes)
        };
        written.map_err(|e| Error::io("write", root::to_path(&entry.name), &e))
    }

    fn end_file(&mut self, _nodes: &Nodes, entry: &Entry, _node: NodeId) -> Result<Ended> {
        let mut ended = Ended { place: Place::Tree, extent: None, blake3: None, skipped_xattrs: 0 };
        let Some(file) = self.current.take() else { return Ok(ended) };
        if entry.sparse {
            file.set_len(entry.size).map_err(|e| Error::io("truncate", root::to_path(&entry.name), &e))?;
        }
        let done = self.maker.finish_file(file.as_fd(), &attributes(entry));
        ended.skipped_xattrs = done.map_err(|(operation, errno)| failed(entry, operation, errno))?;
        Ok(ended)
    }

    fn make_special(&mut self, nodes: &Nodes, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<u64> {
        let fd = self.open.get(nodes, parent)?;
        if entry.kind == Kind::Symlink {
            rustix::fs::symlinkat(entry.link.as_slice(), fd.as_fd(), name)
                .map_err(|e| failed(entry, "make link", e))?;
        } else {
            make_special(entry, fd.as_fd(), name)?;
        }
        let done = self.maker.finish_at(fd.as_fd(), name, entry.kind, &attributes(entry));
        done.map_err(|(operation, errno)| failed(entry, operation, errno))
    }

    fn link(
        &mut self,
        nodes: &Nodes,
        entry: &Entry,
        target: NodeId,
        parent: NodeId,
        name: &[u8],
    ) -> Result<()> {
        let from = self.open.get(nodes, nodes.node(target).parent)?;
        let to = self.open.get(nodes, parent)?;
        let target_name = &*nodes.node(target).name;
        rustix::fs::linkat(from.as_fd(), target_name, to.as_fd(), name, AtFlags::empty())
            .map_err(|e| failed(entry, "link", e))
    }

    fn white_out(&mut self, nodes: &Nodes, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<()> {
        let fd = self.open.get(nodes, parent)?;
        make_whiteout(fd.as_fd(), name).map_err(|e| failed(entry, "make whiteout", e))
    }

    fn keep(&mut self, nodes: &Nodes, node: NodeId, lost: BorrowedFd<'_>, name: &str) -> Result<()> {
        let fd = self.open.get(nodes, nodes.node(node).parent)?;
        rustix::fs::linkat(fd.as_fd(), &*nodes.node(node).name, lost, name, AtFlags::empty())
            .map_err(|e| Error::errno("link", "lost", e))
    }

    fn remove(&mut self, nodes: &Nodes, entry: &Entry, node: NodeId) -> Result<()> {
        let (what, flags) = match nodes.inode(node).what {
            What::Directory => ("remove directory", AtFlags::REMOVEDIR),
            _ => ("remove", AtFlags::empty()),
        };
        self.open.open.remove(&node);
        let fd = self.open.get(nodes, nodes.node(node).parent)?;
        rustix::fs::unlinkat(fd.as_fd(), &*nodes.node(node).name, flags).map_err(|e| failed(entry, what, e))
    }

    fn forget(&mut self, removed: &[NodeId]) {
        for node in removed {
            self.open.open.remove(node);
        }
    }

    fn finish(&mut self, nodes: &Nodes) -> Result<Made> {
        // Children first: a directory may forbid its owner to enter, and times change with every name made in it.
        let mut order = nodes.below(ROOT);
        order.retain(|&id| nodes.is_directory(id));
        let mut made = Made::default();
        for id in order.into_iter().rev() {
            made.skipped_xattrs += self.finish_directory(nodes, id)?;
        }
        Ok(made)
    }
}

/// The directories that are open, least recently used ones closed.
#[derive(Debug)]
struct Directories {
    open: HashMap<NodeId, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

impl Directories {
    fn get(&mut self, nodes: &Nodes, id: NodeId) -> Result<Arc<OwnedFd>> {
        self.clock += 1;
        if let Some((fd, used)) = self.open.get_mut(&id) {
            *used = self.clock;
            return Ok(Arc::clone(fd));
        }
        let mut missing = vec![id];
        let mut at = nodes.node(id).parent;
        while !self.open.contains_key(&at) {
            missing.push(at);
            at = nodes.node(at).parent; // ends at the root, which is never closed
        }
        let mut fd = Arc::clone(&self.open[&at].0);
        while let Some(id) = missing.pop() {
            let name = &nodes.node(id).name;
            let opened = open_path(fd.as_fd(), name)
                .map_err(|e| Error::errno("open", root::to_path(&nodes.path(id)), e))?;
            fd = Arc::new(opened);
            self.keep(id, &fd);
        }
        Ok(fd)
    }

    fn keep(&mut self, id: NodeId, fd: &Arc<OwnedFd>) {
        if self.open.len() >= OPEN_DIRECTORIES {
            let oldest = self.open.iter().filter(|(id, _)| **id != ROOT).min_by_key(|(_, (_, used))| *used);
            if let Some((&oldest, _)) = oldest {
                self.open.remove(&oldest);
            }
        }
        self.open.insert(id, (Arc::clone(fd), self.clock));
    }
}

fn open_path(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The attributes that an entry asks for.
pub(super) fn attributes(entry: &Entry) -> Attributes<'_> {
    Attributes { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: &entry.xattrs }
}

/// Makes an empty file that was not there, with the permission bits of a mode.
pub(super) fn create_file(entry: &Entry, mode: u32, parent: BorrowedFd<'_>, name: &[u8]) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Set-id bits wait for the owner: a chown clears them.
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode & 0o777))
        .map(File::from)
        .map_err(|e| failed(entry, "create", e))
}

/// Refuses a symbolic link that cannot be made.
pub(super) fn check_symlink(entry: &Entry) -> Result<()> {
    if entry.kind != Kind::Symlink {
        return Ok(());
    }
    if entry.link.is_empty() {
        return Err(refuse(entry, "symbolic link without a target"));
    }
    name::check_length(entry.link.len()).map_err(|e| refuse(entry, format!("symbolic link target: {e}")))
}

/// Refuses a device that would act as overlayfs' mark.
pub(super) fn check_special(entry: &Entry) -> Result<()> {
    if entry.kind == Kind::Character && entry.device == (0, 0) {
        return Err(refuse(entry, "character device 0:0 is overlayfs' whiteout"));
    }
    Ok(())
}

/// Makes a device or a pipe that was checked.
pub(super) fn make_special(entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let (kind, device) = match entry.kind {
        Kind::Character => (FileType::CharacterDevice, entry.device),
        Kind::Block => (FileType::BlockDevice, entry.device),
        _ => (FileType::Fifo, (0, 0)),
    };
    let mode = Mode::from_raw_mode(entry.mode & 0o777);
    rustix::fs::mknodat(parent, name, kind, mode, makedev(device.0, device.1))
        .map_err(|e| failed(entry, "mknod", e))
}

/// Overlayfs' whiteout: a character device 0:0, which any user may make since Linux 5.8.
pub(super) fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), Errno> {
    rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0))
}
