//! The kernel's mount API (Linux 5.2, overlayfs' `lowerdir+` 6.5): no option string, so no limit on layers.

mod idmap;
mod loops;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount as kernel_unmount,
};

pub use self::idmap::set_file_ids;
use crate::error::{Error, Result};

/// What the kernel takes as an option's value.
const OPTION_MAX_BYTES: usize = 255;

/// An overlay to be mounted.
#[derive(Debug, Clone, Default)]
pub struct Overlay<'a> {
    /// Read-only directories, the uppermost first.
    pub lower: Vec<PathBuf>,
    /// Directories of contents below all of these, which nothing but a lower file's redirect leads to (Linux 6.5).
    pub data: Vec<PathBuf>,
    /// Where writes go, and overlayfs' own directory beside it; without them the mount is read-only.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Skip syncs of the upper directory: its content is lost by a crash, as a container's is.
    pub volatile: bool,
    /// Its own marks are `user.overlay.` attributes (Linux 5.11): all that a user namespace may set.
    pub user_marks: bool,
    /// A user namespace: what the layers and the upper directory have as its ids are the ids that it maps them to.
    pub ids: Option<BorrowedFd<'a>>,
}

/// Mounts an overlay on a directory.
///
/// # Errors
/// [`Error::Unsupported`] where the kernel has no overlayfs or this process may not mount; [`Error::Io`] with what
/// the kernel says.
pub fn mount_overlay(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    let Some(ids) = overlay.ids else {
        return mount_overlay_of(overlay, target);
    };
    let mut held = Vec::new(); // until the overlay has them
    let mut through = |path: &Path| {
        let tree = idmap::mapped(path, ids)?;
        let seen = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
        held.push(tree);
        Ok::<_, Error>(seen)
    };
    let lower = overlay.lower.iter().map(|path| through(path)).collect::<Result<Vec<_>>>()?;
    let upper = match &overlay.upper {
        Some((upper, work)) => Some(in_one_mount(upper, work, &mut through)?),
        None => None,
    };
    // The overlay writes as whoever mounts it: that must be one whom the upper directory's mount maps. Its own directory
    // was made by root, and is seen as that of whom root is mapped to.
    let _as_owner = upper.as_ref().map(|(_, work)| idmap::FileIds::of(work)).transpose()?;
    mount_overlay_of(&Overlay { lower, upper, ids: None, ..overlay.clone() }, target)
}

/// The two of them by one mount: overlayfs moves files from one to the other.
fn in_one_mount(
    upper: &Path,
    work: &Path,
    through: &mut impl FnMut(&Path) -> Result<PathBuf>,
) -> Result<(PathBuf, PathBuf)> {
    match (upper.parent(), upper.file_name(), work.file_name()) {
        (Some(parent), Some(upper), Some(name)) if work.parent() == Some(parent) => {
            let seen = through(parent)?;
            Ok((seen.join(upper), seen.join(name)))
        }
        _ => Err(Error::Invalid {
            field: "work",
            value: work.display().to_string(),
            reason: "expected a directory beside the upper one".to_owned(),
        }),
    }
}

fn mount_overlay_of(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    // Whatever the module's default is: metadata that was copied up alone is no layer's.
    let options: &[_] = if overlay.data.is_empty() { &[] } else { &[("metacopy", "off")] };
    match mount_overlay_with(overlay, target, options) {
        // Before Linux 6.16 contents are found elsewhere only where files' metadata may be copied up alone as well.
        Err(error) if !overlay.data.is_empty() && !overlay.user_marks && may_be_missing(&error) => {
            mount_overlay_with(overlay, target, &[("metacopy", "on"), ("redirect_dir", "on")])
        }
        done => done,
    }
}

/// Whether the kernel refused an option, or the lack of one: not all of them say why.
fn may_be_missing(error: &Error) -> bool {
    match error {
        Error::Unsupported { .. } => true,
        Error::Io { errno, .. } => *errno == Errno::INVAL.raw_os_error(),
        _ => false,
    }
}

fn mount_overlay_with(
    overlay: &Overlay<'_>,
    target: &Path,
    options: &[(&'static str, &'static str)],
) -> Result<()> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| refused(e, target))?;
    let set = |key: &'static str, path: &Path| {
        fsconfig_set_string(context.as_fd(), key, escaped(path).as_slice())
            .map_err(|e| Error::errno("mount overlay", path, e))
    };
    set("source", Path::new("pyctrd"))?;
    set_lower(&context, &overlay.lower)?;
    for path in &overlay.data {
        fsconfig_set_string(context.as_fd(), "datadir+", path.as_path()).map_err(|e| match e {
            Errno::INVAL => Error::Unsupported {
                feature: "an overlay with contents elsewhere".to_owned(),
                needs: "Linux 6.5 or later (datadir+)".to_owned(),
            },
            e => Error::errno("mount overlay", path, e),
        })?;
    }
    if overlay.user_marks {
        fsconfig_set_flag(context.as_fd(), "userxattr").map_err(|e| refused(e, target))?;
    }
    // Whatever the module's default is: an index would bind the upper directory to the lower ones that it had first, and
    // a snapshot's upper directory becomes a lower one.
    fsconfig_set_string(context.as_fd(), "index", "off").map_err(|e| refused(e, target))?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value).map_err(|e| refused(e, target))?;
    }
    let mut attributes = MountAttrFlags::empty();
    if let Some((upper, work)) = &overlay.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
        if overlay.volatile {
            // Linux 5.10; without it writes are only slower.
            let _ = fsconfig_set_flag(context.as_fd(), "volatile");
        }
    } else {
        attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    fsconfig_create(context.as_fd()).map_err(|e| explain(e, &context, target))?;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| Error::errno("mount overlay", target, e))?;
    attach(&mount, target)
}

