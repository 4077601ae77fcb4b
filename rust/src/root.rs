//! A directory descriptor; every path is resolved beneath it by the kernel.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Renames elsewhere make the kernel give up a walk with EAGAIN; it says to try again.
const RESOLVE_ATTEMPTS: u32 = 128;

/// A directory that everything done through it stays beneath.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// [`Error::Io`] where it is none, or may not be entered.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let fd = rustix::fs::openat(
            CWD,
            &path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )
        .map_err(|e| Error::errno("open", &path, e))?;
        Ok(Self { fd, path })
    }

    /// Where it was opened; for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a path as if this directory were `/`: `..` stops here, links lead back in, magic links are refused.
    ///
    /// # Errors
    /// [`Error::Io`] with the path as it was asked for.
    pub fn open_in(&self, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd> {
        self.resolve(path, flags, mode).map_err(|e| Error::errno("open", to_path(path), e))
    }

    /// As [`Root::open_in`], with the bare errno.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resolve(&self, path: &[u8], flags: OFlags, mode: Mode) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let mut attempts = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, how) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
                done => return done,
            }
        }
    }

    /// As [`Root::resolve`], but a link on the way is an error, and so is `..` above this directory.
    ///
    /// # Errors
    /// The kernel's: ELOOP for a link, EXDEV for a way out.
    pub fn resolve_plain(&self, path: &[u8], flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let mut attempts = 0;
        loop {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
                Err(Errno::AGAIN | Errno::INTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
                done => return done,
            }
        }
    }

    /// Makes directories and their parents, each with `mode`; those that are there stay as they are. A name that was
    /// made is flushed: what is stored beneath it would be lost with it. All are made before the first is flushed: where
    /// a file system has a journal, that takes the others along.
    ///
    /// # Errors
    /// [`Error::Io`], also where something else than a directory is in the way.
    pub fn make_directories(&self, paths: &[&str], mode: u32) -> Result<()> {
        let mut grown: Vec<&str> = Vec::new();
        for path in paths {
            let found = rustix::fs::statat(&self.fd, *path, AtFlags::SYMLINK_NOFOLLOW);
            if found.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory) {
                continue; // as nearly always; a full disk refuses to make one that is there too
            }
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            let mut parent = ".";
            for made in ends.map(|end| &path[..end]) {
                match rustix::fs::mkdirat(&self.fd, made, Mode::from_raw_mode(mode)) {
                    Ok(()) if !grown.contains(&parent) => grown.push(parent),
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(Error::errno("make directory", self.path.join(made), e)),
                }
                parent = made;
            }
        }
        for parent in grown {
            rustix::fs::fsync(self.directory(parent)?)
                .map_err(|e| Error::errno("fsync", self.path.join(parent), e))?;
        }
        Ok(())
    }

    /// Opens a directory beneath, by a path without links.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn directory(&self, path: &str) -> Result<OwnedFd> {
        open_directory(self.fd.as_fd(), path.as_bytes())
            .map_err(|e| Error::errno("open", self.path.join(path), e))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens a directory by name, never through a link at its end.
///
/// # Errors
/// The kernel's.
pub fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// Removes what a name stands for, with all that is in it. A name that is not there is no error.
///
/// # Errors
/// [`Error::Io`] with the path below `parent` of what could not be removed.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    remove_tree_until(parent, name, None).map(|_| ())
}

/// As [`remove_tree`], and ends early at `deadline`, which leaves a tree with less in it: whether all is gone.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_tree_until(parent: BorrowedFd<'_>, name: &[u8], deadline: Option<Instant>) -> Result<bool> {
    remove_names(parent, vec![name.to_vec()], &mut Everything { deadline })
}

/// Says what of a tree goes and what stays.
pub trait Pruner {
    /// Whether a name in a directory is to be removed. What is below a name that stays is asked for too.
    fn removes(&self, directory: Identity, name: &[u8]) -> bool;
    /// Whether a directory that is to be removed stays even with nothing left in it.
    fn holds(&self, directory: Identity) -> bool;
    /// Whether to look at what is in a directory; if not, the directory stays as it is.
    fn enters(&mut self, directory: Identity) -> bool;
    /// A directory was to be removed, but it stays.
    fn stays(&mut self, path: Vec<u8>, directory: Identity);
    /// Whether to end before all is done; asked before each name.
    fn ends(&self) -> bool {
        false
    }
}

struct Everything {
    deadline: Option<Instant>,
}

impl Pruner for Everything {
    fn enters(&mut self, _directory: Identity) -> bool {
        true
    }

