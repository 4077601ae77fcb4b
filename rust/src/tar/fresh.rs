//! A layer made anew from its archive: what each entry does, decided from [`Nodes`] and carried out by a form.
//!
//! Nobody else writes where it is made, so safety needs no `openat2` for each file: every directory was made by this
//! writer, every name is made with `O_EXCL` or a call that refuses an existing one, and what stands where is known.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::blocks::BlocksForm;
use super::digests;
use super::entry::{Entry, Kind};
use super::form::{Ended, Form};
use super::frame::FrameWriter;
use super::index::{self, Hides, What};
use super::limits::{Limits, Meter};
use super::name::{self, Last};
use super::nodes::{Inode, NodeId, Nodes, ROOT, Step};
use super::objects::ObjectsForm;
use super::stream::{Sink, Stream};
use super::tree::{TreeForm, check_special, check_symlink};
use super::{AppliedLayer, refuse};
use crate::cas::ObjectWriter;
use crate::digest::{Algorithm, Hasher};
use crate::error::{Error, Result};

/// Makes a layer's directory from an archive that is pushed in: `index`, `frame`, and what its form says.
#[derive(Debug)]
pub struct LayerWriter {
    stream: Stream,
    layer: Layer,
}

impl LayerWriter {
    /// Starts in an empty directory, which becomes the layer's: with `tree/`, as overlayfs stacks it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(directory: OwnedFd, limits: Limits) -> Result<Self> {
        let form = TreeForm::new(&directory)?;
        Self::with_form(directory, limits, Box::new(form))
    }

    /// Starts in an empty directory, which becomes the layer's: with `pack`, which has files' contents of at most
    /// `packed` bytes; all others are objects.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn objects(directory: OwnedFd, limits: Limits, objects: ObjectWriter, packed: u64) -> Result<Self> {
        let form = ObjectsForm::new(&directory, objects, packed)?;
        Self::with_form(directory, limits, Box::new(form))
    }

    /// Starts in an empty directory, which becomes the layer's: with `blocks`, where contents of at most `short` bytes stand
    /// close together.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn blocks(directory: OwnedFd, limits: Limits, short: u64) -> Result<Self> {
        let form = BlocksForm::new(&directory, short)?;
        Self::with_form(directory, limits, Box::new(form))
    }

    fn with_form(directory: OwnedFd, limits: Limits, form: Box<dyn Form>) -> Result<Self> {
        let frame = FrameWriter::create(directory.as_fd())?;
        let layer = Layer {
            directory,
            nodes: Nodes::default(),
            form,
            frame,
            current: None,
            digests: false,
            contents: None,
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

    /// The same writer, which also makes the list by which a table of contents finds what the layer has; see
    /// [`super::digests`].
    #[must_use]
    pub fn with_file_digests(mut self) -> Self {
        self.layer.contents = Some(Vec::new());
        self
    }

    /// Takes in the next bytes of the uncompressed archive.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] for what is refused, [`Error::Io`] where the kernel refused.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write(bytes, &mut self.layer)
    }

    /// Entries whose making was begun.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.layer.meter.entries()
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
    form: Box<dyn Form>,
    frame: FrameWriter,
    current: Option<Current>,
    digests: bool,
    contents: Option<Vec<digests::Content>>,
    meter: Meter,
}

/// The regular file that is being written.
#[derive(Debug)]
struct Current {
    node: NodeId,
    hasher: Option<Box<blake3::Hasher>>,
    sha256: Option<Hasher>,
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
        if let Some(hasher) = &mut current.sha256 {
            hasher.update(bytes);
        }
        self.form.data(entry, offset, bytes)?;
        self.frame.content(current.node, offset, bytes.len() as u64)
    }

    fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        self.frame.raw(bytes)
    }

    fn end(&mut self, entry: &Entry) -> Result<()> {
        let Some(Current { node, hasher, sha256 }) = self.current.take() else { return Ok(()) };
        if let (Some(contents), Some(hasher), Some(offset)) =
            (&mut self.contents, sha256, entry.content_offset)
        {
            let found = hasher.finish().as_bytes().try_into().ok();
            contents.extend(found.map(|sha256| (sha256, entry.size, offset)));
        }
        let Ended { place, extent, blake3, skipped_xattrs } = self.form.end_file(&self.nodes, entry, node)?;
        let inode = self.nodes.inode_mut(node);
        (inode.place, inode.extent) = (place, extent);
        inode.blake3 = blake3.or_else(|| hasher.map(|hasher| hasher.finalize().into()));
        self.meter.skip_xattrs(skipped_xattrs);
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
        self.form.make_directory(&self.nodes, entry, parent, name)?;
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
        if entry.kind == Kind::File {
            self.form.begin_file(&self.nodes, entry, parent, name)?;
        } else {
            check_symlink(entry)?;
            check_special(entry)?;
            let skipped = self.form.make_special(&self.nodes, entry, parent, name)?;
            self.meter.skip_xattrs(skipped);
        }
        let node = self.nodes.add(parent, name, Inode::of(entry)).map_err(|e| refuse(entry, e))?;
        if entry.kind == Kind::File {
            let hasher =
                (self.digests && !entry.sparse && !self.form.digests()).then(Box::<blake3::Hasher>::default);
            let listed = self.contents.is_some() && !entry.sparse && entry.size > 0;
            let sha256 = listed.then(|| Hasher::new(Algorithm::Sha256));
            self.current = Some(Current { node, hasher, sha256 });
        }
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
                    self.form.link(&self.nodes, entry, target, parent, name)?;
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
        self.form.white_out(&self.nodes, entry, parent, name)?;
        self.nodes.add(parent, name, Inode::bare(What::Whiteout)).map_err(|e| refuse(entry, e)).map(|_| ())
    }

    /// Takes away what this layer made at a name before.
    fn remove(&mut self, entry: &Entry, id: NodeId) -> Result<()> {
        let order = self.nodes.below(id);
        for &at in order.iter().rev() {
            if self.nodes.inode(at).what == What::Foreign {
                continue; // nothing stands for it
            }
            let (nodes, form) = (&self.nodes, &mut self.form);
            self.frame.keep(self.directory.as_fd(), at, |lost, number| form.keep(nodes, at, lost, number))?;
            form.remove(nodes, entry, at)?;
        }
        self.nodes.remove(id);
        self.form.forget(&order);
        Ok(())
    }

    fn finish(mut self) -> Result<AppliedLayer> {
        let made = self.form.finish(&self.nodes)?;
        self.meter.skip_xattrs(made.skipped_xattrs);
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
        index::write(&mut File::from(fd), &records, made.pack.as_ref(), made.blocks)?;
        if let Some(contents) = self.contents {
            digests::write(self.directory.as_fd(), contents)?;
        }
        Ok(applied)
    }
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
