//! Owner, mode, xattrs and times of what was made. In this order: a chown clears set-id bits and capabilities,
//! and everything changes times.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::Kind;
use super::pax::Time;
use super::record;

/// Overlayfs' own marks, and fuse-overlayfs': from an archive they must never act.
const OVERLAY_MARKS: [&[u8]; 4] =
    [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs.", b"security.fuseoverlayfs."];

/// Names that file systems keep for anybody.
const STORED_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
const CAPABILITY: &[u8] = b"security.capability";
const ACL_ACCESS: &str = "system.posix_acl_access";
const ACL_DEFAULT: &str = "system.posix_acl_default";

/// What this process gives to files that it makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maker {
    uid: u32,
    gid: u32,
    umask: u32,
}

impl Maker {
    /// Reads them; the umask from /proc, since umask(2) would change it for all threads.
    pub(super) fn of_this_process() -> Self {
        let umask = std::fs::read_to_string("/proc/self/status")
            .ok()
            .and_then(|status| {
                let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
                u32::from_str_radix(line.trim(), 8).ok()
            })
            .unwrap_or(0o777); // unknown: then every mode is set explicitly
        let uid = rustix::process::geteuid().as_raw();
        Self { uid, gid: rustix::process::getegid().as_raw(), umask }
    }
}

/// The attributes that an entry has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a> {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// What was refused, and what of it.
pub(super) type Done = Result<(), (&'static str, Errno)>;
/// How many xattrs the file system could not take.
type Finished = Result<u64, (&'static str, Errno)>;

impl Maker {
    /// One that takes nothing for granted of what it makes: for directories that pass on something of theirs.
    pub(super) fn careful() -> Self {
        Self { uid: u32::MAX, gid: u32::MAX, umask: 0o777 }
    }

    /// Whether what is made in a directory of this group may get another than this process gives: by its set-gid
    /// bit, or by a mount option.
    pub(super) fn inherits_group(self, directory: u32) -> bool {
        directory != self.gid
    }

    /// What a directory is that no entry lists.
    pub(super) fn implied(self) -> Attributes<'static> {
        Attributes { mode: 0o755, uid: self.uid, gid: self.gid, mtime: Time::default(), xattrs: &[] }
    }

    /// Makes an empty directory, opened for reading, this process' own, so that what is made in it is too: where the
    /// one above has a set-gid bit or a default ACL, it has inherited them.
    pub(super) fn take_over(self, directory: BorrowedFd<'_>) -> Done {
        clear_xattrs(directory)?;
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        rustix::fs::fchown(directory, Some(uid), Some(gid)).map_err(|e| ("chown", e))?;
        rustix::fs::fchmod(directory, Mode::RWXU).map_err(|e| ("chmod", e))
    }

    /// Gives an open file, just made with `mode & 0777`, its attributes.
    pub(super) fn finish_file(&self, fd: BorrowedFd<'_>, attributes: &Attributes<'_>) -> Finished {
        let owned = attributes.uid == self.uid && attributes.gid == self.gid;
        if !owned {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| ("chown", e))?;
        }
        if attributes.mode & (self.umask | 0o7000) != 0 {
            rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).map_err(|e| ("chmod", e))?;
        }
        let skipped = set_xattrs(attributes, Kind::File, |name, value| {
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        })?;
        rustix::fs::futimens(fd, &timestamps(attributes.mtime)).map_err(|e| ("set times", e))?;
        Ok(skipped)
    }

    /// Gives what is at a name its attributes; the last component is never followed.
    pub(super) fn finish_at(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        kind: Kind,
        attributes: &Attributes<'_>,
    ) -> Finished {
        let owned = attributes.uid == self.uid && attributes.gid == self.gid;
        // A directory may have inherited its group from a set-gid parent: always set.
        if !owned || kind == Kind::Directory {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| ("chown", e))?;
        }
        if kind != Kind::Symlink {
            chmod_at(parent, name, attributes.mode).map_err(|e| ("chmod", e))?;
        }
        let skipped = set_xattrs(attributes, kind, |xattr, value| set_xattr_at(parent, name, xattr, value))?;
        rustix::fs::utimensat(parent, name, &timestamps(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| ("set times", e))?;
        Ok(skipped)
    }
}

/// Gives an open directory its attributes.
pub(super) fn finish_directory(fd: BorrowedFd<'_>, attributes: &Attributes<'_>) -> Finished {
    let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| ("chown", e))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(attributes.mode)).map_err(|e| ("chmod", e))?;
    let skipped = set_xattrs(attributes, Kind::Directory, |name, value| {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
    })?;
    rustix::fs::futimens(fd, &timestamps(attributes.mtime)).map_err(|e| ("set times", e))?;
    Ok(skipped)
}

/// Sets those xattrs that may act. A file system without xattrs loses those that are data alone; a capability or an ACL
/// that is lost would change who may do what.
fn set_xattrs(
    attributes: &Attributes<'_>,
    kind: Kind,
    set: impl Fn(&[u8], &[u8]) -> Result<(), Errno>,
) -> Finished {
    let mut skipped = 0;
    for (name, value) in applicable(attributes.xattrs, kind) {
        match set(name, value) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) if name != CAPABILITY && !name.starts_with(b"system.") => skipped += 1,
            Err(e) => return Err(("set xattr", e)),
        }
    }
    Ok(skipped)
}