    fn removes(&self, _directory: Identity, _name: &[u8]) -> bool {
        true
    }

    fn holds(&self, _directory: Identity) -> bool {
        false
    }

    fn stays(&mut self, _path: Vec<u8>, _directory: Identity) {}

    fn ends(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

/// A directory, whatever its name is now: device and inode number.
pub type Identity = (u64, u64);

/// The identity of an open directory.
///
/// # Errors
/// The kernel's.
pub fn identity(fd: BorrowedFd<'_>) -> std::result::Result<Identity, Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// A directory on the way down a removal.
struct Level {
    name: Vec<u8>,
    left: Vec<Vec<u8>>,
    identity: Identity,
    wanted: bool,
    empty: bool,
}

/// Removes some names of a directory, with what is in them, but for what `pruner` keeps; whether all are gone.
///
/// However deep the tree, one descriptor is open: the way back up is `..`, which must lead to where the walk came
/// from, so that a directory moved meanwhile leads nowhere else. Mounts are not entered.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_names(parent: BorrowedFd<'_>, names: Vec<Vec<u8>>, pruner: &mut impl Pruner) -> Result<bool> {
    let at = identity(parent).map_err(|e| Error::errno("stat", "", e))?;
    let mut levels = vec![Level { name: Vec::new(), left: names, identity: at, wanted: false, empty: true }];
    let mut below: Option<OwnedFd> = None;
    loop {
        if pruner.ends() {
            return Ok(false);
        }
        let depth = levels.len() - 1;
        let directory = below.as_ref().map_or(parent, AsFd::as_fd);
        let level = &mut levels[depth];
        if let Some(name) = level.left.pop() {
            let wanted = pruner.removes(level.identity, &name);
            match remove_or_open(directory, &name, wanted) {
                Ok(Removal::Gone) => {}
                Ok(Removal::Stays) => level.empty = false,
                Ok(Removal::Directory(opened)) => {
                    let at = identity(opened.as_fd()).map_err(|e| failed(&levels, &name, e))?;
                    if !pruner.enters(at) {
                        levels[depth].empty = false;
                        continue;
                    }
                    let entered = enter(&opened, name.clone(), wanted);
                    levels.push(entered.map_err(|e| failed(&levels, &name, e))?);
                    below = Some(opened);
                }
                Err(e) => return Err(failed(&levels, &name, e)),
            }
            continue;
        }
        let Some(done) = levels.pop() else { return Ok(true) };
        let Some(above) = levels.last_mut() else { return Ok(done.empty) };
        let up = if depth == 1 { None } else { Some(open_above(directory, above.identity)) };
        let gone = match up.transpose() {
            Ok(up) => {
                below = up;
                let directory = below.as_ref().map_or(parent, AsFd::as_fd);
                let goes = done.wanted && done.empty && !pruner.holds(done.identity);
                if goes { remove_empty(directory, &done.name) } else { Ok(false) }
            }
            Err(e) => Err(e),
        };
        match gone {
            Ok(true) => {}
            Ok(false) => {
                above.empty = false;
                if done.wanted {
                    pruner.stays(path_below(&levels, &done.name), done.identity);
                }
            }
            Err(e) => return Err(failed(&levels, &done.name, e)),
        }
    }
}

enum Removal {
    Gone,
    Stays,
    Directory(OwnedFd),
}

fn remove_or_open(parent: BorrowedFd<'_>, name: &[u8], wanted: bool) -> std::result::Result<Removal, Errno> {
    if wanted {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Removal::Gone),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(parent, name, flags, Mode::empty(), how) {
        Ok(directory) => Ok(Removal::Directory(directory)),
        Err(Errno::NOENT) => Ok(Removal::Gone),
        Err(Errno::NOTDIR | Errno::LOOP) if !wanted => Ok(Removal::Stays),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(Errno::PERM), // no directory, and it may not be unlinked
        Err(Errno::XDEV) => Err(Errno::BUSY),
        Err(e) => Err(e),
    }
}

fn enter(directory: &OwnedFd, name: Vec<u8>, wanted: bool) -> std::result::Result<Level, Errno> {
    let left = names(directory.as_fd())?.into_iter().map(CString::into_bytes).collect();
    Ok(Level { name, left, identity: identity(directory.as_fd())?, wanted, empty: true })
}

fn open_above(directory: BorrowedFd<'_>, expected: Identity) -> std::result::Result<OwnedFd, Errno> {
    let above = open_directory(directory, b"..")?;
    if identity(above.as_fd())? == expected { Ok(above) } else { Err(Errno::STALE) }
}

fn remove_empty(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<bool, Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(e) => Err(e),
    }
}

fn path_below(levels: &[Level], name: &[u8]) -> Vec<u8> {
    let parts: Vec<&[u8]> =
        levels[1..].iter().map(|level| level.name.as_slice()).chain(std::iter::once(name)).collect();
    parts.join(&b'/')
}

fn failed(levels: &[Level], name: &[u8], errno: Errno) -> Error {
    Error::errno("remove", to_path(&path_below(levels, name)), errno)
}

/// How the path of [`open_regular`] is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// As a process finds it whose root the directory is: links are followed within.
    Inside,
    /// A link on the way or at the end is an error (ELOOP), and so is `..` above the directory (EXDEV).
    Refused,
}