/// A path as `upperdir` and `workdir` want it: the kernel takes a backslash out of these. `lowerdir+` is read as it is.
fn escaped(path: &Path) -> Vec<u8> {
    let mut escaped = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte == b'\\' {
            escaped.push(byte);
        }
        escaped.push(byte);
    }
    escaped
}

/// `lowerdir+` takes one directory at a time; kernels before 6.5 want them all in one string.
fn set_lower(context: &OwnedFd, lower: &[PathBuf]) -> Result<()> {
    for (position, path) in lower.iter().enumerate() {
        match fsconfig_set_string(context.as_fd(), "lowerdir+", path.as_path()) {
            Ok(()) => {}
            Err(Errno::INVAL) if position == 0 => return set_lower_joined(context, lower),
            Err(e) => return Err(Error::errno("mount overlay", path, e)),
        }
    }
    Ok(())
}

fn set_lower_joined(context: &OwnedFd, lower: &[PathBuf]) -> Result<()> {
    let mut joined = Vec::new();
    for path in lower {
        if !joined.is_empty() {
            joined.push(b':');
        }
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b'\\' | b',') {
                joined.push(b'\\');
            }
            joined.push(byte);
        }
    }
    fsconfig_set_string(context.as_fd(), "lowerdir", joined.as_slice()).map_err(|e| match e {
        Errno::INVAL => Error::Unsupported {
            feature: format!("an overlay of {} layers", lower.len()),
            needs: "Linux 6.5 or later (lowerdir+), or fewer layers".to_owned(),
        },
        e => Error::errno("mount overlay", "lowerdir", e),
    })
}

/// Mounts an EROFS image, which is a plain file, on a directory: by a loop device where the kernel mounts no plain file.
/// What its blocks are on beside it is given in the order in which it numbers these: plain files as well (Linux 5.16).
///
/// # Errors
/// [`Error::Unsupported`] where the kernel has no EROFS, or this process may not mount; [`Error::Io`], also for a file that
/// is no image.
pub fn mount_erofs(image: &Path, target: &Path, devices: &[PathBuf]) -> Result<()> {
    match erofs_from(image, devices) {
        Err(Errno::NOTBLK) => mount_erofs_by_loop(image, target, devices),
        done => attach(&done.map_err(|e| refused_erofs(e, image))?, target),
    }
}

/// As [`mount_erofs`], by a loop device in any case.
///
/// # Errors
/// As [`mount_erofs`].
pub fn mount_erofs_by_loop(image: &Path, target: &Path, devices: &[PathBuf]) -> Result<()> {
    // They are let go of with the mount.
    let device = loops::attach(image)?;
    let others = devices.iter().map(|path| loops::attach(path)).collect::<Result<Vec<_>>>()?;
    let paths: Vec<_> = others.iter().map(loops::Loop::path).collect();
    attach(&erofs_from(&device.path(), &paths).map_err(|e| refused_erofs(e, image))?, target)
}

/// Mounts an EROFS image, which is a plain file, nowhere: its files are seen through the descriptor of its root, and it
/// is gone with the last descriptor.
///
/// # Errors
/// [`Error::Unsupported`] where the kernel has no EROFS or mounts none from this file (Linux 6.12 does, but from none on
/// tmpfs), or this process may not mount; [`Error::Io`], also for a file that is no image.
pub fn open_erofs(image: &Path) -> Result<OwnedFd> {
    erofs_from(image, &[]).map_err(|e| refused_erofs(e, image))
}

fn erofs_from(source: &Path, devices: &[PathBuf]) -> std::result::Result<OwnedFd, Errno> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut held = Vec::new(); // until the kernel has opened them
    for (key, path) in
        std::iter::once(("source", source)).chain(devices.iter().map(|path| ("device", path.as_path())))
    {
        if path.as_os_str().len() > OPTION_MAX_BYTES {
            let opened = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let short = format!("/proc/self/fd/{}", opened.as_raw_fd());
            fsconfig_set_string(context.as_fd(), key, short.as_str())?;
            held.push(opened);
        } else {
            fsconfig_set_string(context.as_fd(), key, path)?;
        }
    }
    fsconfig_set_flag(context.as_fd(), "ro")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn refused_erofs(errno: Errno, image: &Path) -> Error {
    let needs = match errno {
        Errno::NODEV => "the kernel's erofs module",
        Errno::NOSYS => "Linux 5.2 or later (fsopen)",
        // Of a kernel before, and of any for a file on tmpfs, which is not read by pages.
        Errno::NOTBLK => "Linux 6.12 or later, and not on tmpfs (EROFS images in plain files)",
        Errno::PERM => "root rights (CAP_SYS_ADMIN); snapshotter \"native\" needs none",
        e => return Error::errno("mount erofs", image, e),
    };
    Error::Unsupported { feature: "erofs".to_owned(), needs: needs.to_owned() }
}

