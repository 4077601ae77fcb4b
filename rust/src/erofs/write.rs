//! The image's bytes, from front to back: superblock, inodes, blocks.

use std::borrow::Cow;
use std::io::Write;

use super::directory;
use super::format::{self, BLOCK, HOLE, Layout, Superblock, chunks, device, file_type, fine_chunks};
use super::node::{Kind, NodeId, Tree};
use super::plan::{Inode, Plan};
use super::xattr;
use crate::error::{Error, Result};

/// Bytes that are collected for one write. The first block is complete before any of it is written, for the checksum.
const PIECE: usize = 256 << 10;

/// What an image came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Its size: a multiple of 4096.
    pub bytes: u64,
    /// Nodes that have a name, and the root.
    pub inodes: u64,
}

/// Writes a tree as an image, from front to back. The same names, nodes and UUID always give the same bytes.
///
/// # Errors
/// [`Error::Invalid`] for a tree that no file system could be (a name twice in a directory, a directory with two names),
/// [`Error::Unsupported`] for what EROFS cannot hold (a name of more than 255 bytes, attributes of more than 256 KiB),
/// both with nothing written; [`Error::Io`].
pub fn write<W: Write>(tree: &Tree, out: &mut W) -> Result<Written> {
    let missing = |_| Err(Error::NotFound { kind: "content", name: "of a kept file".to_owned() });
    write_with(tree, out, missing)
}

/// As [`write()`]; the content of each [`Kind::Kept`] file is asked for when its place has come, so that a tree needs no
/// memory for contents: once, or twice where it has whole blocks and a rest.
///
/// # Errors
/// As [`write()`]; what `contents` gives; [`Error::Invalid`] where that is not as long as the node says.
pub fn write_with<W: Write>(
    tree: &Tree,
    out: &mut W,
    mut contents: impl FnMut(NodeId) -> Result<Vec<u8>>,
) -> Result<Written> {
    let plan = Plan::new(tree)?;
    let first = plan.end.div_ceil(BLOCK as u64);
    let blocks = first + plan.blocks;
    let superblock = Superblock {
        inodes: plan.inodes.len() as u64,
        // The last number means "none".
        blocks: u32::try_from(blocks).ok().filter(|blocks| *blocks < u32::MAX).ok_or_else(|| {
            Error::Unsupported {
                feature: format!("an image of {blocks} blocks"),
                needs: format!("at most {}", u32::MAX - 1),
            }
        })?,
        epoch: plan.epoch,
        chunks: plan.chunks,
        uuid: tree.uuid(),
        devices: tree.devices(),
    };
    let starts = device_starts(superblock.blocks, tree.devices())?;
    let mut image = Image { out, piece: superblock.encode(), written: 0 };
    for (serial, inode) in (1..).zip(&plan.inodes) {
        image.pad_to(inode.at)?;
        put_inode(&mut image.piece, tree, &plan, inode, (serial, first, &starts), &mut contents)?;
        image.flush_if_full()?;
    }
    image.pad_to(first * BLOCK as u64)?;
    for inode in &plan.inodes {
        put_blocks(&mut image, tree, &plan, inode, &mut contents)?;
    }
    image.flush()?;
    Ok(Written { bytes: image.written, inodes: superblock.inodes })
}

/// The number that each other device's first block has, if they are counted on behind the image's own.
fn device_starts(blocks: u32, devices: &[u32]) -> Result<Vec<u32>> {
    let mut starts = Vec::with_capacity(devices.len());
    let mut next = blocks;
    for &count in devices {
        starts.push(next);
        next = next.checked_add(count).filter(|end| *end < u32::MAX).ok_or_else(|| Error::Unsupported {
            feature: "an image of more blocks than have a number".to_owned(),
            needs: format!("at most {} of 4 KiB", u32::MAX - 1),
        })?;
    }
    Ok(starts)
}

/// Appends an inode, its attributes, and the piece of content that stands behind it.
fn put_inode(
    bytes: &mut Vec<u8>,
    tree: &Tree,
    plan: &Plan,
    inode: &Inode,
    (serial, first, starts): (u32, u64, &[u32]),
    contents: &mut dyn FnMut(NodeId) -> Result<Vec<u8>>,
) -> Result<()> {
    let node = tree.node(inode.node);
    let union = match (&node.kind, inode.layout) {
        (Kind::Char(major, minor) | Kind::Block(major, minor), _) => device(*major, *minor).unwrap_or(0),
        (Kind::Stored { data: Some(_), .. }, _) => fine_chunks(inode.size).0,
        (Kind::Stored { device, block, .. }, _) => starts[*device] + block,
        (_, Layout::Chunks) => chunks(inode.size).0,
        _ if has_blocks(inode) => u32::try_from(first + inode.block).unwrap_or(u32::MAX),
        _ => 0,
    };
    let encoded = format::Inode {
        compact: inode.compact,
        layout: inode.layout,
        xattr_units: xattr::units(inode.xattrs),
        mode: file_type(&node.kind) | u16::try_from(node.mode & 0o7777).unwrap_or(0),
        links: inode.links,
        size: inode.size,
        union,
        serial,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
    };
    encoded.encode(bytes);
    xattr::encode(bytes, node)?;
    match (&node.kind, inode.layout) {
        (Kind::Stored { device, block, data: Some(data), .. }, _) => {
            put_chunks(bytes, inode.size, starts[*device] + block, data);
        }
        (_, Layout::Chunks) => (0..chunks(inode.size).1).for_each(|_| bytes.extend_from_slice(&HOLE)),
        (Kind::Directory(_), Layout::Inline) => {
            let listing = directory::list(tree, inode.node, inode.parent);
            if let Some(last) = directory::blocks(&listing).last() {
                directory::encode(bytes, last, tree, |id: NodeId| plan.nid(id));
            }
        }
        (Kind::File { .. } | Kind::Kept { .. } | Kind::Symlink(_), Layout::Inline) => {
            let content = content(tree, inode.node, contents)?;
            bytes.extend_from_slice(&content[content.len() / BLOCK * BLOCK..]);
        }
        _ => {}
    }
    Ok(())
}