/// Finds whatever is at a path as if a directory were `/`: `..` stops there, links lead back in, magic links are refused. The
/// descriptor is one to look at it by (`O_PATH`).
///
/// # Errors
/// [`Error::Io`] with the path as it was asked for.
pub fn find_node(root: BorrowedFd<'_>, path: &Path, follow: bool) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut attempts = 0;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
            done => return done.map_err(|e| Error::errno("open", path, e)),
        }
    }
}

/// Opens a regular file beneath `root` for reading.
///
/// Anything but a regular file is refused before it is opened: to open a FIFO waits, and to open a device may do
/// anything.
///
/// # Errors
/// `ENOENT` and the like from the kernel; [`Error::Invalid`] where it is no regular file.
pub fn open_regular(root: BorrowedFd<'_>, path: &Path, links: Links) -> Result<OwnedFd> {
    let resolve = match links {
        Links::Inside => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    };
    let mut attempts = 0;
    let found = loop {
        match rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if attempts < RESOLVE_ATTEMPTS => attempts += 1,
            answer => break answer.map_err(|e| Error::errno("open", path, e))?,
        }
    };
    let stat = rustix::fs::fstat(&found).map_err(|e| Error::errno("stat", path, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::Invalid {
            field: "path",
            value: path.display().to_string(),
            reason: "expected a regular file".to_owned(),
        });
    }
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::openat(CWD, again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::errno("open", path, e))
}

