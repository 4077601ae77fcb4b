//! A layer applied to a directory that holds the layers below it, as `umoci unpack` and containerd do.
//!
//! Others may write there, and what is there came from strangers: every parent is opened by the kernel as inside
//! a root, nothing at the end of a name is followed, and whiteouts remove only what this layer did not write.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::limits::{Limits, Meter};
use super::metadata::{
    Attributes, Done, Maker, applicable, clear_acl_at, clear_xattrs, finish_directory, has_default_acl,
    times_of,
};
use super::name::{self, Last};
use super::ownership::Ownership;
use super::pax::Time;
use super::record;
use super::stream::{Sink, Stream};
use super::tree::{attributes, check_special, check_symlink, create_file, make_special};
use super::view::below;
use super::{AppliedLayer, failed, refuse};
use crate::error::{Error, Result};
use crate::root::{self, Identity, Pruner, Root};

/// Symbolic links followed for one name: the kernel's own bound.
const LINKS_MAX: u32 = 40;

/// Applies an archive that is pushed in.
#[derive(Debug)]
pub struct Merger {
    stream: Stream,
    target: Target,
}

impl Merger {
    /// Starts over a directory.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where owners are to be recorded and its file system cannot; [`Error::Io`].
    pub fn new(directory: Root, limits: Limits, ownership: Ownership) -> Result<Self> {
        if ownership.is_recorded() {
            let failed = |e| Error::errno("open", directory.path(), e);
            let root = directory.resolve_plain(b"", ENTER).map_err(failed)?;
            record::begin(root.as_fd(), directory.path())?;
        }
        let target = Target {
            root: directory,
            maker: Maker::of_this_process(),
            ownership,
            written: HashSet::new(),
            parent: None,
            current: None,
            directories: HashMap::new(),
            meter: Meter::new(limits),
            emptied: HashSet::new(),
        };
        Ok(Self { stream: Stream::new(limits), target })
    }

    /// Takes in the next bytes of the uncompressed archive.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] for what is refused, [`Error::Io`] where the kernel refused.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write(bytes, &mut self.target)
    }

    /// Entries whose making was begun.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.target.meter.entries()
    }

    /// Ends it: attributes of directories are set last.
    ///
    /// # Errors
    /// As [`Merger::write`]; an archive that was cut off.
    pub fn finish(self) -> Result<AppliedLayer> {
        self.stream.finish()?;
        self.target.finish()
    }
}

/// The directory that entries are being made in.
#[derive(Debug, Clone)]
struct Parent {
    /// As the archive names it.
    asked: Vec<u8>,
    /// Below the root, without links.
    path: Vec<u8>,
    fd: Arc<OwnedFd>,
    identity: Identity,
    /// What is made in it gets more than this process gives: its group, or a default ACL.
    passes_on: bool,
}

/// A directory that this layer made, listed or changed. Its attributes come last.
#[derive(Debug)]
struct Directory {
    /// Below the root, without links.
    path: Vec<u8>,
    becomes: Becomes,
}

#[derive(Debug)]
enum Becomes {
    /// What an entry says.
    Listed { mode: u32, uid: u32, gid: u32, mtime: Time, xattrs: Vec<(Vec<u8>, Vec<u8>)> },
    /// As a directory that no entry lists.
    Implied,
    /// As it was before: a lower layer's, of which only the content has changed.
    AsBefore(Timestamps),
}

#[derive(Debug)]
struct Target {
    root: Root,
    maker: Maker,
    ownership: Ownership,
    /// What this layer made: a name in a directory.
    written: HashSet<(Identity, Vec<u8>)>,
    /// The parent of the last entry: most often the next one's too.
    parent: Option<Parent>,
    current: Option<(File, bool)>,
    directories: HashMap<Identity, Directory>,
    meter: Meter,
    /// Directories in which nothing of the layers below is left: no marker needs to look there again.
    emptied: HashSet<Identity>,
}

