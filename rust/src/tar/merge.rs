//! A layer applied to a directory that holds the layers below it, as `umoci unpack` and containerd do.
//!
//! Others may write there, and what is there came from strangers: every parent is opened by the kernel as inside
//! a root, nothing at the end of a name is followed, and whiteouts remove only what this layer did not write.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::entry::{Entry, Kind};
use super::fresh::{attributes, check_symlink, create_file, make_special};
use super::metadata::{Attributes, Maker, finish_directory};
use super::name::{self, Last};
use super::pax::Time;
use super::stream::{Sink, Stream};
use super::{AppliedLayer, Limits, failed, refuse};
use crate::error::{Error, Result};
use crate::root::{self, Root};

/// Mode of a parent directory that no entry lists.
const IMPLIED_MODE: u32 = 0o755;

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
    /// [`Error::Io`] where its attributes cannot be read.
    pub fn new(directory: Root, limits: Limits) -> Result<Self> {
        let target = Target {
            root: directory,
            maker: Maker::of_this_process(),
            written: HashSet::new(),
            parent: None,
            current: None,
            directories: Vec::new(),
            limits,
            applied: AppliedLayer::default(),
        };
        Ok(Self { stream: Stream::default(), target })
    }

    /// Takes in the next bytes of the uncompressed archive.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] for what is refused, [`Error::Io`] where the kernel refused.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write(bytes, &mut self.target)
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

/// A directory, whatever its name is now.
type Identity = (u64, u64);

#[derive(Debug, Clone)]
struct Parent {
    path: Vec<u8>,
    fd: Arc<OwnedFd>,
    identity: Identity,
}

/// A directory that the archive lists: its attributes come last.
#[derive(Debug)]
struct Listed {
    path: Vec<u8>,
    identity: Identity,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
struct Target {
    root: Root,
    maker: Maker,
    /// What this layer made: a name in a directory.
    written: HashSet<(Identity, Vec<u8>)>,
    /// The parent of the last entry: most often the next one's too.
    parent: Option<Parent>,
    current: Option<File>,
    directories: Vec<Listed>,
    limits: Limits,
    applied: AppliedLayer,
}

impl Sink for Target {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        self.limits.count(&mut self.applied, entry)?;
        let split = name::split(&entry.name).map_err(|e| refuse(entry, e))?;
        let parent = self.enter(entry, &split.parents.join(&b'/'))?;
        match split.last {
            Last::Itself if entry.kind == Kind::Directory => {
                self.list(entry, &parent.path, parent.identity);
                Ok(())
            }
            Last::Itself => {
                Err(refuse(entry, "its name comes down to a directory that is there, and it is none"))
            }
            Last::Name(name) => self.make(entry, &parent, name),
            Last::Whiteout(name) => self.remove_lower(entry, &parent, name),
            Last::Opaque => self.remove_all_lower(entry, parent.fd.as_fd()),
            Last::Reserved => Ok(()),
        }
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let Some(file) = &self.current else { return Ok(()) };
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
            .map_err(|e| Error::io("write", root::to_path(&entry.name), &e))
    }

    fn end(&mut self, entry: &Entry) -> Result<()> {
        let Some(file) = self.current.take() else { return Ok(()) };
        if entry.sparse {
            file.set_len(entry.size).map_err(|e| Error::io("truncate", root::to_path(&entry.name), &e))?;
        }
        let done = self.maker.finish_file(file.as_fd(), &attributes(entry));
        done.map_err(|(operation, errno)| failed(entry, operation, errno))
    }
}

