//! The image of a stack: all that its layers come to, as one EROFS file that names objects.
//!
//! Overlayfs finds an object by the attributes of the image's inode: `trusted.overlay.metacopy` says that the content is
//! elsewhere, `trusted.overlay.redirect` where. Or the image is over layers' blocks, and needs no overlay to be read. One image for a stack, and not one for each layer: between several lower
//! layers overlayfs follows such marks only if it may also make them in the upper one (`metacopy=on`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::acl;
use super::index::{Extent, Index, Place, Record, What};
use super::layers::{BLOCKS, LayerDirectory};
use super::metadata::{Storable, finish_directory, storable};
use super::nodes::{Inode, Nodes, ROOT as TOP};
use super::settle::{attributes, make_hole};
use super::view::{Id, Source, View};
use crate::cas::{Key, OBJECTS, object_path};
use crate::erofs::{self, BLOCK_BYTES, Kind, Node, Tree, write, write_with};
use crate::error::{Error, Result};
use crate::root::{Root, to_path};

const IMAGE: &str = "image.erofs";
/// An empty directory that has the attributes of the image's root, for an upper directory to take them from.
const ROOT: &str = "root";
/// In the place of an image: a directory.
const TREE: &str = "tree";
const METACOPY: &[u8] = b"trusted.overlay.metacopy";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
/// Of a symbolic link, whatever its archive says.
const LINK_MODE: u32 = 0o777;

/// Where an image has files' contents that it has not in itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// In the store's objects, by overlayfs.
    Objects,
    /// In layers' blocks, from which it is mounted.
    Blocks,
}

/// Attributes as the kernel would have made them of what an archive says.
#[derive(Debug)]
pub(super) struct Judged {
    mode: u32,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Xattrs that are lost.
    pub(super) skipped: u64,
}

/// Judges attributes where no file system is asked.
///
/// # Errors
/// What the kernel says to a wrong one.
pub(super) fn attributes_of(
    what: What,
    mode: u32,
    xattrs: &[(Vec<u8>, Vec<u8>)],
) -> std::result::Result<Judged, (&'static str, Errno)> {
    let mode = if what == What::Symlink { LINK_MODE } else { mode };
    let mut judged = Judged { mode, xattrs: Vec::with_capacity(xattrs.len()), skipped: 0 };
    for (name, value) in xattrs {
        let kept = match storable(name, value).map_err(|e| ("set xattr", e))? {
            Storable::Yes => true,
            Storable::Skipped => {
                judged.skipped += 1;
                false
            }
            _ if what == What::Symlink => return Err(("set xattr", Errno::OPNOTSUPP)),
            Storable::Access => match acl::check(value).map_err(|e| ("set xattr", e))? {
                None => false,
                Some(access) => {
                    judged.mode = judged.mode & !0o777 | access.bits;
                    access.kept
                }
            },
            Storable::Default => match acl::check(value).map_err(|e| ("set xattr", e))? {
                None => false,
                Some(_) if what != What::Directory => return Err(("set xattr", Errno::ACCESS)),
                Some(_) => true,
            },
        };
        if kept {
            judged.xattrs.retain(|(known, _)| known != name); // the last one counts
            judged.xattrs.push((name.clone(), value.clone()));
        }
    }
    Ok(judged)
}

/// How many of an inode's xattrs are going to be lost; those that no file system would take are refused now.
pub(super) fn judge(inode: &Inode, path: impl FnOnce() -> Vec<u8>) -> Result<u64> {
    let judged = attributes_of(inode.what, inode.mode, &inode.xattrs);
    let judged = judged.map_err(|(operation, errno)| Error::errno(operation, to_path(&path()), errno))?;
    Ok(judged.skipped)
}

/// As [`judge`], for all directories of a layer: their attributes are only known at its end.
pub(super) fn judge_directories(nodes: &Nodes) -> Result<u64> {
    let mut skipped = 0;
    for id in nodes.below(TOP) {
        if nodes.inode(id).what == What::Directory {
            skipped += judge(nodes.inode(id), || nodes.path(id))?;
        }
    }
    Ok(skipped)
}