impl Sink for Target {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        self.meter.count(entry)?;
        let split = name::split(&entry.name).map_err(|e| refuse(entry, e))?;
        if matches!(split.last, Last::Name(_) | Last::Itself) {
            self.ownership.check(entry)?; // a marker is nobody's
        }
        let parent = self.enter(entry, &split.parents)?;
        if let Last::Name(name) | Last::Whiteout(name) = split.last {
            let (depth, path_bytes) = place(&parent.path, name);
            self.meter.place(entry, depth, path_bytes)?;
        }
        match split.last {
            Last::Itself if entry.kind == Kind::Directory => {
                self.list(entry, parent.path, parent.identity);
                Ok(())
            }
            Last::Itself => {
                Err(refuse(entry, "its name comes down to a directory that is there, and it is none"))
            }
            Last::Name(name) => self.make(entry, &parent, name),
            Last::Whiteout(name) => self.remove_lower(&parent, vec![name.to_vec()]),
            Last::Opaque if !self.emptied.insert(parent.identity) => Ok(()),
            Last::Opaque => {
                let names = root::names(parent.fd.as_fd()).map_err(|e| failed(entry, "list", e))?;
                self.remove_lower(&parent, names.into_iter().map(CString::into_bytes).collect())
            }
            Last::Reserved => Ok(()),
        }
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some((file, _)) = &self.current else { return Ok(()) };
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
            .map_err(|e| Error::io("write", root::to_path(&entry.name), &e))
    }

    fn end(&mut self, entry: &Entry) -> Result<()> {
        let Some((file, inherits)) = self.current.take() else { return Ok(()) };
        if entry.sparse {
            file.set_len(entry.size).map_err(|e| Error::io("truncate", root::to_path(&entry.name), &e))?;
        }
        let fd = file.as_fd();
        let attributes = self.on_disk(entry.kind, attributes(entry));
        let done = if inherits {
            clear_xattrs(fd).and_then(|()| Maker::careful().finish_file(fd, &attributes))
        } else {
            self.maker.finish_file(fd, &attributes)
        };
        let done = done.and_then(|skipped| self.record(fd, entry).map(|()| skipped));
        let skipped = done.map_err(|(operation, errno)| failed(entry, operation, errno))?;
        self.meter.skip_xattrs(skipped);
        Ok(())
    }
}

