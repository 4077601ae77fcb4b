//! What the view of several layers needs beside their directories, and the view itself, written to a directory.
//!
//! [`settle`] writes an image's fix-up layer, which overlayfs stacks on top of the image's own: with it, what a
//! container sees is exactly what applying the layers in order gives. [`flatten`] writes the whole view.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, XattrFlags, makedev};
use rustix::io::Errno;

use super::entry::Kind;
use super::index::{Hides, Index, Place, Record, What};
use super::layers::LayerDirectory;
use super::metadata::{Attributes, Maker, finish_directory, mark_opaque};
use super::tree::make_whiteout;
use super::view::{Id, Source, View, below};
use crate::cas::{Key, object_path};
use crate::error::{Error, Result};
use crate::root::{Root, to_path};

/// Copied at a time where the kernel does not do it.
const COPY_BYTES: usize = 1 << 20;

/// Writes the fix-up layer of an image into an empty directory.
///
/// Returns whether there was anything to write.
///
/// # Errors
/// [`Error::UnsafeArchive`] where a layer cannot be applied to those below it; [`Error::Io`].
pub fn settle(layers: &[LayerDirectory], indexes: &[Index], target: &Root) -> Result<bool> {
    if !indexes.iter().enumerate().any(|(position, index)| leaves_something(index, position == 0)) {
        return Ok(false);
    }
    let applied = View::applied(indexes)?;
    let stacked = View::stacked(indexes, &repeated(layers))?;
    let mut plan = Plan { view: &applied, stacked: &stacked, steps: BTreeMap::new() };
    plan.compare(0, 0, &[]);
    if plan.steps.is_empty() {
        return Ok(false);
    }
    plan.add_other_names();
    let steps = plan.steps;
    Writer::new(layers, &applied, target).run(&steps)?;
    let copied =
        steps.values().any(|step| matches!(step, Step::Make { id, .. } if applied.children(*id).is_none()));
    // Directories alone are in the file system's journal, which the flush of one of them writes out.
    let flushed = if copied { rustix::fs::syncfs(target) } else { rustix::fs::fsync(target) };
    flushed.map_err(|e| Error::errno("flush", target.path(), e))?;
    Ok(true)
}

/// Writes the whole view into an empty directory.
///
/// # Errors
/// As [`settle`].
pub fn flatten(layers: &[LayerDirectory], indexes: &[Index], target: &Root) -> Result<()> {
    if indexes.is_empty() {
        return Ok(());
    }
    let view = View::applied(indexes)?;
    let steps =
        view.walk_ids().into_iter().map(|(path, id)| (path, Step::Make { id, opaque: false })).collect();
    Writer::new(layers, &view, target).run(&steps)
}

/// Writes the whole view into an empty directory, where each file whose content is an object is a hole that names it: what
/// overlayfs takes, in a user namespace too, in the place of an image ([`super::compose`]). It is flushed.
///
/// # Errors
/// As [`settle`].
pub fn compose_directory(layers: &[LayerDirectory], indexes: &[Index], target: &Root) -> Result<()> {
    let view = View::applied(indexes)?;
    let steps =
        view.walk_ids().into_iter().map(|(path, id)| (path, Step::Make { id, opaque: false })).collect();
    let mut writer = Writer::new(layers, &view, target);
    writer.holes = true;
    writer.run(&steps)?;
    rustix::fs::syncfs(target).map_err(|e| Error::errno("flush", target.path(), e))
}

/// Makes an empty file a hole of a size, whose content is an object.
///
/// # Errors
/// What was refused, and how.
pub(super) fn make_hole(
    file: BorrowedFd<'_>,
    size: u64,
    key: &Key,
) -> std::result::Result<(), (&'static str, Errno)> {
    rustix::fs::ftruncate(file, size).map_err(|e| ("truncate", e))?;
    let place = format!("/{}", object_path(key));
    for (name, value) in [("user.overlay.metacopy", &b""[..]), ("user.overlay.redirect", place.as_bytes())] {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty()).map_err(|e| ("set xattr", e))?;
    }
    Ok(())
}

/// The positions of layers that stand again further up, which overlayfs takes once: there they count, since they say
/// again all that they say further down.
fn repeated(layers: &[LayerDirectory]) -> HashSet<usize> {
    let last: HashMap<&Path, usize> =
        layers.iter().enumerate().map(|(at, layer)| (layer.path(), at)).collect();
    (0..layers.len()).filter(|at| last[layers[*at].path()] != *at).collect()
}