/// Writes `image.erofs` and `root` into an empty directory: the image of layers that were unpacked so.
///
/// Gives the layers over whose blocks it is to be mounted, by number, in their order. `identity` is what the file system is known by; the same layers and identity give the same bytes. Nothing is flushed.
///
/// # Errors
/// [`Error::UnsafeArchive`] where a layer cannot be applied to those below it, [`Error::Unsupported`] for a layer that was
/// unpacked otherwise; [`Error::Io`].
pub fn compose(
    layers: &[LayerDirectory],
    indexes: &[Index],
    target: &Root,
    identity: &str,
    contents: Contents,
) -> Result<Vec<usize>> {
    let view = View::applied(indexes)?;
    let mut composer =
        Composer { view: &view, layers, contents, kept: HashMap::new(), devices: HashMap::new() };
    let mut tree = composer.tree(indexes)?;
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&blake3::hash(identity.as_bytes()).as_bytes()[..16]);
    tree.set_uuid(uuid);
    let mut out = BufWriter::new(create(target, IMAGE)?);
    write_with(&tree, &mut out, |node| {
        let source = composer.kept[&node];
        layers[source.layer].content(view.record(source))
    })?;
    out.flush().map_err(|e| Error::io("write", target.path().join(IMAGE), &e))?;
    make_root(target, view.record_of(0))?;
    let mut devices: Vec<_> = composer.devices.into_iter().collect();
    devices.sort_unstable_by_key(|&(_, device)| device);
    Ok(devices.into_iter().map(|(layer, _)| layer).collect())
}

/// What [`compose_sample`] makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// As [`compose`] does it over objects.
    Image,
    /// As [`super::settle::compose_directory`] does it.
    Directory,
    /// As [`compose`] does it over blocks.
    Blocks,
}

/// Writes an image, or into `tree` a directory, with `file` in it, whose content is an object of `objects` beside it or in
/// `blocks` there: what the kernel makes of it tells whether these work here. Nothing is flushed.
///
/// # Errors
/// [`Error::Io`].
pub fn compose_sample(target: &Root, content: &[u8], sample: Sample) -> Result<()> {
    let size = u64::try_from(content.len()).unwrap_or(u64::MAX);
    if sample == Sample::Blocks {
        let wrong = |e: &std::io::Error| Error::io("write", target.path().join(BLOCKS), e);
        let mut blocks = create(target, BLOCKS)?;
        blocks.write_all(content).map_err(|e| wrong(&e))?;
        blocks.set_len(size.next_multiple_of(BLOCK_BYTES)).map_err(|e| wrong(&e))?;
        return write_sample(target, Kind::Stored { size, device: 0, block: 0, data: None }, Vec::new());
    }
    let key = *blake3::hash(content).as_bytes();
    let object = format!("{OBJECTS}/{}", object_path(&key));
    for (at, _) in object.match_indices('/') {
        rustix::fs::mkdirat(target, &object[..at], Mode::RWXU)
            .map_err(|e| Error::errno("make directory", target.path().join(&object[..at]), e))?;
    }
    create(target, &object)?
        .write_all(content)
        .map_err(|e| Error::io("write", target.path().join(&object), &e))?;
    if sample == Sample::Directory {
        let wrong = |operation, e| Error::errno(operation, target.path().join(TREE), e);
        rustix::fs::mkdirat(target, TREE, Mode::RWXU).map_err(|e| wrong("make directory", e))?;
        let file = create(target, &format!("{TREE}/file"))?;
        return make_hole(file.as_fd(), size, &key).map_err(|(operation, e)| wrong(operation, e));
    }
    write_sample(target, Kind::File { size, data: Vec::new() }, elsewhere(&key))
}

fn write_sample(target: &Root, kind: Kind, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
    let root = Node {
        kind: Kind::Directory(Vec::new()),
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    };
    let mut tree = Tree::new(root.clone());
    if let Kind::Stored { size, .. } = kind {
        tree.add_device(u32::try_from(size.div_ceil(BLOCK_BYTES)).unwrap_or(u32::MAX));
    }
    let file = Node { kind, mode: 0o644, xattrs, ..root };
    let file = tree.add(file);
    tree.link(tree.root(), b"file".to_vec(), file);
    let mut out = BufWriter::new(create(target, IMAGE)?);
    write(&tree, &mut out)?;
    out.flush().map_err(|e| Error::io("write", target.path().join(IMAGE), &e))
}

fn create(target: &Root, name: &str) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(target, name, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(|e| Error::errno("create", target.path().join(name), e))
}

/// What tells overlayfs which object a file's content is.
fn elsewhere(key: &Key) -> Vec<(Vec<u8>, Vec<u8>)> {
    let place = format!("/{}", object_path(key)).into_bytes();
    vec![(METACOPY.to_vec(), Vec::new()), (REDIRECT.to_vec(), place)]
}

fn make_root(target: &Root, record: &Record) -> Result<()> {
    let wrong = |operation, e| Error::errno(operation, target.path().join(ROOT), e);
    rustix::fs::mkdirat(target, ROOT, Mode::RWXU).map_err(|e| wrong("make directory", e))?;
    let made = target.directory(ROOT)?;
    finish_directory(made.as_fd(), &attributes(record)).map_err(|(operation, e)| wrong(operation, e))?;
    Ok(())
}

