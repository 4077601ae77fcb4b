//! A layer made in a directory of its own, in the form that overlayfs stacks.
//!
//! Nobody else writes there, so safety needs no `openat2` for each file: every directory was made by this writer,
//! every name is made with `O_EXCL` or a call that refuses an existing one, and what stands where is known from
//! [`Nodes`]. Whiteouts become character devices 0:0 and opaque directories get overlayfs' mark.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::frame::FrameWriter;
use super::index::{self, Hides, What};
use super::limits::{Limits, Meter};
use super::metadata::{Attributes, Maker, set_xattr_at};
use super::name::{self, Last};
use super::nodes::{Inode, NodeId, Nodes, ROOT, Step};
use super::stream::{Sink, Stream};
use super::{AppliedLayer, failed, refuse};
use crate::error::{Error, Result};
use crate::root;

/// Descriptors of directories kept open: archives go depth first, so nearly every file finds its own.
const OPEN_DIRECTORIES: usize = 256;
/// Until the end nobody but the owner enters.
const WORKING_MODE: u32 = 0o700;

/// Makes `tree/` and `index` in a directory from an archive that is pushed in.
#[derive(Debug)]
pub struct LayerWriter {
    stream: Stream,
    layer: Layer,
}

impl LayerWriter {
    /// Starts in an empty directory, which becomes the layer's.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(directory: OwnedFd, limits: Limits) -> Result<Self> {
        rustix::fs::mkdirat(&directory, "tree", Mode::from_raw_mode(WORKING_MODE))
            .map_err(|e| Error::errno("make directory", "tree", e))?;
        let maker = Maker::of_this_process();
        let tree =
            root::open_directory(directory.as_fd(), b"tree").map_err(|e| Error::errno("open", "tree", e))?;
        maker.take_over(tree.as_fd()).map_err(|(operation, e)| Error::errno(operation, "tree", e))?;
        let frame = FrameWriter::create(directory.as_fd())?;
        let layer = Layer {
            directory,
            nodes: Nodes::default(),
            open: Directories { open: HashMap::from([(ROOT, (Arc::new(tree), 0))]), clock: 0 },
            maker,
            frame,
            current: None,
            digests: false,
            meter: Meter::new(limits),
        };
        Ok(Self { stream: Stream::new(limits), layer })
    }

    /// The same writer, whose index will have the BLAKE3 of every regular file's content, but for sparse files: their
    /// holes would be hashed byte by byte.
    #[must_use]
    pub fn with_content_digests(mut self) -> Self {
        self.layer.digests = true;
        self
    }

    /// Takes in the next bytes of the uncompressed archive.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] for what is refused, [`Error::Io`] where the kernel refused.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write(bytes, &mut self.layer)
    }

    /// Ends the layer: attributes of directories are set, the index is written. Nothing is flushed yet.
    ///
    /// # Errors
    /// As [`LayerWriter::write`]; an archive that was cut off.
    pub fn finish(self) -> Result<AppliedLayer> {
        self.stream.finish()?;
        self.layer.finish()
    }
}

#[derive(Debug)]
struct Layer {
    directory: OwnedFd,
    nodes: Nodes,
    open: Directories,
    maker: Maker,
    frame: FrameWriter,
    current: Option<Current>,
    digests: bool,
    meter: Meter,
}