/// Whether what is below may matter to a layer beyond what overlayfs does by itself.
fn leaves_something(index: &Index, lowest: bool) -> bool {
    // Below the lowest layer nothing is: there a foreign link is an error, and a parent is what it is.
    let to_lower = !lowest
        && (index.implied > 0
            || index.records.first().is_some_and(|root| root.implied || root.hides != Hides::Nothing));
    to_lower || index.foreign_links > 0 || index.records.iter().any(is_inner_whiteout)
}

/// A whiteout in a directory that may have nothing below it, so that overlayfs would list it. The root always has.
fn is_inner_whiteout(record: &Record) -> bool {
    record.what == What::Whiteout && record.path.contains(&b'/')
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Make { id: Id, opaque: bool },
    WhiteOut,
}

struct Plan<'v, 'a> {
    view: &'v View<'a>,
    stacked: &'v View<'a>,
    /// By path: a parent sorts before what is in it.
    steps: BTreeMap<Vec<u8>, Step>,
}

impl Plan<'_, '_> {
    /// Notes what must be done so that the directory `shown` of the stack becomes `wanted`.
    fn compare(&mut self, wanted: Id, shown: Id, path: &[u8]) {
        let (view, stacked) = (self.view, self.stacked);
        let (record, other) = (view.record_of(wanted), stacked.record_of(shown));
        let listed = !path.is_empty() && stacked.names[shown].shows_whiteouts();
        if listed || !same_attributes(record, other) {
            self.add(path, Step::Make { id: wanted, opaque: false });
        }
        let empty = BTreeMap::new();
        let ours = view.children(wanted).unwrap_or(&empty);
        let theirs = stacked.children(shown).unwrap_or(&empty);
        for (name, &id) in ours {
            let path = below(path, name);
            match theirs.get(name) {
                Some(&other) if view.children(id).is_some() && stacked.children(other).is_some() => {
                    self.compare(id, other, &path);
                }
                Some(&other)
                    if view.children(id).is_none()
                        && stacked.children(other).is_none()
                        && view.names[id].source == stacked.names[other].source => {}
                _ => self.add_tree(id, &path),
            }
        }
        for name in theirs.keys().filter(|name| !ours.contains_key(*name)) {
            self.add(&below(path, name), Step::WhiteOut);
        }
    }

    fn add_tree(&mut self, id: Id, path: &[u8]) {
        self.add(path, Step::Make { id, opaque: true });
        for (name, &child) in self.view.children(id).into_iter().flatten() {
            self.add_tree(child, &below(path, name));
        }
    }

    /// Adds a step, and the directories that lead to it.
    fn add(&mut self, path: &[u8], step: Step) {
        let mut id = 0;
        let mut at = 0;
        self.steps.entry(Vec::new()).or_insert(Step::Make { id: 0, opaque: false });
        while let Some(end) = path[at..].iter().position(|&b| b == b'/').map(|found| at + found) {
            let Some(&child) = self.view.children(id).and_then(|children| children.get(&path[at..end]))
            else {
                break;
            };
            id = child;
            self.steps.entry(path[..end].to_vec()).or_insert(Step::Make { id, opaque: false });
            at = end + 1;
        }
        self.steps.insert(path.to_vec(), step);
    }

    /// A copied file must be the same file under all its names.
    fn add_other_names(&mut self) {
        let copied: HashSet<Source> = self
            .steps
            .values()
            .filter_map(|step| match *step {
                Step::Make { id, .. } if self.view.children(id).is_none() => Some(self.view.names[id].source),
                _ => None,
            })
            .collect();
        if copied.is_empty() {
            return;
        }
        for (path, id) in self.view.walk_ids() {
            let wanted = self.view.children(id).is_none() && copied.contains(&self.view.names[id].source);
            if wanted && !self.steps.contains_key(&path) {
                self.add(&path, Step::Make { id, opaque: false });
            }
        }
    }
}

fn same_attributes(a: &Record, b: &Record) -> bool {
    (a.mode, a.uid, a.gid, a.mtime) == (b.mode, b.uid, b.gid, b.mtime) && a.xattrs == b.xattrs
}