/// Sets the mode of what is at a name, not following it. No flag says so before Linux 6.6: an `O_PATH` descriptor
/// holds the thing itself, and /proc leads to it.
fn chmod_at(parent: BorrowedFd<'_>, name: &[u8], mode: u32) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(mode))
}

/// Marks a directory as one that overlayfs merges with nothing, as root does it, or else as a user namespace may.
pub(super) fn mark_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match set_xattr_at(parent, name, b"trusted.overlay.opaque", b"y") {
        Err(Errno::PERM) => match set_xattr_at(parent, name, b"user.overlay.opaque", b"y") {
            // Nobody who may not set that one either mounts overlays; the index has it.
            Err(Errno::PERM) => Ok(()),
            done => done,
        },
        done => done,
    }
}

/// Sets an xattr of what is at a name, not following it. There is no such call before Linux 6.13; through /proc
/// the descriptor's directory is reached, and the last component is the `l` form's.
pub(super) fn set_xattr_at(
    parent: BorrowedFd<'_>,
    name: &[u8],
    xattr: &[u8],
    value: &[u8],
) -> Result<(), Errno> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    rustix::fs::lsetxattr(path.as_slice(), xattr, value, XattrFlags::empty())
}

/// Those xattrs that may act and that this kind of file can have: the kernel keeps `user.` to files and directories.
pub(super) fn applicable(xattrs: &[(Vec<u8>, Vec<u8>)], kind: Kind) -> impl Iterator<Item = (&[u8], &[u8])> {
    xattrs
        .iter()
        .filter(|(name, _)| !is_mark(name))
        .filter(move |(name, _)| matches!(kind, Kind::File | Kind::Directory) || !name.starts_with(b"user."))
        .map(|(name, value)| (name.as_slice(), value.as_slice()))
}

/// What comes of an xattr where no file system is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Storable {
    /// It is kept as it is.
    Yes,
    /// It is lost, and counted.
    Skipped,
    /// It is an access ACL.
    Access,
    /// It is the ACL that new files in a directory get.
    Default,
}

/// Judges an xattr as [`set_xattrs`] does by what the kernel answers.
pub(super) fn storable(name: &[u8], value: &[u8]) -> Result<Storable, Errno> {
    if name == ACL_ACCESS.as_bytes() {
        return Ok(Storable::Access);
    }
    if name == ACL_DEFAULT.as_bytes() {
        return Ok(Storable::Default);
    }
    if name == CAPABILITY {
        return if is_capability(value) { Ok(Storable::Yes) } else { Err(Errno::INVAL) };
    }
    match STORED_PREFIXES.iter().find_map(|prefix| name.strip_prefix(*prefix)) {
        Some(b"") => Err(Errno::INVAL),
        Some(_) => Ok(Storable::Yes),
        None if name.starts_with(b"system.") => Err(Errno::OPNOTSUPP),
        None => Ok(Storable::Skipped),
    }
}

/// Whether a value has one of the forms that the kernel takes: of the second revision, or of the third, with an owner.
fn is_capability(value: &[u8]) -> bool {
    let revision = value.get(3).copied().unwrap_or(0);
    matches!((value.len(), revision), (20, 2) | (24, 3))
}

/// Whether an xattr says something to those who stack or read trees: what no archive may say.
pub(super) fn is_mark(name: &[u8]) -> bool {
    is_overlay_mark(name) || name.starts_with(record::PREFIX)
}

/// Whether an xattr is one of overlayfs' own marks.
pub(super) fn is_overlay_mark(name: &[u8]) -> bool {
    OVERLAY_MARKS.iter().any(|mark| name.starts_with(mark))
}

/// Whether what is made in a directory gets an ACL from it.
pub(super) fn has_default_acl(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::fs::fgetxattr(directory, ACL_DEFAULT, &mut [0u8; 0]) {
        Ok(_) | Err(Errno::RANGE) => Ok(true),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Takes away what an open file or directory has of xattrs, but for labels that the host's policy gives.
pub(super) fn clear_xattrs(fd: BorrowedFd<'_>) -> Done {
    let mut list = Vec::new();
    let length = match rustix::fs::flistxattr_query(fd) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
        found => found.map_err(|e| ("list xattrs", e))?,
    };
    list.resize(length, 0u8);
    let length = rustix::fs::flistxattr(fd, &mut list).map_err(|e| ("list xattrs", e))?;
    for name in list[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let label = name.starts_with(b"security.") && name != CAPABILITY;
        if label || is_overlay_mark(name) {
            continue;
        }
        match rustix::fs::fremovexattr(fd, name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(e) => return Err(("remove xattr", e)),
        }
    }
    Ok(())
}

/// Takes away the ACL of what is at a name, not following it.
pub(super) fn clear_acl_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    match rustix::fs::lremovexattr(path.as_slice(), ACL_ACCESS) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e),
    }
}

/// Both times of a file, to be set again.
pub(super) fn times_of(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds.cast_signed() };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}