/// How directories are opened: a path of the archive's is walked by `walk`, which follows links itself.
const ENTER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Target {
    /// The directory that components lead to; what is missing of it is made.
    fn enter(&mut self, entry: &Entry, parts: &[&[u8]]) -> Result<Parent> {
        let asked = parts.join(&b'/');
        if let Some(known) = self.parent.as_ref().filter(|known| known.asked == asked) {
            return Ok(known.clone());
        }
        let plain = !parts.contains(&&b".."[..]);
        let direct = plain.then(|| self.root.resolve_plain(&asked, ENTER)).and_then(std::result::Result::ok);
        let (path, fd) = match direct {
            Some(fd) => (asked.clone(), fd),
            None => self.walk(entry, parts)?,
        };
        let identity = self.change(fd.as_fd(), &path).map_err(|e| failed(entry, "stat", e))?;
        let passes_on = passes_on(fd.as_fd(), &self.maker).map_err(|e| failed(entry, "stat", e))?;
        let parent = Parent { asked, path, fd: Arc::new(fd), identity, passes_on };
        self.parent = Some(parent.clone());
        Ok(parent)
    }

    /// Walks components as inside a root, follows links and makes what is missing, also where a link leads to it.
    fn walk(&mut self, entry: &Entry, parts: &[&[u8]]) -> Result<(Vec<u8>, OwnedFd)> {
        let mut pending: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let open = |path: &[u8]| self.root.resolve_plain(path, ENTER).map_err(|e| failed(entry, "open", e));
        let mut at = open(b"")?;
        while let Some(part) = pending.pop() {
            if part == b".." {
                done.pop();
                at = open(&done.join(&b'/'))?;
                continue;
            }
            let opened = match root::open_directory(at.as_fd(), &part) {
                Err(Errno::NOENT) => {
                    let path = done.join(&b'/');
                    let (depth, path_bytes) = place(&path, &part);
                    self.meter.imply(entry, depth, path_bytes)?;
                    let above = change(&mut self.directories, at.as_fd(), &path);
                    let above = above.map_err(|e| failed(entry, "stat", e))?;
                    self.written.insert((above, part.clone()));
                    let made = make_directory(at.as_fd(), &part);
                    let made = made.map_err(|e| failed(entry, "make directory", e))?;
                    let identity = root::identity(made.as_fd()).map_err(|e| failed(entry, "stat", e))?;
                    let path = below(&path, &part);
                    self.directories.insert(identity, Directory { path, becomes: Becomes::Implied });
                    made
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let Ok(target) = rustix::fs::readlinkat(&at, part.as_slice(), Vec::new()) else {
                        return Err(refuse(entry, "a parent of its name is no directory"));
                    };
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(refuse(entry, "too many levels of symbolic links"));
                    }
                    let target = target.to_bytes();
                    if target.starts_with(b"/") {
                        done.clear();
                        at = open(b"")?;
                    }
                    let parts = name::components(target).map_err(|e| refuse(entry, e))?;
                    pending.extend(parts.into_iter().rev().map(<[u8]>::to_vec));
                    continue;
                }
                opened => opened.map_err(|e| failed(entry, "open", e))?,
            };
            at = opened;
            done.push(part);
        }
        Ok((done.join(&b'/'), at))
    }

    fn change(&mut self, directory: BorrowedFd<'_>, path: &[u8]) -> std::result::Result<Identity, Errno> {
        change(&mut self.directories, directory, path)
    }

    fn make(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        let fd = parent.fd.as_fd();
        match entry.kind {
            Kind::Hardlink => self.make_link(entry, fd, name)?,
            Kind::Directory => self.make_directory(entry, parent, name)?,
            Kind::File => self.make_file(entry, parent, name)?,
            Kind::Character | Kind::Block | Kind::Fifo if self.ownership.is_recorded() => {
                check_special(entry)?;
                // An empty file stands for it; no data will come, and no end.
                self.make_file(entry, parent, name)?;
                self.end(entry)?;
            }
            _ => self.make_other(entry, parent, name)?,
        }
        self.written.insert((parent.identity, name.to_vec()));
        Ok(())
    }

    fn make_file(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        let recorded = self.ownership.is_recorded();
        let mode = if recorded { record::mode_on_disk(entry.kind, entry.mode) } else { entry.mode };
        let fd = parent.fd.as_fd();
        self.clear(entry, fd, name)?;
        self.current = Some((create_file(entry, mode, fd, name)?, parent.passes_on));
        Ok(())
    }

    /// What something really gets of its attributes.
    fn on_disk<'a>(&self, kind: Kind, attributes: Attributes<'a>) -> Attributes<'a> {
        if self.ownership.is_recorded() { record::on_disk(kind, &attributes, self.maker) } else { attributes }
    }

    /// Records what an open file stands for, if anything is recorded.
    fn record(&self, fd: BorrowedFd<'_>, entry: &Entry) -> Done {
        if !self.ownership.is_recorded() {
            return Ok(());
        }
        record::write(fd, entry.kind, entry.device, &attributes(entry))
    }

    fn make_other(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        let fd = parent.fd.as_fd();
        let mut maker = self.maker;
        // Before anything is taken away: what a refused entry was to replace stays.
        check_symlink(entry)?;
        check_special(entry)?;
        self.clear(entry, fd, name)?;
        if entry.kind == Kind::Symlink {
            rustix::fs::symlinkat(entry.link.as_slice(), fd, name)
                .map_err(|e| failed(entry, "make link", e))?;
        } else {
            make_special(entry, fd, name)?;
        }
        if parent.passes_on {
            maker = Maker::careful();
            if entry.kind != Kind::Symlink {
                clear_acl_at(fd, name).map_err(|e| failed(entry, "remove ACL", e))?;
            }
        }
        let done = maker.finish_at(fd, name, entry.kind, &self.on_disk(entry.kind, attributes(entry)));
        let skipped = done.map_err(|(operation, errno)| failed(entry, operation, errno))?;
        self.meter.skip_xattrs(skipped);
        if self.ownership.is_recorded() {
            // A link has nowhere to record anything.
            self.meter.skip_xattrs(applicable(&entry.xattrs, entry.kind).count() as u64);
            if (entry.uid, entry.gid) != (0, 0) {
                self.meter.lose_owner();
            }
        }
        Ok(())
    }

    fn make_directory(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        let fd = parent.fd.as_fd();
        let made = match root::open_directory(fd, name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                self.clear(entry, fd, name)?;
                make_directory(fd, name).map_err(|e| failed(entry, "make directory", e))?
            }
            opened => opened.map_err(|e| failed(entry, "open", e))?,
        };
        let identity = root::identity(made.as_fd()).map_err(|e| failed(entry, "stat", e))?;
        self.list(entry, below(&parent.path, name), identity);
        Ok(())
    }

    fn list(&mut self, entry: &Entry, path: Vec<u8>, identity: Identity) {
        let becomes = Becomes::Listed {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        };
        self.directories.insert(identity, Directory { path, becomes });
    }

    fn make_link(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let mut parts = name::components(&entry.link).map_err(|e| refuse(entry, e))?;
        let Some(last) = parts.pop().filter(|last| *last != b"..") else {
            return Err(refuse(entry, "hard link to a directory"));
        };
        let missing = |e| match e {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP => {
                refuse(entry, format!("hard link to what is not there: {}", entry.link.escape_ascii()))
            }
            e => failed(entry, "open hard link target", e),
        };
        let from = self.root.resolve(&parts.join(&b'/'), ENTER, Mode::empty()).map_err(missing)?;
        let target = rustix::fs::statat(&from, last, AtFlags::SYMLINK_NOFOLLOW).map_err(missing)?;
        if FileType::from_raw_mode(target.st_mode) == FileType::Directory {
            return Err(refuse(entry, "hard link to a directory"));
        }
        if let Ok(there) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && (there.st_dev, there.st_ino) == (target.st_dev, target.st_ino)
        {
            return Ok(()); // it is that file already
        }
        self.clear(entry, parent, name)?;
        rustix::fs::linkat(&from, last, parent, name, AtFlags::empty()).map_err(missing)
    }

    /// Takes away what stands at a name, whoever made it.
    fn clear(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => root::remove_tree(parent, name)?,
            Err(e) => return Err(failed(entry, "remove", e)),
        }
        self.parent = None; // the way there may have led through it
        Ok(())
    }

    /// Takes away what the layers below have at some names of a directory.
    fn remove_lower(&mut self, parent: &Parent, names: Vec<Vec<u8>>) -> Result<()> {
        self.parent = None;
        let mut lower = Lower {
            written: &self.written,
            above: &parent.path,
            directories: &mut self.directories,
            emptied: &mut self.emptied,
        };
        root::remove_names(parent.fd.as_fd(), names, &mut lower).map(|_| ())
    }

    fn finish(self) -> Result<AppliedLayer> {
        let mut directories: Vec<_> = self.directories.iter().collect();
        // Children before parents: a directory may forbid its owner to enter.
        directories.sort_unstable_by(|(_, a), (_, b)| b.path.cmp(&a.path));
        let mut applied = self.meter.applied();
        for (identity, directory) in directories {
            applied.skipped_xattrs += self.finish_directory(*identity, directory)?;
        }
        Ok(applied)
    }

    /// Gives a directory its attributes; how many xattrs its file system could not take.
    fn finish_directory(&self, identity: Identity, directory: &Directory) -> Result<u64> {
        let wrong = |(operation, e)| Error::errno(operation, root::to_path(&directory.path), e);
        let Ok(fd) = self.root.resolve_plain(&directory.path, ENTER) else {
            return Ok(0); // a later entry took its place
        };
        let fd = fd.as_fd();
        if root::identity(fd).map_err(|e| wrong(("stat", e)))? != identity {
            return Ok(0);
        }
        let recorded = self.ownership.is_recorded();
        let attributes = match &directory.becomes {
            Becomes::AsBefore(times) => {
                if recorded {
                    record::write_if_missing(fd).map_err(wrong)?;
                }
                return rustix::fs::futimens(fd, times).map(|()| 0).map_err(|e| wrong(("set times", e)));
            }
            Becomes::Implied if recorded => record::IMPLIED,
            Becomes::Implied => self.maker.implied(),
            Becomes::Listed { mode, uid, gid, mtime, xattrs } => {
                Attributes { mode: *mode, uid: *uid, gid: *gid, mtime: *mtime, xattrs }
            }
        };
        let on_disk = self.on_disk(Kind::Directory, attributes);
        let skipped = clear_xattrs(fd).and_then(|()| finish_directory(fd, &on_disk)).map_err(wrong)?;
        if recorded {
            record::write(fd, Kind::Directory, (0, 0), &attributes).map_err(wrong)?;
        }
        Ok(skipped)
    }
}