const ENTER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Target {
    /// The directory of a path below the root; what is missing of it is made.
    fn enter(&mut self, entry: &Entry, path: &[u8]) -> Result<Parent> {
        if let Some(known) = self.parent.as_ref().filter(|known| known.path == path) {
            return Ok(known.clone());
        }
        let fd = match self.root.resolve(path, ENTER, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.make_parents(entry, path)?,
            Err(Errno::NOTDIR) => return Err(refuse(entry, "a parent of its name is no directory")),
            Err(Errno::LOOP) => return Err(refuse(entry, "too many levels of symbolic links")),
            Err(e) => return Err(failed(entry, "open", e)),
        };
        let identity = identity(fd.as_fd()).map_err(|e| failed(entry, "stat", e))?;
        let parent = Parent { path: path.to_vec(), fd: Arc::new(fd), identity };
        self.parent = Some(parent.clone());
        Ok(parent)
    }

    /// Makes the missing directories of a path, also where a link on the way leads to one that is missing.
    fn make_parents(&mut self, entry: &Entry, path: &[u8]) -> Result<OwnedFd> {
        let mut pending: Vec<Vec<u8>> = path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            let parent =
                self.root.resolve(&done, ENTER, Mode::empty()).map_err(|e| failed(entry, "open", e))?;
            if part != b".." {
                match rustix::fs::mkdirat(&parent, part.as_slice(), Mode::from_raw_mode(IMPLIED_MODE)) {
                    Ok(()) => {
                        let at = identity(parent.as_fd()).map_err(|e| failed(entry, "stat", e))?;
                        self.written.insert((at, part.clone()));
                    }
                    Err(Errno::EXIST) => {
                        if let Ok(target) = rustix::fs::readlinkat(&parent, part.as_slice(), Vec::new()) {
                            links += 1;
                            if links > 40 {
                                return Err(refuse(entry, "too many levels of symbolic links"));
                            }
                            if target.to_bytes().starts_with(b"/") {
                                done.clear();
                            }
                            let parts = name::components(target.to_bytes()).map_err(|e| refuse(entry, e))?;
                            pending.extend(parts.into_iter().rev().map(<[u8]>::to_vec));
                            continue;
                        }
                    }
                    Err(e) => return Err(failed(entry, "make directory", e)),
                }
            }
            if !done.is_empty() {
                done.push(b'/');
            }
            done.extend_from_slice(&part);
        }
        self.root.resolve(&done, ENTER, Mode::empty()).map_err(|e| match e {
            Errno::NOTDIR => refuse(entry, "a parent of its name is no directory"),
            e => failed(entry, "open", e),
        })
    }

    fn make(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        let fd = parent.fd.as_fd();
        if entry.kind == Kind::Hardlink {
            self.make_link(entry, fd, name)?;
        } else if entry.kind == Kind::Directory {
            self.make_directory(entry, parent, name)?;
        } else {
            self.clear(entry, fd, name)?;
            match entry.kind {
                Kind::File => self.current = Some(create_file(entry, fd, name)?),
                Kind::Symlink => {
                    check_symlink(entry)?;
                    rustix::fs::symlinkat(entry.link.as_slice(), fd, name)
                        .map_err(|e| failed(entry, "make link", e))?;
                }
                _ => make_special(entry, fd, name)?,
            }
            if entry.kind != Kind::File {
                let done = self.maker.finish_at(fd, name, entry.kind, &attributes(entry));
                done.map_err(|(operation, errno)| failed(entry, operation, errno))?;
            }
        }
        self.written.insert((parent.identity, name.to_vec()));
        Ok(())
    }

    fn make_directory(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        let fd = parent.fd.as_fd();
        if !root::is_directory(fd, name).map_err(|e| failed(entry, "stat", e))? {
            self.clear(entry, fd, name)?;
            rustix::fs::mkdirat(fd, name, Mode::from_raw_mode(0o700))
                .map_err(|e| failed(entry, "make directory", e))?;
        }
        let made = root::open_directory(fd, name).map_err(|e| failed(entry, "open", e))?;
        let identity = identity(made.as_fd()).map_err(|e| failed(entry, "stat", e))?;
        let mut path = parent.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.list(entry, &path, identity);
        Ok(())
    }

    fn list(&mut self, entry: &Entry, path: &[u8], identity: Identity) {
        self.directories.push(Listed {
            path: path.to_vec(),
            identity,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        });
    }

    fn make_link(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
        let mut parts = name::components(&entry.link).map_err(|e| refuse(entry, e))?;
        let Some(last) = parts.pop().filter(|last| *last != b"..") else {
            return Err(refuse(entry, "hard link to a directory"));
        };
        let missing = |e| match e {
            Errno::NOENT | Errno::NOTDIR => {
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
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                self.parent = None; // it may have been in there
                root::remove_tree(parent, name)
            }
            Err(e) => Err(failed(entry, "remove", e)),
        }
    }

    fn remove_lower(&mut self, entry: &Entry, parent: &Parent, name: &[u8]) -> Result<()> {
        if !self.written.contains(&(parent.identity, name.to_vec())) {
            return self.clear(entry, parent.fd.as_fd(), name);
        }
        if root::is_directory(parent.fd.as_fd(), name).map_err(|e| failed(entry, "stat", e))? {
            let directory =
                root::open_directory(parent.fd.as_fd(), name).map_err(|e| failed(entry, "open", e))?;
            return self.remove_all_lower(entry, directory.as_fd());
        }
        Ok(())
    }

    fn remove_all_lower(&mut self, entry: &Entry, directory: BorrowedFd<'_>) -> Result<()> {
        self.parent = None;
        let written = &self.written;
        let lower = |parent: BorrowedFd<'_>, name: &[u8]| {
            // A directory whose identity cannot be read is left alone; the removal then says what is wrong.
            identity(parent).is_ok_and(|at| !written.contains(&(at, name.to_vec())))
        };
        root::remove_children(directory, &lower).map(|_| ()).map_err(|e| match e {
            Error::Io { errno, operation, .. } => failed(entry, operation, Errno::from_raw_os_error(errno)),
            other => other,
        })
    }

    fn finish(self) -> Result<AppliedLayer> {
        // Backwards: children before parents; of a directory that is listed twice the last listing counts.
        let mut done = HashSet::new();
        for listed in self.directories.iter().rev() {
            if done.insert(listed.identity) {
                self.finish_listed(listed)?;
            }
        }
        Ok(self.applied)
    }

    fn finish_listed(&self, listed: &Listed) -> Result<()> {
        let wrong = |operation, e| Error::errno(operation, root::to_path(&listed.path), e);
        let Ok(directory) = self.root.resolve(&listed.path, ENTER, Mode::empty()) else {
            return Ok(()); // a later entry took its place
        };
        if identity(directory.as_fd()).map_err(|e| wrong("stat", e))? != listed.identity {
            return Ok(());
        }
        let attributes = Attributes {
            mode: listed.mode,
            uid: listed.uid,
            gid: listed.gid,
            mtime: listed.mtime,
            xattrs: &listed.xattrs,
        };
        let done = finish_directory(directory.as_fd(), &attributes);
        done.map_err(|(operation, errno)| wrong(operation, errno))
    }
}

fn identity(fd: BorrowedFd<'_>) -> std::result::Result<Identity, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}
