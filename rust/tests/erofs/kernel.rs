//! What the kernel shows of a mounted image is the tree, entry by entry.

use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use pyctrd_core::erofs::{Kind, Node, NodeId, Tree};
use pyctrd_core::error::Error;
use pyctrd_core::mount::{mount_erofs, open_erofs, unmount};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags, openat, readlinkat, statx};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::random::{Random, tree as random_tree};
use super::{directory, file, hole, image, plain, put};

/// A mounted image, gone when it is dropped; none, with a reason on standard error, where this host mounts none.
pub(crate) fn mount(tree: &Tree) -> Option<OwnedFd> {
    try_mount(&image(tree))?.map_err(|e| panic!("{e}")).ok()
}

pub(crate) fn try_mount(image: &[u8]) -> Option<Result<OwnedFd, Error>> {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("image.erofs");
    std::fs::write(&path, image).expect("room for an image");
    match open_erofs(&path) {
        Err(Error::Unsupported { needs, .. }) => {
            eprintln!("skipped: needs {needs}");
            None
        }
        told => Some(told),
    }
}

/// Mounts a tree's image and compares all that is in it.
fn check(tree: &Tree) {
    let Some(root) = mount(tree) else { return };
    let links = links(tree);
    let mut inodes: HashMap<NodeId, u64> = HashMap::new();
    let mut left = vec![(Rc::new(root), b".".to_vec(), tree.root())];
    while let Some((parent, name, id)) = left.pop() {
        let node = tree.node(id);
        let shown = Shown::read(parent.as_fd(), &name);
        let what = format!("{}, {}", name.escape_ascii(), describe(&node.kind));
        assert_eq!(shown.facts, Facts::of(node, links[&id]), "{what}");
        assert_eq!(
            *inodes.entry(id).or_insert(shown.inode),
            shown.inode,
            "{what}: one number for all its names"
        );
        compare_xattrs(&parent, &name, node, &what);
        compare_content(&parent, &name, node, &what);
        if let Kind::Directory(entries) = &node.kind {
            let opened = Rc::new(open(parent.as_fd(), &name, OFlags::DIRECTORY));
            compare_names(tree, &opened, id, entries, &what);
            left.extend(entries.iter().map(|(name, id)| (Rc::clone(&opened), name.clone(), *id)));
        }
    }
    let mut numbers: Vec<_> = inodes.values().collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), inodes.len(), "no two inodes have one number");
}

/// A node for messages: not its content, which is long.
fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Directory(entries) => format!("directory of {}", entries.len()),
        Kind::File { size, data } => format!("file of {size}, {} of them here", data.len()),
        Kind::Symlink(target) => format!("link of {}", target.len()),
        other => format!("{other:?}"),
    }
}

/// What `stat` tells.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    kind: FileType,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, u32),
    links: u32,
    /// A directory's is the file system's business.
    size: Option<u64>,
    device: (u32, u32),
}

impl Facts {
    fn of(node: &Node, links: u32) -> Self {
        let (kind, size, device) = match &node.kind {
            Kind::Directory(_) => (FileType::Directory, None, (0, 0)),
            Kind::File { size, .. } | Kind::Kept { size } | Kind::Stored { size, .. } => {
                (FileType::RegularFile, Some(*size), (0, 0))
            }
            Kind::Symlink(target) => (FileType::Symlink, Some(target.len() as u64), (0, 0)),
            Kind::Fifo => (FileType::Fifo, Some(0), (0, 0)),
            Kind::Socket => (FileType::Socket, Some(0), (0, 0)),
            Kind::Char(major, minor) => (FileType::CharacterDevice, Some(0), (*major, *minor)),
            Kind::Block(major, minor) => (FileType::BlockDevice, Some(0), (*major, *minor)),
        };
        Self { kind, mode: node.mode, owner: (node.uid, node.gid), mtime: node.mtime, links, size, device }
    }
}

struct Shown {
    facts: Facts,
    inode: u64,
}

