//! EROFS images of metadata: a tree of inodes becomes the bytes of a file that the kernel mounts.
//!
//! The images are for overlayfs over objects ("composefs"): names, owners, modes, times, attributes and small files
//! stand in the image; a larger file is a hole of its size there, and overlayfs takes its bytes from an object that the
//! caller's attributes name. A [`Tree`] is built in memory, [`write()`] lays it out and writes it from front to back.
//!
//! Or the blocks of the larger files are on other devices, which are plain files as well: layers' own. Then the image
//! is all that is needed, and what the devices are is said when it is mounted.
//!
//! Format: the kernel's `Documentation/filesystems/erofs.rst` and `fs/erofs/erofs_fs.h`. Only what Linux 5.15 reads is
//! used: blocks of 4 KiB, no compression, holes as chunks; and what 5.16 reads where there are other devices.

/// Where a file's content begins on another device is counted in these.
pub const BLOCK_BYTES: u64 = format::BLOCK as u64;

mod directory;
mod format;
mod node;
mod plan;
mod write;
mod xattr;

pub use node::{Kind, Node, NodeId, Tree};
pub use write::{Written, write, write_with};