struct Writer<'w, 'a> {
    layers: &'w [LayerDirectory],
    view: &'w View<'a>,
    target: &'w Root,
    maker: Maker,
    /// The first name under which each file was made.
    made: HashMap<Source, Vec<u8>>,
    /// Whether the file system shares extents between files; tried once.
    reflink: bool,
    /// Whether files whose contents are objects are holes that name them.
    holes: bool,
    parent: Option<(Vec<u8>, OwnedFd)>,
}

impl<'w, 'a> Writer<'w, 'a> {
    fn new(layers: &'w [LayerDirectory], view: &'w View<'a>, target: &'w Root) -> Self {
        let maker = Maker::of_this_process();
        Self { layers, view, target, maker, made: HashMap::new(), reflink: true, holes: false, parent: None }
    }

    fn run(mut self, steps: &BTreeMap<Vec<u8>, Step>) -> Result<()> {
        let taken = self.maker.take_over(self.target.as_fd());
        taken.map_err(|(operation, e)| Error::errno(operation, self.target.path(), e))?;
        for (path, step) in steps {
            if !path.is_empty() {
                self.step(path, *step).map_err(|e| within(path, e))?;
            }
        }
        for (path, step) in steps.iter().rev() {
            if let Step::Make { id, opaque } = *step
                && self.view.children(id).is_some()
            {
                self.finish_made(path, id, opaque).map_err(|e| within(path, e))?;
            }
        }
        Ok(())
    }

    fn step(&mut self, path: &[u8], step: Step) -> std::result::Result<(), Failure> {
        let split = path.iter().rposition(|&b| b == b'/');
        let (parent, name) = split.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        if self.parent.as_ref().is_none_or(|(known, _)| known != parent) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = self.target.resolve(parent, flags, Mode::empty()).map_err(|e| ("open", e))?;
            self.parent = Some((parent.to_vec(), opened));
        }
        let Some((_, fd)) = &self.parent else { return Ok(()) };
        let fd = fd.as_fd();
        let Step::Make { id, .. } = step else {
            return make_whiteout(fd, name).map_err(|e| ("make whiteout", e).into());
        };
        let source = self.view.names[id].source;
        if self.view.children(id).is_some() {
            return rustix::fs::mkdirat(fd, name, Mode::from_raw_mode(0o700))
                .map_err(|e| ("make directory", e).into());
        }
        if let Some(first) = self.made.get(&source) {
            let linked =
                rustix::fs::linkat(self.target.as_fd(), first.as_slice(), fd, name, AtFlags::empty());
            return linked.map_err(|e| ("link", e).into());
        }
        self.made.insert(source, path.to_vec());
        let record = self.view.record(source);
        let mode = Mode::from_raw_mode(record.mode & 0o777);
        let attributes = attributes(record);
        let kind = match record.what {
            What::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(fd, name, flags, mode).map_err(|e| ("create", e))?;
                if let (true, Place::Object(key)) = (self.holes, record.place) {
                    make_hole(made.as_fd(), record.size, &key)?;
                } else {
                    let from = self.layers[source.layer].open(record).map_err(Failure::Told)?;
                    copy(&from, made.as_fd(), record.size, &mut self.reflink)?;
                }
                self.maker.finish_file(made.as_fd(), &attributes)?;
                return Ok(());
            }
            What::Symlink => {
                rustix::fs::symlinkat(record.link.as_slice(), fd, name).map_err(|e| ("make link", e))?;
                Kind::Symlink
            }
            what => make_special(what, record, fd, name, mode)?,
        };
        self.maker.finish_at(fd, name, kind, &attributes)?;
        Ok(())
    }

    fn finish_made(&self, path: &[u8], id: Id, opaque: bool) -> std::result::Result<(), Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let fd = self.target.resolve(path, flags, Mode::empty()).map_err(|e| ("open", e))?;
        if opaque {
            mark_opaque(fd.as_fd(), b".").map_err(|e| ("mark opaque", e))?;
        }
        finish_directory(fd.as_fd(), &attributes(self.view.record_of(id)))?;
        Ok(())
    }
}

