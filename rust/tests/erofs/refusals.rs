//! Trees that are no file system, or not one that EROFS can hold, are refused by name; none makes the writer panic.

use pyctrd_core::erofs::{Kind, Node, NodeId, Tree, write};
use pyctrd_core::error::Error;

use super::random::Random;
use super::{directory, file, hole, plain, put};

/// Why a tree is refused, before anything of it is written.
fn refusal(tree: &Tree) -> String {
    let mut bytes = Vec::new();
    let refused = write(tree, &mut bytes).expect_err("a tree that is refused");
    assert!(matches!(refused, Error::Invalid { .. } | Error::Unsupported { .. }), "{refused:?}");
    assert!(bytes.is_empty(), "{refused}: nothing is written");
    refused.to_string()
}

/// Why a node at `/etc/x` is.
fn refusal_of(node: Node) -> String {
    let mut tree = Tree::new(directory());
    let root = tree.root();
    let parent = put(&mut tree, root, "etc", directory());
    put(&mut tree, parent, "x", node);
    refusal(&tree)
}

fn with_xattrs(xattrs: &[(&str, usize)]) -> Node {
    let xattrs =
        xattrs.iter().map(|(name, length)| (name.as_bytes().to_vec(), vec![b'v'; *length])).collect();
    Node { xattrs, ..file(b"") }
}

#[test]
fn nodes_that_no_file_system_has_are_refused() {
    let none = plain(Kind::Fifo);
    for (node, reason) in [
        (
            Node { mode: 0o100_644, ..file(b"") },
            "invalid mode: /etc/x: 100644: has more than permission bits",
        ),
        (
            Node { mtime: (0, 1_000_000_000), ..none.clone() },
            "invalid mtime: /etc/x: 1000000000: is more than a",
        ),
        (Node { gid: u32::MAX, ..none }, "invalid owner: /etc/x: 4294967295: is nobody's number"),
        (plain(Kind::Symlink(Vec::new())), "invalid target: /etc/x: : is empty"),
        (plain(Kind::Symlink(b"a\0b".to_vec())), r"invalid target: /etc/x: a\x00b: has a NUL"),
        (
            plain(Kind::File { size: 3, data: vec![0; 4] }),
            "invalid size: /etc/x: 3: is not that of the data, 4",
        ),
        (with_xattrs(&[("user.a", 1), ("user.a", 2)]), "invalid xattr: /etc/x: user.a: is given twice"),
        (with_xattrs(&[("user.", 1)]), "invalid xattr: /etc/x: user.: is nothing but a prefix"),
        (with_xattrs(&[("user.\0", 1)]), r"invalid xattr: /etc/x: user.\x00: has a NUL"),
    ] {
        let told = refusal_of(node);
        assert!(told.starts_with(reason), "{told}");
    }
}

#[test]
fn what_erofs_cannot_hold_is_refused() {
    for (node, reason) in [
        (plain(Kind::Symlink(vec![b'a'; 4096])), "/etc/x: a link's target of 4096 bytes: needs at most 4095"),
        (hole(1 << 63), "/etc/x: a file of 9223372036854775808 bytes: needs at most 9223372036854775807"),
        (plain(Kind::Char(4096, 0)), "/etc/x: device 4096:0: needs at most 4095:1048575"),
        (plain(Kind::Block(0, 1_048_576)), "/etc/x: device 0:1048576: needs at most 4095:1048575"),
        (
            with_xattrs(&[("system.nfs4_acl", 1)]),
            "/etc/x: xattr system.nfs4_acl: needs a name in user, trusted",
        ),
        (with_xattrs(&[("plain", 1)]), "/etc/x: xattr plain: needs a name in user, trusted"),
        (with_xattrs(&[("user.a", 65_536)]), "/etc/x: xattr user.a of 65536 bytes: needs at most 65535"),
        (
            with_xattrs(&[("user.a", 65_535), ("user.b", 65_535), ("user.c", 65_535), ("user.d", 65_535)]),
            "/etc/x: xattrs of 262172 bytes: needs at most 262148",
        ),
        (
            with_xattrs(&[(&format!("user.{}", "n".repeat(251)), 0)]),
            "/etc/x: an xattr's name of 256 bytes: needs at most 255",
        ),
    ] {
        let told = refusal_of(node);
        assert!(told.starts_with(&format!("unsupported: {reason}")), "{told}");
    }
}

