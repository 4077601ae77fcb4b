//! Files whose blocks are on other devices.

use std::os::unix::fs::FileExt;
use std::path::Path;

use pyctrd_core::erofs::{BLOCK_BYTES, Kind, Tree, write};
use pyctrd_core::mount::{mount_erofs, mount_erofs_by_loop, unmount};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::kernel::{enter_mount_namespace, try_mount};
use super::{directory, file, image, plain, put};

const BLOCK: usize = 4096;

fn stored(size: u64, device: usize, block: u32) -> Kind {
    Kind::Stored { size, device, block, data: None }
}

fn write_devices(place: &Path) -> Vec<std::path::PathBuf> {
    let first = [vec![b'x'; BLOCK], vec![b'1'; BLOCK + 10], vec![0; BLOCK - 10]].concat();
    let second: Vec<u8> = (0..BLOCK).map(|at| u8::try_from(at % 251).expect("less than 251")).collect();
    let paths = vec![place.join("first"), place.join("second"), place.join("holes")];
    std::fs::write(&paths[0], first).expect("room for a device");
    std::fs::write(&paths[1], second).expect("room for a device");
    let holes = std::fs::File::create(&paths[2]).expect("a file");
    holes.set_len(1 << 30).expect("a file of holes");
    holes.write_all_at(b"middle", 1 << 29).expect("room for a block");
    paths
}

fn tree() -> Tree {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    let devices: Vec<_> = [3, 1, 1 << 18].map(|blocks| tree.add_device(blocks)).into();
    put(&mut tree, root, "inline", file(b"in the image"));
    put(&mut tree, root, "large", file(&vec![b'l'; 3 * BLOCK]));
    put(&mut tree, root, "one", plain(stored(BLOCK_BYTES + 10, devices[0], 1)));
    put(&mut tree, root, "two", plain(stored(BLOCK_BYTES, devices[1], 0)));
    let sparse = Kind::Stored {
        size: 1 << 30,
        device: devices[2],
        block: 0,
        data: Some(vec![(1 << 17, (1 << 17) + 1)]),
    };
    put(&mut tree, root, "sparse", plain(sparse));
    tree
}

fn check(target: &Path) {
    let read = |name| std::fs::read(target.join(name)).expect("a file");
    assert_eq!(read("inline"), b"in the image");
    assert_eq!(read("large"), vec![b'l'; 3 * BLOCK]);
    assert_eq!(read("one"), vec![b'1'; BLOCK + 10]);
    assert_eq!(read("two")[..3], [0, 1, 2]);
    let sparse = std::fs::File::open(target.join("sparse")).expect("a file");
    let mut bytes = [0; 8];
    sparse.read_exact_at(&mut bytes, (1 << 29) - 1).expect("a byte of a hole, and data behind it");
    assert_eq!(&bytes, b"\0middle\0");
    let data = seek(&sparse, SeekFrom::Data(0)).expect("data");
    assert!((1 << 29) - data < 1 << 20, "{data}");
    assert_eq!(seek(&sparse, SeekFrom::Data((1 << 29) + (1 << 20))), Err(Errno::NXIO));
}

#[test]
fn files_are_read_from_the_devices_that_an_image_is_mounted_with() {
    let tree = tree();
    let bytes = image(&tree);
    let mounting = std::thread::spawn(move || {
        let mut plain_tree = Tree::new(directory());
        let root = plain_tree.root();
        put(&mut plain_tree, root, "file", file(b""));
        if !enter_mount_namespace() || try_mount(&image(&plain_tree)).is_none() {
            return;
        }
        let place = tempfile::tempdir().expect("a temporary directory");
        let (path, target) = (place.path().join("image.erofs"), place.path().join("mounted"));
        std::fs::write(&path, bytes).expect("room for an image");
        std::fs::create_dir(&target).expect("a directory");
        let devices = write_devices(place.path());
        mount_erofs(&path, &target, &devices).expect("a mount");
        check(&target);
        assert!(unmount(&target, false).expect("a mount that is not in use"));
        match mount_erofs_by_loop(&path, &target, &devices) {
            Ok(()) => {
                check(&target);
                assert!(unmount(&target, false).expect("a mount that is not in use"));
            }
            Err(error) => eprintln!("skipped: {error}"),
        }
        mount_erofs(&path, &target, &devices[..2]).expect_err("one device is missing");
    });
    mounting.join().expect("a thread that does not panic");
}

#[test]
fn blocks_that_are_on_no_device_are_refused() {
    for (size, device, block) in [(BLOCK_BYTES + 1, 0, 1), (1, 0, 2), (1, 1, 0), (0, 0, 0)] {
        let mut tree = Tree::new(directory());
        let root = tree.root();
        tree.add_device(2);
        put(&mut tree, root, "x", plain(stored(size, device, block)));
        let refused = write(&tree, &mut Vec::new()).expect_err("refused").to_string();
        assert!(refused.ends_with("are not on the device"), "{refused}");
    }
}

#[test]
fn devices_of_too_many_blocks_are_refused() {
    let mut tree = Tree::new(directory());
    tree.add_device(u32::MAX - 1);
    let refused = write(&tree, &mut Vec::new()).expect_err("refused").to_string();
    assert!(refused.contains("more blocks than have a number"), "{refused}");
    let mut tree = Tree::new(directory());
    for _ in 0..20_000 {
        tree.add_device(1);
    }
    let refused = write(&tree, &mut Vec::new()).expect_err("refused").to_string();
    assert!(refused.contains("over 20000 others: needs fewer layers"), "{refused}");
}