impl Shown {
    fn read(parent: BorrowedFd, name: &[u8]) -> Self {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let found =
            statx(parent, name, flags, StatxFlags::BASIC_STATS).expect("an entry that can be looked up");
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        let facts = Facts {
            kind,
            mode: u32::from(found.stx_mode) & 0o7777,
            owner: (found.stx_uid, found.stx_gid),
            mtime: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec),
            links: found.stx_nlink,
            size: (kind != FileType::Directory).then_some(found.stx_size),
            device: (found.stx_rdev_major, found.stx_rdev_minor),
        };
        Self { facts, inode: found.stx_ino }
    }
}

/// How many links each node that has a name must have.
fn links(tree: &Tree) -> HashMap<NodeId, u32> {
    let mut links = HashMap::from([(tree.root(), 2)]);
    let mut left = vec![tree.root()];
    while let Some(id) = left.pop() {
        let Kind::Directory(entries) = &tree.node(id).kind else { continue };
        for (_, child) in entries {
            if matches!(tree.node(*child).kind, Kind::Directory(_)) {
                links.insert(*child, 2);
                *links.entry(id).or_insert(0) += 1;
                left.push(*child);
            } else {
                *links.entry(*child).or_insert(0) += 1;
            }
        }
    }
    links
}

fn open(parent: BorrowedFd, name: &[u8], flags: OFlags) -> OwnedFd {
    openat(parent, name, flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .unwrap_or_else(|e| panic!("open {}: {e}", name.escape_ascii()))
}

/// All names come, each once, in the order of their bytes, with their types and inodes, however small the pieces.
fn compare_names(tree: &Tree, opened: &OwnedFd, id: NodeId, entries: &[(Vec<u8>, NodeId)], what: &str) {
    let own = Shown::read(opened.as_fd(), b".").inode;
    let mut wanted: BTreeMap<&[u8], FileType> =
        entries.iter().map(|(name, child)| (name.as_slice(), Facts::of(tree.node(*child), 0).kind)).collect();
    wanted.extend([(&b"."[..], FileType::Directory), (b"..", FileType::Directory)]);
    let mut space = [MaybeUninit::uninit(); 600];
    let mut reader = RawDir::new(opened, &mut space);
    let mut found = Vec::new();
    while let Some(entry) = reader.next() {
        let entry = entry.expect("a directory that can be read");
        let name = entry.file_name().to_bytes();
        assert!(name != b"." || entry.ino() == own, "{what}: . is the directory");
        assert!(
            name != b".." || id != tree.root() || entry.ino() == own,
            "{what}: .. of the root is the root"
        );
        found.push((name.to_vec(), entry.file_type()));
    }
    let wanted: Vec<_> = wanted.into_iter().map(|(name, kind)| (name.to_vec(), kind)).collect();
    assert_eq!(found, wanted, "{what}");
}

fn compare_content(parent: &OwnedFd, name: &[u8], node: &Node, what: &str) {
    match &node.kind {
        Kind::File { size, data } if data.is_empty() => {
            let opened = open(parent.as_fd(), name, OFlags::empty());
            for at in [0, *size / 2, size.saturating_sub(5000)] {
                // No read may go past the end of the largest file.
                let mut bytes = [1; 10_000];
                let length =
                    bytes.len().min(usize::try_from(i64::MAX.cast_unsigned() - at).expect("64 bits"));
                let count =
                    rustix::io::pread(&opened, &mut bytes[..length], at).expect("a hole that can be read");
                assert_eq!(count as u64, (size - at).min(length as u64), "{what}");
                assert!(bytes[..count].iter().all(|&byte| byte == 0), "{what}");
            }
        }
        Kind::File { data, .. } => {
            let opened = std::fs::File::from(open(parent.as_fd(), name, OFlags::empty()));
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut &opened, &mut bytes).expect("a file that can be read");
            assert!(bytes == *data, "{what}: content");
        }
        Kind::Symlink(target) => {
            let found = readlinkat(parent, name, Vec::new()).expect("a link that can be read");
            assert_eq!(found.as_bytes(), target, "{what}");
        }
        _ => {}
    }
}