struct Composer<'v, 'a> {
    view: &'v View<'a>,
    layers: &'v [LayerDirectory],
    contents: Contents,
    /// Where the contents are that stand in the image.
    kept: HashMap<erofs::NodeId, Source>,
    /// By layer: the device that its blocks are.
    devices: HashMap<usize, usize>,
}

impl Composer<'_, '_> {
    fn tree(&mut self, indexes: &[Index]) -> Result<Tree> {
        let mut tree = Tree::new(self.node(0)?);
        // By layer and record.
        let mut made: Vec<_> = indexes.iter().map(|index| vec![None; index.records.len()]).collect();
        let mut pending: Vec<(Id, erofs::NodeId)> = vec![(0, tree.root())];
        while let Some((directory, parent)) = pending.pop() {
            for (name, &id) in self.view.children(directory).into_iter().flatten() {
                let source = self.view.source(id);
                let is_directory = self.view.children(id).is_some();
                // A file is one inode under all its names, also where a layer above gave it some of them.
                let known = made[source.layer][source.record].filter(|_| !is_directory);
                let child = if let Some(child) = known {
                    child
                } else {
                    let mut node = self.node(id)?;
                    if let Kind::Stored { device, data, .. } = &mut node.kind {
                        *device = self.device(&mut tree, source.layer, indexes);
                        let record = self.view.record(source);
                        if record.sparse {
                            *data = Some(self.layers[source.layer].data_blocks(record)?);
                        }
                    }
                    let kept = matches!(node.kind, Kind::Kept { .. });
                    let child = tree.add(node);
                    if kept {
                        self.kept.insert(child, source);
                    }
                    child
                };
                tree.link(parent, name.clone(), child);
                if is_directory {
                    pending.push((id, child));
                } else {
                    made[source.layer][source.record] = Some(child);
                }
            }
        }
        Ok(tree)
    }

    /// The device that a layer's blocks are; of a layer with no contents of this image there is none.
    fn device(&mut self, tree: &mut Tree, layer: usize, indexes: &[Index]) -> usize {
        *self.devices.entry(layer).or_insert_with(|| {
            let blocks = indexes[layer].blocks.unwrap_or(0) / BLOCK_BYTES;
            tree.add_device(u32::try_from(blocks).unwrap_or(u32::MAX))
        })
    }

    fn node(&self, id: Id) -> Result<Node> {
        let record = self.view.record_of(id);
        let what = if self.view.children(id).is_some() { What::Directory } else { record.what };
        let judged = attributes_of(what, record.mode, &record.xattrs)
            .map_err(|(operation, e)| Error::errno(operation, to_path(&record.path), e))?;
        let mut xattrs = judged.xattrs;
        if let (What::File, Place::Object(key), Contents::Objects) = (what, record.place, self.contents) {
            xattrs.extend(elsewhere(&key));
        }
        Ok(Node {
            kind: kind(what, record, self.contents)?,
            mode: judged.mode,
            uid: record.uid,
            gid: record.gid,
            mtime: (record.mtime.seconds, record.mtime.nanoseconds),
            xattrs,
        })
    }
}

fn kind(what: What, record: &Record, contents: Contents) -> Result<Kind> {
    Ok(match what {
        What::Directory => Kind::Directory(Vec::new()),
        What::Symlink => Kind::Symlink(record.link.clone()),
        What::Character => Kind::Char(record.device.0, record.device.1),
        What::Block => Kind::Block(record.device.0, record.device.1),
        What::Fifo => Kind::Fifo,
        What::File | What::Hardlink | What::Foreign | What::Whiteout => {
            let size = record.size;
            match (contents, record.place, record.extent) {
                _ if size == 0 => Kind::Kept { size },
                (Contents::Objects, Place::Object(_), _) => Kind::File { size, data: Vec::new() },
                (Contents::Objects, Place::Packed(_), _)
                | (Contents::Blocks, _, Some(Extent { shared: true, .. })) => Kind::Kept { size },
                (Contents::Blocks, _, Some(Extent { start, .. })) => {
                    // An extent that ends where no number of 32 bits leads was refused when it was made.
                    let block = u32::try_from(start / BLOCK_BYTES).unwrap_or(u32::MAX);
                    Kind::Stored { size, device: 0, block, data: None }
                }
                _ => {
                    return Err(Error::Unsupported {
                        feature: "an image of a layer that was unpacked otherwise".to_owned(),
                        needs: "another snapshotter, or to pull its image again".to_owned(),
                    });
                }
            }
        }
    })
}