/// What went wrong with one path.
enum Failure {
    Kernel(&'static str, Errno),
    Told(Error),
}

impl From<(&'static str, Errno)> for Failure {
    fn from((operation, errno): (&'static str, Errno)) -> Self {
        Self::Kernel(operation, errno)
    }
}

fn within(path: &[u8], failure: Failure) -> Error {
    match failure {
        Failure::Kernel(operation, errno) => Error::errno(operation, to_path(path), errno),
        Failure::Told(error) => error,
    }
}

pub(super) fn attributes(record: &Record) -> Attributes<'_> {
    Attributes {
        mode: record.mode,
        uid: record.uid,
        gid: record.gid,
        mtime: record.mtime,
        xattrs: &record.xattrs,
    }
}

fn make_special(
    what: What,
    record: &Record,
    parent: std::os::fd::BorrowedFd<'_>,
    name: &[u8],
    mode: Mode,
) -> std::result::Result<Kind, Failure> {
    use rustix::fs::FileType;
    let (file_type, kind) = match what {
        What::Character => (FileType::CharacterDevice, Kind::Character),
        What::Block => (FileType::BlockDevice, Kind::Block),
        _ => (FileType::Fifo, Kind::Fifo),
    };
    let device = makedev(record.device.0, record.device.1);
    rustix::fs::mknodat(parent, name, file_type, mode, device).map_err(|e| ("mknod", e))?;
    Ok(kind)
}

/// Copies a file's content, shared where the file system can, holes left out.
pub(super) fn copy(
    from: &File,
    to: BorrowedFd<'_>,
    size: u64,
    reflink: &mut bool,
) -> std::result::Result<(), (&'static str, Errno)> {
    if *reflink && size > 0 {
        match rustix::fs::ioctl_ficlone(to, from) {
            Ok(()) => return Ok(()),
            Err(_) => *reflink = false, // another file system, or one that cannot
        }
    }
    rustix::fs::ftruncate(to, size).map_err(|e| ("truncate", e))?;
    let mut at = 0;
    while at < size {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break, // a hole to the end
            Err(e) => return Err(("seek", e)),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at)).map_err(|e| ("seek", e))?.min(size);
        while at < end {
            let (mut source, mut target) = (at, at);
            let count = usize::try_from(end - at).unwrap_or(usize::MAX);
            let copied =
                match rustix::fs::copy_file_range(from, Some(&mut source), to, Some(&mut target), count) {
                    // What stood in an image is in memory: another file system.
                    Err(Errno::XDEV) => copy_through(from, to, at, count).map_err(|e| ("copy", e))?,
                    copied => copied.map_err(|e| ("copy", e))?,
                };
            if copied == 0 {
                return Err(("copy", Errno::IO)); // the layer's file is shorter than its index says
            }
            at += copied as u64;
        }
    }
    Ok(())
}

/// Copies some bytes by way of this process.
fn copy_through(from: &File, to: BorrowedFd<'_>, at: u64, count: usize) -> std::result::Result<usize, Errno> {
    let mut buffer = vec![0; count.min(COPY_BYTES)];
    let read = rustix::io::pread(from, &mut buffer, at)?;
    let mut done = 0;
    while done < read {
        done += rustix::io::pwrite(to, &buffer[done..read], at + done as u64)?;
    }
    Ok(read)
}

/// Gives a directory the attributes of another, but for overlayfs' own marks.
///
/// # Errors
/// [`Error::Io`].
pub fn copy_directory(source: &Root, target: &Root) -> Result<()> {
    let wrong = |operation, e| Error::errno(operation, target.path(), e);
    let stat = rustix::fs::fstat(source).map_err(|e| Error::errno("stat", source.path(), e))?;
    let mut list = vec![0u8; 1 << 16];
    let length = rustix::fs::flistxattr(source, &mut list)
        .map_err(|e| Error::errno("list xattrs", source.path(), e))?;
    let mut xattrs = Vec::new();
    for name in list[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 1 << 16];
        match rustix::fs::fgetxattr(source, name, &mut value) {
            Ok(length) => xattrs.push((name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(e) => return Err(Error::errno("read xattr", source.path(), e)),
        }
    }
    let mtime = super::pax::Time {
        seconds: stat.st_mtime,
        nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    let attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime,
        xattrs: &xattrs,
    };
    let done = finish_directory(target.as_fd(), &attributes);
    done.map(|_| ()).map_err(|(operation, errno)| wrong(operation, errno))
}