#[test]
fn names_that_cannot_be_are_refused() {
    for (name, reason) in [
        (&b""[..], "invalid name: /etc: : is empty"),
        (b"a/b", "invalid name: /etc: a/b: has a slash or a NUL"),
        (b"a\0", r"invalid name: /etc: a\x00: has a slash or a NUL"),
        (b".", "invalid name: /etc: .: is twice in its directory"),
        (b"..", "invalid name: /etc: ..: is twice in its directory"),
        (b"twice", "invalid name: /etc: twice: is twice in its directory"),
        (&[b'n'; 256], "unsupported: /etc: a name of 256 bytes: nnn"),
    ] {
        let mut tree = Tree::new(directory());
        let root = tree.root();
        let parent = put(&mut tree, root, "etc", directory());
        put(&mut tree, parent, "twice", file(b""));
        put(&mut tree, parent, name, file(b""));
        let told = refusal(&tree);
        assert!(told.starts_with(reason), "{told}");
    }
}

#[test]
fn what_is_no_tree_is_refused() {
    let mut tree = Tree::new(file(b""));
    assert_eq!(refusal(&tree), "invalid root: /: is no directory");
    *tree.node_mut(tree.root()) = directory();
    let root = tree.root();
    let parent = put(&mut tree, root, "etc", directory());
    let good = tree.clone();

    tree.link(root, b"again".to_vec(), parent);
    assert_eq!(refusal(&tree), "invalid name: /: etc: is a second name of a directory");

    let mut tree = good.clone();
    tree.link(parent, b"loop".to_vec(), root);
    assert_eq!(refusal(&tree), "invalid name: /etc: loop: is a second name of a directory");

    let mut tree = good.clone();
    let leaf = put(&mut tree, root, "leaf", file(b""));
    tree.link(leaf, b"x".to_vec(), parent);
    assert_eq!(refusal(&tree), "invalid name: x: is in no directory");

    let mut other = good.clone();
    let stranger = other.add(file(b""));
    let mut tree = good;
    tree.link(root, b"x".to_vec(), stranger);
    assert_eq!(refusal(&tree), "invalid name: /: x: is another tree's node");
}

#[test]
fn a_writer_that_fails_is_told_of() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::Error::from_raw_os_error(28))
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let refused = write(&Tree::new(directory()), &mut Full).expect_err("a full disk");
    assert!(matches!(refused, Error::Io { errno: 28, .. }), "{refused}");
}

/// Trees of anything, most of which are none.
fn nonsense(random: &mut Random) -> Tree {
    let mut tree = Tree::new(nonsense_node(random, &[]));
    let mut ids = vec![tree.root()];
    for _ in 0..random.below(12) {
        let node = nonsense_node(random, &ids);
        ids.push(tree.add(node));
        let name = nonsense_name(random);
        let (parent, child) = (random.pick(&ids), random.pick(&ids));
        tree.link(parent, name, child);
    }
    tree
}

fn nonsense_node(random: &mut Random, ids: &[NodeId]) -> Node {
    let strange = random.below(4) == 0;
    let number = |random: &mut Random| if strange { random.pick(&[0, 4096, 1 << 20, u32::MAX]) } else { 1 };
    let length = random.pick(&[0, 1, 100, 4032, 4095, 4096, 9000]);
    let kind = match random.below(6) {
        0..=2 => {
            let entries = ids.iter().take(random.below(3)).map(|id| (nonsense_name(random), *id)).collect();
            Kind::Directory(entries)
        }
        3 => {
            let size = if strange { random.pick(&[0, 1, u64::MAX]) } else { length as u64 };
            Kind::File { size, data: random.bytes(length) }
        }
        4 => Kind::Symlink(random.bytes(length)),
        _ => Kind::Char(number(random), number(random)),
    };
    let mut node = plain(kind);
    node.uid = number(random);
    if strange {
        node.mode = number(random);
        node.mtime = (random.pick(&[i64::MIN, i64::MAX]), number(random));
        let name = [b"user.".to_vec(), nonsense_name(random)].concat();
        let length = random.pick(&[0, 5, 65_535, 65_536]);
        node.xattrs = vec![(name, random.bytes(length)); random.below(3)];
    }
    node
}

fn nonsense_name(random: &mut Random) -> Vec<u8> {
    let length = random.pick(&[0, 1, 1, 2, 2, 2, 3, 255, 256, 300]);
    let mut name = random.bytes(length);
    if random.below(3) > 0 {
        for byte in &mut name {
            *byte = b'a' + *byte % 26;
        }
    }
    name
}

#[test]
fn nothing_makes_the_writer_panic() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut written, mut refused) = (0, 0);
    for _ in 0..20_000 {
        match write(&nonsense(&mut random), &mut std::io::sink()) {
            Ok(_) => written += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(written > 1000 && refused > 1000, "{written} written, {refused} refused");
}