/// Appends the addresses of a file's chunks, which follow each other on its device; those without data have none.
fn put_chunks(bytes: &mut Vec<u8>, size: u64, first: u32, data: &[(u64, u64)]) {
    let (bits, count) = fine_chunks(size);
    let mut ranges = data.iter().peekable();
    for chunk in 0..count {
        let (start, end) = (chunk << bits, (chunk + 1) << bits);
        while ranges.next_if(|range| range.1 <= start).is_some() {}
        let has_data = ranges.peek().is_some_and(|range| range.0 < end);
        // The last block of the device has such a number, so this one fits.
        let address = u32::try_from(start).unwrap_or(u32::MAX).saturating_add(first);
        bytes.extend_from_slice(&if has_data { address.to_le_bytes() } else { HOLE });
    }
}

/// Writes an inode's content as far as it is in blocks.
fn put_blocks<W: Write>(
    image: &mut Image<W>,
    tree: &Tree,
    plan: &Plan,
    inode: &Inode,
    contents: &mut dyn FnMut(NodeId) -> Result<Vec<u8>>,
) -> Result<()> {
    let node = tree.node(inode.node);
    if !has_blocks(inode) {
        return Ok(());
    }
    let inline = usize::from(inode.layout == Layout::Inline);
    match &node.kind {
        Kind::Directory(_) => {
            let listing = directory::list(tree, inode.node, inode.parent);
            let count = directory::blocks(&listing).count() - inline;
            for block in directory::blocks(&listing).take(count) {
                directory::encode(&mut image.piece, block, tree, |id: NodeId| plan.nid(id));
                image.end_block()?;
            }
        }
        Kind::File { .. } | Kind::Kept { .. } | Kind::Symlink(_) => {
            let content = content(tree, inode.node, contents)?;
            let count = content.len().div_ceil(BLOCK) - inline;
            for block in content.chunks(BLOCK).take(count) {
                image.piece.extend_from_slice(block);
                image.end_block()?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// What stands in the image of a file or link.
fn content<'t>(
    tree: &'t Tree,
    id: NodeId,
    contents: &mut dyn FnMut(NodeId) -> Result<Vec<u8>>,
) -> Result<Cow<'t, [u8]>> {
    match &tree.node(id).kind {
        Kind::File { data: content, .. } | Kind::Symlink(content) => Ok(Cow::Borrowed(content)),
        Kind::Kept { size } => {
            let content = contents(id)?;
            if content.len() as u64 == *size {
                return Ok(Cow::Owned(content));
            }
            let reason = format!("is not that of its content, {}", content.len());
            Err(Error::Invalid { field: "size", value: size.to_string(), reason })
        }
        _ => Ok(Cow::Borrowed(&[])),
    }
}

fn has_blocks(inode: &Inode) -> bool {
    match inode.layout {
        Layout::Plain => inode.size > 0,
        Layout::Inline => inode.size >= BLOCK as u64,
        Layout::Chunks => false,
    }
}

/// What is written, and how far.
struct Image<'a, W> {
    out: &'a mut W,
    piece: Vec<u8>,
    written: u64,
}

impl<W: Write> Image<'_, W> {
    fn pad_to(&mut self, at: u64) -> Result<()> {
        let length = at.saturating_sub(self.written);
        debug_assert!(length >= self.piece.len() as u64, "the plan leaves room for all that comes before");
        self.piece.resize(usize::try_from(length).unwrap_or(self.piece.len()), 0);
        self.flush_if_full()
    }

    fn end_block(&mut self) -> Result<()> {
        let end = (self.written + self.piece.len() as u64).next_multiple_of(BLOCK as u64);
        self.pad_to(end)
    }

    fn flush_if_full(&mut self) -> Result<()> {
        if self.piece.len() < PIECE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        if self.written == 0 {
            format::seal(&mut self.piece);
        }
        self.out.write_all(&self.piece).map_err(|e| Error::io("write", "image.erofs", &e))?;
        self.written += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}