/// What a whiteout removes: all that this layer did not write.
struct Lower<'t> {
    written: &'t HashSet<(Identity, Vec<u8>)>,
    above: &'t [u8],
    directories: &'t mut HashMap<Identity, Directory>,
    emptied: &'t mut HashSet<Identity>,
}

impl Pruner for Lower<'_> {
    fn removes(&self, directory: Identity, name: &[u8]) -> bool {
        !self.written.contains(&(directory, name.to_vec()))
    }

    /// Once is enough: what is made after it is this layer's.
    fn enters(&mut self, directory: Identity) -> bool {
        self.emptied.insert(directory)
    }

    /// A directory that an entry of this layer, or a marker, was in is as good as made by it.
    fn holds(&self, directory: Identity) -> bool {
        self.directories.contains_key(&directory)
    }

    /// Nothing of the lower directory is left: what stays is one that this layer made without listing it.
    fn stays(&mut self, path: Vec<u8>, directory: Identity) {
        let path = below(self.above, &path);
        self.directories.insert(directory, Directory { path, becomes: Becomes::Implied });
    }
}

/// Components and bytes of the path that a name in a directory has.
fn place(directory: &[u8], name: &[u8]) -> (usize, usize) {
    let path_bytes = directory.len() + usize::from(!directory.is_empty()) + name.len();
    let slashes = memchr::memchr_iter(b'/', directory).count();
    (slashes + usize::from(!directory.is_empty()) + 1, path_bytes)
}

/// Notes that a directory's content changes; its identity.
fn change(
    directories: &mut HashMap<Identity, Directory>,
    directory: BorrowedFd<'_>,
    path: &[u8],
) -> std::result::Result<Identity, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    let identity = (stat.st_dev, stat.st_ino);
    directories
        .entry(identity)
        .or_insert_with(|| Directory { path: path.to_vec(), becomes: Becomes::AsBefore(times_of(&stat)) });
    Ok(identity)
}

/// Whether what is made in a directory inherits more than what this process gives.
fn passes_on(directory: BorrowedFd<'_>, maker: &Maker) -> std::result::Result<bool, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(maker.inherits_group(stat.st_gid) || has_default_acl(directory)?)
}

/// Makes a directory for this process alone, for as long as the layer is being applied, and opens it.
fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
    root::open_directory(parent, name)
}