/// The regular file that is being written.
#[derive(Debug)]
struct Current {
    file: File,
    node: NodeId,
    hasher: Option<Box<blake3::Hasher>>,
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

impl Sink for Layer {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        self.meter.count(entry)?;
        let split = name::split(&entry.name).map_err(|e| refuse(entry, e))?;
        let parents = split.parents.iter().map(|part| part.to_vec()).collect();
        let parent = self.enter(entry, ROOT, parents)?;
        if let Last::Name(name) | Last::Whiteout(name) = split.last {
            let (depth, path_bytes) = self.nodes.place(parent, name);
            self.meter.place(entry, depth, path_bytes)?;
        }
        match split.last {
            Last::Itself => self.update_directory(entry, parent),
            Last::Name(name) => self.make(entry, parent, name),
            Last::Whiteout(name) => self.white_out(entry, parent, name),
            Last::Opaque => {
                let inode = self.nodes.inode_mut(parent);
                inode.hides = inode.hides.max(Hides::Content);
                Ok(())
            }
            Last::Reserved => Ok(()),
        }
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        // What is not written anywhere, as the bytes of a whiteout, belongs to the frame.
        let Some(current) = &mut self.current else { return self.frame.raw(bytes) };
        if let Some(hasher) = &mut current.hasher {
            hasher.update(bytes);
        }
        let written = if entry.sparse {
            std::os::unix::fs::FileExt::write_all_at(&current.file, bytes, offset)
        } else {
            std::io::Write::write_all(&mut current.file, bytes)
        };
        written.map_err(|e| Error::io("write", root::to_path(&entry.name), &e))?;
        self.frame.content(current.node, offset, bytes.len() as u64)
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        self.frame.raw(bytes)
    }

    fn end(&mut self, entry: &Entry) -> Result<()> {
        let Some(Current { file, node, hasher }) = self.current.take() else { return Ok(()) };
        self.nodes.inode_mut(node).blake3 = hasher.map(|hasher| hasher.finalize().into());
        if entry.sparse {
            file.set_len(entry.size).map_err(|e| Error::io("truncate", root::to_path(&entry.name), &e))?;
        }
        let done = self.maker.finish_file(file.as_fd(), &attributes(entry));
        let skipped = done.map_err(|(operation, errno)| failed(entry, operation, errno))?;
        self.meter.skip_xattrs(skipped);
        Ok(())
    }
}

impl Layer {
    /// The directory that components lead to; what is missing of it is made.
    fn enter(&mut self, entry: &Entry, from: NodeId, parts: Vec<Vec<u8>>) -> Result<NodeId> {
        let (mut from, mut parts) = (from, parts);
        loop {
            match self.nodes.walk(from, parts).map_err(|e| refuse(entry, e))? {
                Step::Found(id) => return Ok(id),
                Step::Missing { parent, name, replaces, rest } => {
                    let mut inode = Inode::implied();
                    if let Some(old) = replaces {
                        // What was whited out below stays hidden: the new directory shows nothing of it.
                        inode.hides = Hides::Name;
                        self.remove(entry, old)?;
                    }
                    let (depth, path_bytes) = self.nodes.place(parent, &name);
                    self.meter.imply(entry, depth, path_bytes)?;
                    from = self.make_directory(entry, parent, &name, inode)?;
                    parts = rest;
                }
            }
        }
    }

    fn make_directory(&mut self, entry: &Entry, parent: NodeId, name: &[u8], inode: Inode) -> Result<NodeId> {
        let fd = self.open.get(&self.nodes, parent)?;
        rustix::fs::mkdirat(fd.as_fd(), name, Mode::from_raw_mode(WORKING_MODE))
            .map_err(|e| failed(entry, "make directory", e))?;
        self.nodes.add(parent, name, inode).map_err(|e| refuse(entry, e))
    }

    fn update_directory(&mut self, entry: &Entry, id: NodeId) -> Result<()> {
        if entry.kind != Kind::Directory {
            return Err(refuse(entry, "its name comes down to a directory that is there, and it is none"));
        }
        let hides = self.nodes.inode(id).hides;
        *self.nodes.inode_mut(id) = Inode { hides, ..Inode::of(entry) };
        Ok(())
    }

