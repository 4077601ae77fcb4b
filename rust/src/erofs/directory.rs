//! Directories' blocks: entries sorted by the bytes of their names, fixed parts in front and names behind.

use super::format::{BLOCK, DIRENT, dirent};
use super::node::{Kind, NodeId, Tree};
use crate::error::{Error, Result};

const NAME_MAX: usize = 255;
/// Bytes of a name that is too long which are told: enough to find it.
const SHOWN: usize = 60;

/// A directory's entries in their order, with `.` and `..` among them: names may be smaller than these.
pub(super) type Listing<'a> = Vec<(&'a [u8], NodeId)>;

/// The entries of a directory; empty where it is none.
pub(super) fn list(tree: &Tree, directory: NodeId, parent: NodeId) -> Listing<'_> {
    let Kind::Directory(entries) = &tree.node(directory).kind else { return Vec::new() };
    let mut listing: Listing = Vec::with_capacity(entries.len() + 2);
    listing.push((b".", directory));
    listing.push((b"..", parent));
    listing.extend(entries.iter().map(|(name, id)| (name.as_slice(), *id)));
    listing.sort_unstable();
    listing
}

/// Refuses names that no directory can have.
pub(super) fn check(listing: &Listing) -> Result<()> {
    for (position, (name, _)) in listing.iter().enumerate() {
        if name.len() > NAME_MAX {
            return Err(Error::Unsupported {
                feature: format!("a name of {} bytes: {}…", name.len(), name[..SHOWN].escape_ascii()),
                needs: format!("at most {NAME_MAX}"),
            });
        }
        let reason = if name.is_empty() {
            "is empty"
        } else if name.iter().any(|byte| matches!(byte, 0 | b'/')) {
            "has a slash or a NUL"
        } else if position > 0 && listing[position - 1].0 == *name {
            "is twice in its directory"
        } else {
            continue;
        };
        return Err(Error::Invalid {
            field: "name",
            value: name.escape_ascii().to_string(),
            reason: reason.to_owned(),
        });
    }
    Ok(())
}

/// Divides a listing: as many entries for each block as fit.
pub(super) fn blocks<'a, 'b>(listing: &'b Listing<'a>) -> impl Iterator<Item = &'b [(&'a [u8], NodeId)]> {
    let mut rest = listing.as_slice();
    std::iter::from_fn(move || {
        let mut used = 0;
        let count = rest.iter().take_while(|(name, _)| {
            used += DIRENT + name.len();
            used <= BLOCK
        });
        let (block, after) = rest.split_at(count.count());
        rest = after;
        (!block.is_empty()).then_some(block)
    })
}

/// Bytes of a directory: whole blocks, and what is used of the last one.
pub(super) fn size(listing: &Listing) -> u64 {
    let (mut whole, mut last) = (0, 0);
    for block in blocks(listing) {
        whole += last.min(1) * BLOCK as u64;
        last = block.iter().map(|(name, _)| (DIRENT + name.len()) as u64).sum();
    }
    whole + last
}

/// Appends a block's entries, without padding.
pub(super) fn encode(
    bytes: &mut Vec<u8>,
    block: &[(&[u8], NodeId)],
    tree: &Tree,
    nid: impl Fn(NodeId) -> u64,
) {
    let mut name_at = block.len() * DIRENT;
    for (name, id) in block {
        // A block ends before 65,536.
        dirent(bytes, nid(*id), u16::try_from(name_at).unwrap_or(0), &tree.node(*id).kind);
        name_at += name.len();
    }
    for (name, _) in block {
        bytes.extend_from_slice(name);
    }
}