fn compare_xattrs(parent: &OwnedFd, name: &[u8], node: &Node, what: &str) {
    let path = beneath(parent.as_fd(), name);
    let mut space = vec![0; 65_536];
    let length = rustix::fs::llistxattr(&path, &mut space[..]).expect("attributes that can be listed");
    let mut listed: Vec<_> = space[..length]
        .split_inclusive(|&byte| byte == 0)
        .map(|name| name[..name.len() - 1].to_vec())
        .collect();
    listed.sort_unstable();
    let mut wanted: Vec<_> = node.xattrs.iter().map(|xattr| xattr.0.clone()).collect();
    wanted.sort_unstable();
    assert_eq!(listed, wanted, "{what}");
    let keeps_users = matches!(node.kind, Kind::File { .. } | Kind::Directory(_));
    for (xattr, value) in node.xattrs.iter().filter(|xattr| keeps_users || !xattr.0.starts_with(b"user.")) {
        let length = rustix::fs::lgetxattr(&path, xattr.as_slice(), &mut space[..])
            .unwrap_or_else(|e| panic!("{what}: {}: {e}", xattr.escape_ascii()));
        assert!(space[..length] == *value, "{what}: {}", xattr.escape_ascii());
    }
    for absent in [c"trusted.overlay.absent", c"user.absent", c"security.absent"] {
        assert!(rustix::fs::lgetxattr(&path, absent, &mut space[..]).is_err(), "{what}: {absent:?}");
    }
}

/// A path for calls that take no descriptor.
pub(crate) fn beneath(parent: BorrowedFd, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(std::ffi::OsStr::from_bytes(name))
}

#[test]
fn an_empty_root_is_a_directory_of_two_names() {
    check(&Tree::new(directory()));
}

#[test]
fn random_trees_are_shown_as_they_are() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for round in 0..60 {
        check(&random_tree(&mut random, 1 + round * 10));
    }
}

#[test]
fn targets_of_all_lengths_are_read() {
    let mut tree = Tree::new(directory());
    for length in 1..=4095 {
        let mut link =
            plain(Kind::Symlink(vec![b'a' + u8::try_from(length % 26).expect("a letter"); length]));
        if length % 3 == 0 {
            link.xattrs.push((b"trusted.x".to_vec(), vec![b'x'; length % 100]));
        }
        let root = tree.root();
        put(&mut tree, root, format!("{length}"), link);
    }
    check(&tree);
}

#[test]
fn content_of_all_lengths_around_blocks_is_read() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    for length in (0u32..300).chain(3900..4200).chain(8000..8300).chain([65_535, 65_536, 65_537]) {
        let data: Vec<u8> = (0..length).map(|at| u8::try_from(at * 7 % 251).expect("a byte")).collect();
        put(&mut tree, root, format!("data-{length}"), file(&data));
        put(&mut tree, root, format!("hole-{length}"), hole(length.into()));
    }
    check(&tree);
}

#[test]
fn directories_of_all_sizes_around_blocks_are_read() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    for count in (0..20).chain(140..160).chain(290..320) {
        let parent = put(&mut tree, root, format!("{count}"), directory());
        for number in 0..count {
            // Some before "." and "..".
            let name = format!("{}{number:014}", if number % 2 == 0 { "!" } else { "a" });
            put(&mut tree, parent, name, file(b""));
        }
    }
    check(&tree);
}

#[test]
fn a_hundred_thousand_names_are_in_one_directory() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    for number in (0..100_000).rev() {
        put(&mut tree, root, format!("file-{}", number * 7919 % 100_003), file(b"x"));
    }
    check(&tree);
}