    fn make(&mut self, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<()> {
        let there = self.nodes.child(parent, name);
        if entry.kind == Kind::Hardlink {
            return self.make_link(entry, parent, name, there);
        }
        if entry.kind == Kind::Directory {
            let mut inode = Inode::of(entry);
            if let Some(old) = there {
                if self.nodes.is_directory(old) {
                    return self.update_directory(entry, old);
                }
                // Something else stood here in between: of a lower layer's directory nothing is left.
                inode.hides = Hides::Name;
                self.remove(entry, old)?;
            }
            return self.make_directory(entry, parent, name, inode).map(|_| ());
        }
        if let Some(old) = there {
            self.remove(entry, old)?;
        }
        let fd = self.open.get(&self.nodes, parent)?;
        let file = match entry.kind {
            Kind::File => Some(create_file(entry, entry.mode, fd.as_fd(), name)?),
            Kind::Symlink => self.make_symlink(entry, fd.as_fd(), name).map(|()| None)?,
            _ => self.make_node(entry, fd.as_fd(), name).map(|()| None)?,
        };
        let node = self.nodes.add(parent, name, Inode::of(entry)).map_err(|e| refuse(entry, e))?;
        let hasher = (self.digests && !entry.sparse).then(|| Box::new(blake3::Hasher::new()));
        self.current = file.map(|file| Current { file, node, hasher });
        Ok(())
    }

    fn make_symlink(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        check_symlink(entry)?;
        rustix::fs::symlinkat(entry.link.as_slice(), parent, name)
            .map_err(|e| failed(entry, "make link", e))?;
        self.set_attributes(entry, parent, name)
    }

    fn make_node(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        check_special(entry)?;
        make_special(entry, parent, name)?;
        self.set_attributes(entry, parent, name)
    }

    fn set_attributes(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let done = self.maker.finish_at(parent, name, entry.kind, &attributes(entry));
        let skipped = done.map_err(|(operation, errno)| failed(entry, operation, errno))?;
        self.meter.skip_xattrs(skipped);
        Ok(())
    }

    fn make_link(&mut self, entry: &Entry, parent: NodeId, name: &[u8], there: Option<NodeId>) -> Result<()> {
        let found = self.find_target(entry)?;
        if let Ok(target) = found {
            if self.nodes.is_directory(target) {
                return Err(refuse(entry, "hard link to a directory"));
            }
            if there.is_some_and(|old| self.nodes.node(old).inode == self.nodes.node(target).inode) {
                return Ok(()); // it is that file already
            }
        }
        if let Some(old) = there {
            self.remove(entry, old)?;
        }
        let made = match found {
            Err(path) => {
                let inode = Inode { link: path, ..Inode::bare(What::Foreign) };
                self.nodes.add(parent, name, inode)
            }
            Ok(target) => {
                if self.nodes.is_removed(target) {
                    return Err(refuse(entry, "hard link takes the place of its own target"));
                }
                if self.nodes.inode(target).what != What::Foreign {
                    let from = self.open.get(&self.nodes, self.nodes.node(target).parent)?;
                    let to = self.open.get(&self.nodes, parent)?;
                    let target_name = &*self.nodes.node(target).name;
                    rustix::fs::linkat(from.as_fd(), target_name, to.as_fd(), name, AtFlags::empty())
                        .map_err(|e| failed(entry, "link", e))?;
                }
                self.nodes.link(parent, name, self.nodes.node(target).inode)
            }
        };
        made.map_err(|e| refuse(entry, e)).map(|_| ())
    }

    /// What a hard link names: a node of this layer, or else the path at which a lower layer must have it.
    fn find_target(&self, entry: &Entry) -> Result<std::result::Result<NodeId, Vec<u8>>> {
        let mut parts = name::components(&entry.link).map_err(|e| refuse(entry, e))?;
        let Some(last) = parts.pop().filter(|last| *last != b"..") else {
            return Err(refuse(entry, "hard link to a directory"));
        };
        let parents = parts.into_iter().map(<[u8]>::to_vec).collect();
        match self.nodes.walk(ROOT, parents).map_err(|e| refuse(entry, format!("hard link target: {e}")))? {
            Step::Found(parent) => match self.nodes.child(parent, last) {
                Some(id) if self.nodes.inode(id).what != What::Whiteout => Ok(Ok(id)),
                _ => Ok(Err(join(self.nodes.path(parent), [last]))),
            },
            Step::Missing { parent, name, rest, .. } => {
                let below = std::iter::once(name.as_slice()).chain(rest.iter().map(Vec::as_slice));
                Ok(Err(join(self.nodes.path(parent), below.chain([last]))))
            }
        }
    }

    fn white_out(&mut self, entry: &Entry, parent: NodeId, name: &[u8]) -> Result<()> {
        if let Some(there) = self.nodes.child(parent, name) {
            // What this layer made stays, whatever the order; it hides a lower file by itself, a directory must be told.
            if self.nodes.is_directory(there) {
                self.nodes.inode_mut(there).hides = Hides::Name;
            }
            return Ok(());
        }
        let fd = self.open.get(&self.nodes, parent)?;
        make_whiteout(fd.as_fd(), name).map_err(|e| failed(entry, "make whiteout", e))?;
        self.nodes.add(parent, name, Inode::bare(What::Whiteout)).map_err(|e| refuse(entry, e)).map(|_| ())
    }

    /// Takes away what this layer made at a name before.
    fn remove(&mut self, entry: &Entry, id: NodeId) -> Result<()> {
        let order = self.nodes.below(id);
        for &at in order.iter().rev() {
            let (what, flags) = match self.nodes.inode(at).what {
                What::Directory => ("remove directory", AtFlags::REMOVEDIR),
                What::Foreign => continue, // nothing stands for it
                _ => ("remove", AtFlags::empty()),
            };
            self.open.open.remove(&at);
            let fd = self.open.get(&self.nodes, self.nodes.node(at).parent)?;
            self.frame.keep(self.directory.as_fd(), at, fd.as_fd(), &self.nodes.node(at).name)?;
            rustix::fs::unlinkat(fd.as_fd(), &*self.nodes.node(at).name, flags)
                .map_err(|e| failed(entry, what, e))?;
        }
        for &at in &order {
            self.open.open.remove(&at);
        }
        self.nodes.remove(id);
        Ok(())
    }

    fn finish(mut self) -> Result<AppliedLayer> {
        // Children first: a directory may forbid its owner to enter, and times change with every name made in it.
        let mut order = self.nodes.below(ROOT);
        order.retain(|&id| self.nodes.is_directory(id));
        for id in order.into_iter().rev() {
            self.finish_directory(id)?;
        }
        self.frame.finish(&self.nodes)?;
        let records = self.nodes.records();
        let applied = AppliedLayer {
            implied: records.iter().filter(|r| r.implied && !r.path.is_empty()).count() as u64,
            foreign_links: records.iter().filter(|r| r.what == What::Foreign).count() as u64,
            ..self.meter.applied()
        };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, "index", flags, Mode::from_raw_mode(0o600))
            .map_err(|e| Error::errno("create", "index", e))?;
        index::write(&mut File::from(fd), &records)?;
        Ok(applied)
    }

    fn finish_directory(&mut self, id: NodeId) -> Result<()> {
        let (parent, name) = if id == ROOT {
            (None, b"tree".as_slice())
        } else {
            (Some(self.open.get(&self.nodes, self.nodes.node(id).parent)?), &*self.nodes.node(id).name)
        };
        let parent = parent.as_ref().map_or(self.directory.as_fd(), |fd| fd.as_fd());
        let inode = self.nodes.inode(id);
        let attributes = Attributes {
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: &inode.xattrs,
        };
        let wrong = |(operation, errno)| Error::errno(operation, root::to_path(&self.nodes.path(id)), errno);
        if inode.hides != Hides::Nothing && id != ROOT {
            match set_xattr_at(parent, name, b"trusted.overlay.opaque", b"y") {
                // Without the right to set it no overlay can be mounted either; the index has it.
                Ok(()) | Err(Errno::PERM) => {}
                Err(e) => return Err(wrong(("mark opaque", e))),
            }
        }
        let skipped = self.maker.finish_at(parent, name, Kind::Directory, &attributes).map_err(wrong)?;
        self.meter.skip_xattrs(skipped);
        Ok(())
    }
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

fn join<'a>(base: Vec<u8>, parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut path = base;
    for part in parts {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    path
}
