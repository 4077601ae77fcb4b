//! EROFS images, looked at by others than their writer: the kernel, and a reader that knows nothing of the writer's plan.
//! What needs a mount says why it is skipped where there can be none.

mod devices;
mod kept;
mod kernel;
mod overlay;
mod random;
mod reader;
mod refusals;

use pyctrd_core::erofs::{Kind, Node, NodeId, Tree, write};

/// A node with nothing special about it.
fn plain(kind: Kind) -> Node {
    Node { kind, mode: 0o755, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: Vec::new() }
}

fn directory() -> Node {
    plain(Kind::Directory(Vec::new()))
}

fn file(data: &[u8]) -> Node {
    plain(Kind::File { size: data.len() as u64, data: data.to_vec() })
}

fn hole(size: u64) -> Node {
    plain(Kind::File { size, data: Vec::new() })
}

/// Adds a node under a name.
fn put(tree: &mut Tree, parent: NodeId, name: impl AsRef<[u8]>, node: Node) -> NodeId {
    let id = tree.add(node);
    tree.link(parent, name.as_ref().to_vec(), id);
    id
}

fn image(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = write(tree, &mut bytes).expect("a tree that can be written");
    assert_eq!(written.bytes, bytes.len() as u64);
    bytes
}