#[test]
fn names_of_any_bytes_are_found() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    for byte in (1..=255).filter(|byte| *byte != b'/') {
        for length in [1, 2, 254, 255] {
            if byte != b'.' || length > 2 {
                put(&mut tree, root, vec![byte; length], file(&[byte]));
            }
        }
    }
    check(&tree);
}

#[test]
fn two_thousand_levels_are_walked() {
    let mut tree = Tree::new(directory());
    let mut parent = tree.root();
    for level in 0..2000 {
        put(&mut tree, parent, "file", file(format!("{level}").as_bytes()));
        parent = put(&mut tree, parent, "directory", directory());
    }
    check(&tree);
}

#[test]
fn seventy_thousand_names_of_one_file_are_counted() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    let id = put(&mut tree, root, "first", file(b"content"));
    for number in 0..70_000 {
        tree.link(root, format!("{number}").into_bytes(), id);
    }
    check(&tree);
}

#[test]
fn the_largest_file_and_the_longest_attributes_are_shown() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    put(&mut tree, root, "largest", hole(i64::MAX.cast_unsigned()));
    let mut node = file(b"content");
    for number in 0..3 {
        node.xattrs.push((format!("user.{}{number}", "n".repeat(249)).into_bytes(), vec![b'v'; 65_535]));
    }
    node.xattrs.push((b"user.last".to_vec(), vec![b'v'; 64_700]));
    put(&mut tree, root, "attributes", node);
    check(&tree);
}

#[test]
fn the_file_system_says_how_many_inodes_it_has() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    put(&mut tree, root, "one", file(b"1"));
    tree.add(file(b"without a name"));
    let Some(mounted) = mount(&tree) else { return };
    let told = rustix::fs::fstatfs(&mounted).expect("a file system");
    assert_eq!(told.f_type.cast_unsigned(), 0xE0F5_E1E2);
    assert_eq!(u64::MAX - told.f_ffree, 2);
}

#[test]
fn what_is_no_image_or_a_damaged_one_is_not_mounted() {
    let good = image(&Tree::new(directory()));
    let mut damaged = good.clone();
    *damaged.last_mut().expect("a byte") ^= 1;
    for (image, errno) in [(vec![0; 8192], Errno::INVAL), (damaged, Errno::BADMSG)] {
        let Some(told) = try_mount(&image) else { return };
        let refused = told.expect_err("no image");
        assert!(
            matches!(refused, Error::Io { errno: told, .. } if told == errno.raw_os_error()),
            "{refused}"
        );
    }
}

/// Leaves the other threads' mount namespace; false, with a reason on standard error, where that is not allowed.
#[allow(unsafe_code, reason = "the call can take descriptors away from other threads")]
pub(crate) fn enter_mount_namespace() -> bool {
    // SAFETY: no descriptor is touched, only this thread's mount namespace and working directory.
    let entered = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    if let Err(e) = entered {
        eprintln!("skipped: needs a mount namespace: {e}");
        return false;
    }
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags).expect("mounts that can be made private");
    true
}

#[test]
fn an_image_is_mounted_on_a_directory_and_taken_away() {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    put(&mut tree, root, "file", file(b"content"));
    let bytes = image(&tree);
    let mounting = std::thread::spawn(move || {
        if !enter_mount_namespace() || try_mount(&bytes).is_none() {
            return;
        }
        let place = tempfile::tempdir().expect("a temporary directory");
        let (image, target) = (place.path().join("image.erofs"), place.path().join("mounted"));
        std::fs::write(&image, bytes).expect("room for an image");
        std::fs::create_dir(&target).expect("a directory");
        mount_erofs(&image, &target, &[]).expect("a mount");
        assert_eq!(std::fs::read(target.join("file")).expect("a file"), b"content");
        let refused = std::fs::write(target.join("new"), b"").expect_err("a file system that is only read");
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(unmount(&target, false).expect("a mount that is not in use"));
        assert!(!target.join("file").exists());
    });
    mounting.join().expect("a thread that does not panic");
}