/// The names in a directory, without `.` and `..`, in no order.
///
/// # Errors
/// The kernel's.
pub fn names(directory: BorrowedFd<'_>) -> std::result::Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}

/// Whether a name stands for a directory; false where nothing is there.
///
/// # Errors
/// The kernel's.
pub fn is_directory(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<bool, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Bytes as a path, for messages.
#[must_use]
pub fn to_path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_out_lead_back_in() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("etc")).expect("made");
        std::fs::write(dir.path().join("etc/inside"), b"in").expect("written");
        std::os::unix::fs::symlink("/etc/inside", dir.path().join("link")).expect("linked");
        let root = Root::open(dir.path()).expect("opens");
        root.open_in(b"link", OFlags::RDONLY, Mode::empty()).expect("found inside");
        root.open_in(b"../../../etc/inside", OFlags::RDONLY, Mode::empty()).expect("stops at the root");
        assert!(root.open_in(b"/etc/passwd", OFlags::RDONLY, Mode::empty()).is_err());
    }

    #[test]
    fn remove_tree_does_not_follow_links() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        std::fs::create_dir(dir.path().join("outside")).expect("made");
        std::fs::write(dir.path().join("outside/victim"), b"x").expect("written");
        std::os::unix::fs::symlink("../../outside", dir.path().join("a/b/link")).expect("linked");
        let root = Root::open(dir.path()).expect("opens");
        remove_tree(root.as_fd(), b"a").expect("removed");
        remove_tree(root.as_fd(), b"a").expect("removing again is no error");
        assert!(dir.path().join("outside/victim").exists());
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn a_removal_that_ends_early_is_gone_on_with() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        let root = Root::open(dir.path()).expect("opens");
        assert!(!remove_tree_until(root.as_fd(), b"a", Some(Instant::now())).expect("ended"));
        assert!(dir.path().join("a/b").exists());
        let later = Instant::now() + std::time::Duration::from_secs(600);
        assert!(remove_tree_until(root.as_fd(), b"a", Some(later)).expect("removed"));
        assert!(!dir.path().join("a").exists());
    }

    /// Somebody else who removes a directory when it was just opened.
    struct Overtaken(PathBuf);

    impl Pruner for Overtaken {
        fn enters(&mut self, _directory: Identity) -> bool {
            std::fs::remove_dir_all(&self.0).is_ok()
        }

        fn removes(&self, _directory: Identity, _name: &[u8]) -> bool {
            true
        }

        fn holds(&self, _directory: Identity) -> bool {
            false
        }

        fn stays(&mut self, _path: Vec<u8>, _directory: Identity) {}
    }

    #[test]
    fn what_another_removes_meanwhile_is_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("made");
        let root = Root::open(dir.path()).expect("opens");
        let mut other = Overtaken(dir.path().join("a"));
        assert!(remove_names(root.as_fd(), vec![b"a".to_vec()], &mut other).expect("gone"));
    }

    #[test]
    fn a_tree_deeper_than_there_are_descriptors_is_removed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = Root::open(dir.path()).expect("opens");
        let mut at = open_directory(root.as_fd(), b".").expect("opens");
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).expect("made");
            at = open_directory(at.as_fd(), b"d").expect("opens");
        }
        remove_tree(root.as_fd(), b"d").expect("removed");
        assert!(!dir.path().join("d").exists());
    }

    struct But(&'static [u8], Vec<Vec<u8>>);

    impl Pruner for But {
        fn enters(&mut self, _directory: Identity) -> bool {
            true
        }

        fn removes(&self, _directory: Identity, name: &[u8]) -> bool {
            name != self.0
        }

        fn holds(&self, _directory: Identity) -> bool {
            false
        }

        fn stays(&mut self, path: Vec<u8>, _directory: Identity) {
            self.1.push(path);
        }
    }

    #[test]
    fn what_is_kept_keeps_the_directories_above_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir_all(dir.path().join("a/b/c")).expect("made");
        std::fs::create_dir_all(dir.path().join("a/x/y")).expect("made");
        std::fs::write(dir.path().join("a/b/keep"), b"x").expect("written");
        std::fs::write(dir.path().join("a/b/c/go"), b"x").expect("written");
        let root = Root::open(dir.path()).expect("opens");
        let mut pruner = But(b"keep", Vec::new());
        assert!(!remove_names(root.as_fd(), vec![b"a".to_vec()], &mut pruner).expect("removed"));
        assert_eq!(pruner.1, [b"a/b".to_vec(), b"a".to_vec()]);
        assert!(dir.path().join("a/b/keep").exists());
        assert!(!dir.path().join("a/b/c").exists());
        assert!(!dir.path().join("a/x").exists());
    }

    fn read(directory: &Path, name: &str, links: Links) -> Result<String> {
        use std::io::Read;
        let root = Root::open(directory.join("root")).expect("opens");
        let mut text = String::new();
        let mut file = std::fs::File::from(open_regular(root.as_fd(), Path::new(name), links)?);
        file.read_to_string(&mut text).expect("text");
        Ok(text)
    }

    #[test]
    fn a_files_links_stay_within_the_root_or_are_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let etc = dir.path().join("root/etc");
        std::fs::create_dir_all(&etc).expect("made");
        std::fs::write(etc.join("real"), "inside").expect("written");
        let links = [("passwd", "/etc/real"), ("up", "../../../../../etc/real"), ("near", "real")];
        for (name, target) in links {
            std::os::unix::fs::symlink(target, etc.join(name)).expect("linked");
            let path = format!("etc/{name}");
            assert_eq!(read(dir.path(), &path, Links::Inside).expect("opens"), "inside");
            assert!(matches!(read(dir.path(), &path, Links::Refused), Err(Error::Io { errno: 40, .. })));
        }
        std::os::unix::fs::symlink("etc", dir.path().join("root/link")).expect("linked");
        assert!(matches!(read(dir.path(), "link/real", Links::Refused), Err(Error::Io { errno: 40, .. })));
        assert!(matches!(
            read(dir.path(), "../root/etc/real", Links::Refused),
            Err(Error::Io { errno: 18, .. })
        ));
        assert_eq!(read(dir.path(), "etc/real", Links::Refused).expect("opens"), "inside");
    }

    #[test]
    fn what_is_no_regular_file_is_refused_unopened() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let etc = dir.path().join("root/etc");
        std::fs::create_dir_all(&etc).expect("made");
        rustix::fs::mknodat(CWD, etc.join("passwd"), FileType::Fifo, Mode::RUSR, 0).expect("made");
        for links in [Links::Inside, Links::Refused] {
            assert!(matches!(read(dir.path(), "etc/passwd", links), Err(Error::Invalid { .. })));
            assert!(matches!(read(dir.path(), "etc/group", links), Err(Error::Io { errno: 2, .. })));
        }
    }
}
