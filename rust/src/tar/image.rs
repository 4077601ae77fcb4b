//! A layer as an image: EROFS metadata, short contents in it, and an object of the store for each other one.
//!
//! Overlayfs finds an object by the attributes of the image's inode: `trusted.overlay.metacopy` says that the content is
//! elsewhere, `trusted.overlay.redirect` where. An archive's own attributes of such names never get this far, so no entry
//! can name an object.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::entry::Entry;
use super::form::{Ended, Form, Made};
use super::index::{Hides, Place, What};
use super::metadata::{Storable, storable};
use super::nodes::{Inode, NodeId, Nodes, ROOT};
use super::{acl, failed};
use crate::cas::{NewObject, ObjectWriter, Stored, object_path};
use crate::erofs::{self, Laid, Tree};
use crate::error::{Error, Result};
use crate::root::to_path;

/// The image's name in a layer's directory.
pub(super) const IMAGE: &str = "image.erofs";
/// Contents that wait in memory for the image: a layer with more of them has the rest as objects, however short.
const INLINE_TOTAL_BYTES: u64 = 16 << 20;
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
/// Of a symbolic link, whatever its archive says.
const LINK_MODE: u32 = 0o777;

/// Makes `image.erofs` in a layer's directory, and objects.
#[derive(Debug)]
pub(super) struct ImageForm {
    directory: OwnedFd,
    objects: ObjectWriter,
    inline: u64,
    current: Option<NewObject>,
    /// Short contents by their inode.
    held: HashMap<u32, Vec<u8>>,
    held_bytes: u64,
}

impl ImageForm {
    pub(super) fn new(directory: &OwnedFd, objects: ObjectWriter, inline: u64) -> Result<Self> {
        let directory = directory.try_clone().map_err(|e| Error::io("open", "layer", &e))?;
        Ok(Self { directory, objects, inline, current: None, held: HashMap::new(), held_bytes: 0 })
    }

    /// The layer as EROFS has it, and which node each of our inodes is there.
    fn tree(&mut self, nodes: &Nodes, made: &mut Made) -> Result<(Tree, HashMap<u32, erofs::NodeId>)> {
        let wrong = |id, (operation, errno)| Error::errno(operation, to_path(&nodes.path(id)), errno);
        let root = node(nodes.inode(ROOT), erofs::Kind::Directory(Vec::new()), made);
        let mut tree = Tree::new(root.map_err(|e| wrong(ROOT, e))?);
        let mut known = HashMap::from([(nodes.node(ROOT).inode, tree.root())]);
        for id in nodes.below(ROOT).into_iter().skip(1) {
            let (at, inode) = (nodes.node(id), nodes.inode(id));
            let child = if let Some(child) = known.get(&at.inode) {
                *child
            } else {
                let Some(kind) = self.kind(at.inode, inode) else { continue };
                let child = tree.add(node(inode, kind, made).map_err(|e| wrong(id, e))?);
                known.insert(at.inode, child);
                child
            };
            // Parents come before what is in them.
            let parent = known[&nodes.node(at.parent).inode];
            tree.link(parent, at.name.to_vec(), child);
        }
        Ok((tree, known))
    }

    /// What an inode is; none for a name of a lower layer's file, for which nothing stands.
    fn kind(&mut self, number: u32, inode: &Inode) -> Option<erofs::Kind> {
        Some(match inode.what {
            What::Directory => erofs::Kind::Directory(Vec::new()),
            What::File | What::Hardlink => {
                erofs::Kind::File { size: inode.size, data: self.held.remove(&number).unwrap_or_default() }
            }
            What::Symlink => erofs::Kind::Symlink(inode.link.clone()),
            What::Character => erofs::Kind::Char(inode.device.0, inode.device.1),
            What::Block => erofs::Kind::Block(inode.device.0, inode.device.1),
            What::Fifo => erofs::Kind::Fifo,
            What::Whiteout => erofs::Kind::Char(0, 0),
            What::Foreign => return None,
        })
    }

    fn write(&self, laid: &Laid<'_>) -> Result<[u8; 32]> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.directory, IMAGE, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| Error::errno("create", IMAGE, e))?;
        let mut out = Digested { out: BufWriter::new(File::from(fd)), hasher: Box::default() };
        laid.write(&mut out)?;
        out.out.flush().map_err(|e| Error::io("write", IMAGE, &e))?;
        Ok(out.hasher.finalize().into())
    }
}

