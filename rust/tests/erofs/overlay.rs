//! What the images are for: overlayfs shows their metadata with the bytes of objects.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pyctrd_core::erofs::{Kind, Node, Tree};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

use super::kernel::{beneath, mount};
use super::{directory, file, hole, plain, put};

/// An overlay, the uppermost directory first, read-only without one to write to; none, with a reason on standard error,
/// where there can be none.
fn overlay(lower: &[&OwnedFd], objects: &Path, written: Option<&Path>) -> Option<OwnedFd> {
    match try_overlay(lower, objects, written) {
        Ok(root) => Some(root),
        Err(e @ (Errno::NODEV | Errno::PERM)) => {
            eprintln!("skipped: needs overlayfs and the right to mount it: {e}");
            None
        }
        Err(e) if kernel() < (6, 16) => {
            eprintln!(
                "skipped: needs Linux 6.16 (data directories over mounts that are attached nowhere): {e}"
            );
            None
        }
        Err(e) => panic!("mount overlay: {e}"),
    }
}

/// The first two numbers of the kernel's version.
fn kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_str().expect("text");
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn try_overlay(lower: &[&OwnedFd], objects: &Path, written: Option<&Path>) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, path: &Path| fsconfig_set_string(context.as_fd(), key, path);
    for directory in lower {
        set("lowerdir+", &beneath(directory.as_fd(), b""))?;
    }
    set("datadir+", objects)?;
    // Linux 6.16 follows redirections into data directories unasked; asked for, they would also be made above.
    if let Some(written) = written {
        set("upperdir", &written.join("upper"))?;
        set("workdir", &written.join("work"))?;
    } else {
        set("metacopy", Path::new("on"))?;
        set("redirect_dir", Path::new("on"))?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// A file whose content is an object's.
fn redirected(size: u64, object: &str) -> Node {
    let xattrs = vec![
        (b"trusted.overlay.metacopy".to_vec(), Vec::new()),
        (b"trusted.overlay.redirect".to_vec(), object.as_bytes().to_vec()),
    ];
    Node { mode: 0o4640, uid: 1000, gid: 70_000, mtime: (-5, 7), xattrs, ..hole(size) }
}

#[test]
fn a_file_has_an_objects_bytes_and_its_own_metadata() {
    let objects = tempfile::tempdir().expect("a temporary directory");
    let content: Vec<u8> = (0..300_000_u32).map(|at| at.to_le_bytes()[at as usize % 4]).collect();
    std::fs::create_dir(objects.path().join("ab")).expect("a directory");
    std::fs::write(objects.path().join("ab/cdef"), &content).expect("an object");

    let mut tree = Tree::new(directory());
    let root = tree.root();
    let parent = put(&mut tree, root, "usr", directory());
    let id = put(&mut tree, parent, "first", redirected(content.len() as u64, "/ab/cdef"));
    tree.link(parent, b"second".to_vec(), id);
    put(&mut tree, parent, "other", Node { mode: 0o600, ..redirected(content.len() as u64, "/ab/cdef") });
    put(&mut tree, root, "lost", redirected(10, "/ab/no-such-object"));
    put(&mut tree, root, "small", file(b"content of its own"));
    let Some(metadata) = mount(&tree) else { return };
    let Some(root) = overlay(&[&metadata], objects.path(), None) else { return };

    let at = |path: &str| beneath(root.as_fd(), path.as_bytes());
    for name in ["usr/first", "usr/second", "usr/other"] {
        assert!(std::fs::read(at(name)).expect("a file") == content, "{name}");
    }
    let told = std::fs::metadata(at("usr/first")).expect("a file");
    assert_eq!((told.mode(), told.uid(), told.gid()), (0o104_640, 1000, 70_000));
    assert_eq!((told.mtime(), told.mtime_nsec()), (-5, 7));
    assert_eq!((told.len(), told.nlink()), (content.len() as u64, 2));
    assert_eq!(told.ino(), std::fs::metadata(at("usr/second")).expect("a file").ino());
    assert_eq!(std::fs::metadata(at("usr/other")).expect("a file").mode(), 0o100_600);
    assert_eq!(std::fs::read(at("small")).expect("a file"), b"content of its own");
    std::fs::File::open(at("lost")).expect_err("a file without its object");
    let seen: Vec<_> =
        std::fs::read_dir(at("usr")).expect("a directory").map(|entry| entry.is_ok()).collect();
    assert_eq!(seen, [true; 3], "objects are not seen");
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_a_lower_image_has() {
    let objects = tempfile::tempdir().expect("a temporary directory");
    let mut lower = Tree::new(directory());
    let root = lower.root();
    put(&mut lower, root, "gone", file(b"below"));
    let replaced = put(&mut lower, root, "replaced", directory());
    put(&mut lower, replaced, "below", file(b"below"));
    let merged = put(&mut lower, root, "merged", directory());
    put(&mut lower, merged, "below", file(b"below"));

    let mut upper = Tree::new(directory());
    let root = upper.root();
    put(&mut upper, root, "gone", plain(Kind::Char(0, 0)));
    let opaque = vec![(b"trusted.overlay.opaque".to_vec(), b"y".to_vec())];
    let replaced = put(&mut upper, root, "replaced", Node { xattrs: opaque, ..directory() });
    put(&mut upper, replaced, "above", file(b"above"));
    let merged = put(&mut upper, root, "merged", directory());
    put(&mut upper, merged, "above", file(b"above"));

    let (Some(lower), Some(upper)) = (mount(&lower), mount(&upper)) else { return };
    let Some(root) = overlay(&[&upper, &lower], objects.path(), None) else { return };
    let names = |path: &str| {
        let entries = std::fs::read_dir(beneath(root.as_fd(), path.as_bytes())).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    };
    assert_eq!(names("."), ["merged", "replaced"]);
    assert_eq!(names("replaced"), ["above"]);
    assert_eq!(names("merged"), ["above", "below"]);
    let mut content = String::new();
    let path = beneath(root.as_fd(), b"merged/below");
    std::fs::File::open(path).expect("a file").read_to_string(&mut content).expect("text");
    assert_eq!(content, "below");
}

#[test]
fn a_file_that_is_copied_up_keeps_its_inode_number_in_the_next_mount() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for name in ["upper", "work", "objects"] {
        std::fs::create_dir(place.path().join(name)).expect("a directory");
    }
    let mut tree = Tree::new(directory());
    let root = tree.root();
    put(&mut tree, root, "file", file(b"content"));
    tree.set_uuid(*b"0123456789abcdef");
    let numbers: Vec<_> = (0..2)
        .map_while(|round| {
            let metadata = mount(&tree)?;
            let root = overlay(&[&metadata], &place.path().join("objects"), Some(place.path()))?;
            let path = beneath(root.as_fd(), b"file");
            let number = std::fs::metadata(&path).expect("a file").ino();
            if round == 0 {
                std::fs::write(&path, b"changed").expect("a file that is copied up");
            }
            Some(number)
        })
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1]), "{numbers:?}");
}