/// What the kernel wrote to the context's log says more than an errno.
fn explain(errno: Errno, context: &OwnedFd, target: &Path) -> Error {
    let mut log = [0u8; 1024];
    let said = rustix::io::read(context, &mut log)
        .map(|count| String::from_utf8_lossy(&log[..count]).trim().to_owned());
    match (errno, said) {
        (Errno::INVAL | Errno::OPNOTSUPP | Errno::LOOP, Ok(said)) if !said.is_empty() => Error::Unsupported {
            feature: format!("overlay at {}", target.display()),
            needs: format!("the kernel says: {said}"),
        },
        _ => refused(errno, target),
    }
}

fn refused(errno: Errno, target: &Path) -> Error {
    match errno {
        Errno::NODEV => Error::Unsupported {
            feature: "overlayfs".to_owned(),
            needs: "the kernel's overlay module".to_owned(),
        },
        Errno::NOSYS => Error::Unsupported {
            feature: "overlayfs".to_owned(),
            needs: "Linux 5.2 or later (fsopen)".to_owned(),
        },
        Errno::PERM => Error::Unsupported {
            feature: "overlayfs".to_owned(),
            needs: "root rights (CAP_SYS_ADMIN); snapshotter \"native\" needs none".to_owned(),
        },
        e => Error::errno("mount overlay", target, e),
    }
}

/// Makes a directory or file visible at another place; with `ids` as [`Overlay::ids`] has it.
///
/// # Errors
/// [`Error::Unsupported`] where this process may not mount; [`Error::Io`].
pub fn mount_bind(source: &Path, target: &Path, readonly: bool, ids: Option<BorrowedFd<'_>>) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = match ids {
        Some(ids) => idmap::mapped(source, ids)?,
        None => open_tree(CWD, source, flags).map_err(|e| match e {
            Errno::PERM => Error::Unsupported {
                feature: "bind mount".to_owned(),
                needs: "root rights (CAP_SYS_ADMIN)".to_owned(),
            },
            e => Error::errno("mount", source, e),
        })?,
    };
    attach(&tree, target)?;
    if readonly {
        use rustix::mount::{MountFlags, mount_remount};
        mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").map_err(|e| {
            // Half a mount would be writable: better none.
            let _ = kernel_unmount(target, UnmountFlags::DETACH);
            Error::errno("mount read-only", target, e)
        })?;
    }
    Ok(())
}

fn attach(mount: &OwnedFd, target: &Path) -> Result<()> {
    let place = rustix::fs::openat(CWD, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::errno("mount", target, e))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", &place, "", flags).map_err(|e| Error::errno("mount", target, e))?;
    // Another mount namespace that shares this one's must not keep it busy. Where it cannot be set it is private.
    let _ = mount_change(target, MountPropagationFlags::PRIVATE);
    Ok(())
}

/// Takes the uppermost mount at a place away, and keeps it for whoever has the descriptor: the end of an overlay waits until
/// all that its file system has to write is written. Nobody can write by it any more. None where nothing is mounted.
///
/// # Errors
/// [`Error::Conflict`] where somebody has a file of it open for writing, [`Error::Io`].
pub fn retire(target: &Path) -> Result<Option<OwnedFd>> {
    use rustix::mount::{MountFlags, mount_remount};
    match mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"") {
        Ok(()) => {}
        Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
        Err(Errno::BUSY) => {
            return Err(Error::Conflict {
                kind: "mount",
                name: target.display().to_string(),
                state: "written to".to_owned(),
                allowed: "unused".to_owned(),
            });
        }
        Err(e) => return Err(Error::errno("mount read-only", target, e)),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held =
        rustix::fs::openat(CWD, target, flags, Mode::empty()).map_err(|e| Error::errno("open", target, e))?;
    unmount(target, true)?;
    Ok(Some(held))
}

/// Takes the uppermost mount at a place away. What is no mount is no error.
///
/// # Errors
/// [`Error::Conflict`] where it is in use (unless `lazy`), [`Error::Io`].
pub fn unmount(target: &Path, lazy: bool) -> Result<bool> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() } | UnmountFlags::NOFOLLOW;
    match kernel_unmount(target, flags) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(Errno::BUSY) => Err(Error::Conflict {
            kind: "mount",
            name: target.display().to_string(),
            state: "in use".to_owned(),
            allowed: "unused".to_owned(),
        }),
        Err(e) => Err(Error::errno("unmount", target, e)),
    }
}