/// Writes, and digests what was written.
struct Digested<W> {
    out: W,
    hasher: Box<blake3::Hasher>,
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// An inode with its attributes, as the kernel would have made them of what the archive says.
fn node(
    inode: &Inode,
    kind: erofs::Kind,
    made: &mut Made,
) -> std::result::Result<erofs::Node, (&'static str, Errno)> {
    let is_directory = inode.what == What::Directory;
    let mut mode = if inode.what == What::Symlink { LINK_MODE } else { inode.mode };
    let mut xattrs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for (name, value) in &inode.xattrs {
        match storable(name, value).map_err(|e| ("set xattr", e))? {
            Storable::Yes => {}
            Storable::Skipped => {
                made.skipped_xattrs += 1;
                continue;
            }
            Storable::Access => match acl::check(value).map_err(|e| ("set xattr", e))? {
                _ if inode.what == What::Symlink => return Err(("set xattr", Errno::OPNOTSUPP)),
                None => continue,
                Some(access) => {
                    mode = mode & !0o777 | access.bits;
                    if !access.kept {
                        continue;
                    }
                }
            },
            Storable::Default => match acl::check(value).map_err(|e| ("set xattr", e))? {
                _ if inode.what == What::Symlink => return Err(("set xattr", Errno::OPNOTSUPP)),
                None => continue,
                Some(_) if !is_directory => return Err(("set xattr", Errno::ACCESS)),
                Some(_) => {}
            },
        }
        xattrs.retain(|(known, _)| known != name); // the last one counts
        xattrs.push((name.clone(), value.clone()));
    }
    if inode.hides != Hides::Nothing && is_directory {
        xattrs.push((OPAQUE.to_vec(), b"y".to_vec()));
    }
    if let Place::Object(key) = inode.place {
        xattrs.push((METACOPY.to_vec(), Vec::new()));
        xattrs.push((REDIRECT.to_vec(), format!("/{}", object_path(&key)).into_bytes()));
    }
    let mtime = (inode.mtime.seconds, inode.mtime.nanoseconds);
    Ok(erofs::Node { kind, mode, uid: inode.uid, gid: inode.gid, mtime, xattrs })
}

impl Form for ImageForm {
    fn digests(&self) -> bool {
        true
    }

    fn make_directory(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn begin_file(&mut self, _: &Nodes, entry: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        self.current = Some(self.objects.begin(entry.sparse));
        Ok(())
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.current else { return Ok(()) };
        self.objects.write(current, offset, bytes).map_err(|e| of(entry, e))
    }

    fn end_file(&mut self, nodes: &Nodes, entry: &Entry, node: NodeId) -> Result<Ended> {
        let mut ended = Ended { place: Place::Tree, blake3: None, skipped_xattrs: 0 };
        let Some(current) = self.current.take() else { return Ok(ended) };
        let room = INLINE_TOTAL_BYTES.saturating_sub(self.held_bytes);
        let inline = self.inline.min(room);
        let (stored, blake3) = self.objects.finish(current, entry.size, inline).map_err(|e| of(entry, e))?;
        ended.blake3 = blake3;
        ended.place = match stored {
            Stored::Object(key) => Place::Object(key),
            Stored::Held(bytes) => {
                self.held_bytes += bytes.len() as u64;
                self.held.insert(nodes.node(node).inode, bytes);
                Place::Image { blocks: 0, rest: 0 }
            }
        };
        Ok(ended)
    }

    fn make_special(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: &[u8]) -> Result<u64> {
        Ok(0)
    }

    fn link(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn white_out(&mut self, _: &Nodes, _: &Entry, _: NodeId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn keep(&mut self, nodes: &Nodes, node: NodeId, lost: BorrowedFd<'_>, name: &str) -> Result<()> {
        let wrong = |e: &std::io::Error| Error::io("write", "lost", e);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = rustix::fs::openat(lost, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("create", "lost", e))?;
        let inode = nodes.inode(node);
        match inode.place {
            Place::Object(key) => {
                let mut reflink = true;
                let from = self.objects.open(&key)?;
                super::settle::copy(&from, file.as_fd(), inode.size, &mut reflink)
                    .map_err(|(operation, e)| Error::errno(operation, "lost", e))
            }
            _ => {
                let held = self.held.get(&nodes.node(node).inode).map_or(&[][..], Vec::as_slice);
                file.write_all(held).map_err(|e| wrong(&e))
            }
        }
    }

    fn remove(&mut self, _: &Nodes, _: &Entry, _: NodeId) -> Result<()> {
        Ok(())
    }

    fn forget(&mut self, nodes: &Nodes, removed: &[NodeId]) {
        for &node in removed.iter().filter(|node| nodes.inode(**node).names == 0) {
            if let Some(bytes) = self.held.remove(&nodes.node(node).inode) {
                self.held_bytes -= bytes.len() as u64;
            }
        }
    }

    fn finish(&mut self, nodes: &mut Nodes) -> Result<Made> {
        let mut made = Made::default();
        let (tree, known) = self.tree(nodes, &mut made)?;
        let laid = Laid::new(&tree)?;
        made.image = Some(self.write(&laid)?);
        for (number, node) in known {
            let inode = nodes.numbered_mut(number);
            if let (Place::Image { .. }, Some(content)) = (inode.place, laid.content(node)) {
                inode.place = Place::Image { blocks: content.blocks, rest: content.rest };
            }
        }
        Ok(made)
    }
}

/// An error of the store, told of the entry that it came with.
fn of(entry: &Entry, error: Error) -> Error {
    match error {
        Error::Io { errno, operation, .. } => failed(entry, operation, Errno::from_raw_os_error(errno)),
        other => other,
    }
}
