//! The bytes of superblock, inodes and directory entries; all numbers are little-endian.

use super::node::Kind;

/// Linux before 6.4 mounts no image whose blocks are not its pages, so this is what most machines have.
pub(super) const BLOCK: usize = 4096;
const BLOCK_BITS: u8 = 12;
/// An inode's number is its place in these.
pub(super) const SLOT: u64 = 32;
pub(super) const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK: usize = 128;
/// Bytes of a device's slot; the table of these is behind the superblock.
const DEVICE: usize = 128;
const DEVICES_AT: usize = SUPERBLOCK_AT + SUPERBLOCK;
/// The root's number has 16 bits, and is that of the slot behind the devices.
const DEVICES_MAX: usize = (u16::MAX as usize * COMPACT - DEVICES_AT) / DEVICE;
const MAGIC: u32 = 0xE0F5_E1E2;
const CHECKSUM_AT: usize = SUPERBLOCK_AT + 4;

/// The superblock has a checksum.
const COMPAT_CHECKSUM: u32 = 1;
/// The times in inodes are those of the last change of content.
const COMPAT_MTIME: u32 = 2;
/// Attributes can be ruled out without reading them (Linux 6.6).
const COMPAT_XATTR_FILTER: u32 = 4;
/// Some files are chunks (Linux 5.15).
const INCOMPAT_CHUNKS: u32 = 4;
/// Some files' blocks are on other devices (Linux 5.16).
const INCOMPAT_DEVICES: u32 = 8;

pub(super) const COMPACT: usize = 32;
pub(super) const EXTENDED: usize = 64;
pub(super) const DIRENT: usize = 12;
/// A chunk's address where it has none.
pub(super) const HOLE: [u8; 4] = [0xFF; 4];
/// The largest chunk is a block shifted by this.
const CHUNK_BITS_MAX: u32 = 31;

const FINE_CHUNKS_MAX: u64 = 1 << 14;

const MAJOR_MAX: u32 = 0xFFF;
const MINOR_MAX: u32 = 0xF_FFFF;

/// How an inode's content is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// All in blocks.
    Plain = 0,
    /// Whole blocks, and the rest behind the inode.
    Inline = 2,
    /// A list of chunks' addresses behind the inode.
    Chunks = 4,
}

/// Facts of the whole image.
#[derive(Debug, Clone, Default)]
pub(super) struct Superblock<'a> {
    pub(super) inodes: u64,
    pub(super) blocks: u32,
    /// The time of all inodes that are compact.
    pub(super) epoch: (i64, u32),
    pub(super) chunks: bool,
    pub(super) uuid: [u8; 16],
    /// Blocks of each other device. Behind the image's own, all blocks are numbered on through these.
    pub(super) devices: &'a [u32],
}

impl Superblock<'_> {
    /// The image's beginning up to the first inode; the checksum comes when the block is complete.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK_AT];
        put(&mut bytes, &MAGIC.to_le_bytes());
        put(&mut bytes, &[0; 4]);
        put(&mut bytes, &(COMPAT_CHECKSUM | COMPAT_MTIME | COMPAT_XATTR_FILTER).to_le_bytes());
        put(&mut bytes, &[BLOCK_BITS, 0]);
        let root = first_inode_at(self.devices.len()) / SLOT;
        put(&mut bytes, &u16::try_from(root).unwrap_or(u16::MAX).to_le_bytes());
        put(&mut bytes, &self.inodes.to_le_bytes());
        put(&mut bytes, &self.epoch.0.to_le_bytes());
        put(&mut bytes, &self.epoch.1.to_le_bytes());
        put(&mut bytes, &self.blocks.to_le_bytes());
        put(&mut bytes, &[0; 8]); // inodes' and shared attributes' numbers count from block 0
        put(&mut bytes, &self.uuid);
        put(&mut bytes, &[0; 16]); // no name
        let chunks = if self.chunks { INCOMPAT_CHUNKS } else { 0 };
        let devices = if self.devices.is_empty() { 0 } else { INCOMPAT_DEVICES };
        put(&mut bytes, &(chunks | devices).to_le_bytes());
        put(&mut bytes, &[0; 2]); // nothing is compressed
        if !self.devices.is_empty() {
            put(&mut bytes, &u16::try_from(self.devices.len()).unwrap_or(u16::MAX).to_le_bytes());
            put(&mut bytes, &u16::try_from(DEVICES_AT / DEVICE).unwrap_or(u16::MAX).to_le_bytes());
        }
        bytes.resize(DEVICES_AT, 0);
        let mut first = self.blocks;
        for &blocks in self.devices {
            let end = bytes.len() + DEVICE;
            put(&mut bytes, &[0; 64]); // no name: whoever mounts it says where it is
            put(&mut bytes, &blocks.to_le_bytes());
            put(&mut bytes, &first.to_le_bytes());
            bytes.resize(end, 0);
            first = first.saturating_add(blocks);
        }
        bytes
    }
}

/// Where inodes begin, the root's first.
pub(super) fn first_inode_at(devices: usize) -> u64 {
    (DEVICES_AT + devices.min(DEVICES_MAX) * DEVICE) as u64
}

/// Whether an image can have so many other devices.
pub(super) fn devices_fit(devices: usize) -> bool {
    devices <= DEVICES_MAX
}

/// Puts the checksum into the image's first block: of all from the superblock on, the field itself being zero.
pub(super) fn seal(block: &mut [u8]) {
    let sum = crc32c(&block[SUPERBLOCK_AT..BLOCK]);
    block[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
}

/// An inode's own fields.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inode {
    pub(super) compact: bool,
    pub(super) layout: Layout,
    pub(super) xattr_units: u16,
    /// With the type.
    pub(super) mode: u16,
    pub(super) links: u32,
    pub(super) size: u64,
    /// First block, device or form of chunks.
    pub(super) union: u32,
    /// Counted from 1: what `stat` shows where inode numbers have 32 bits.
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
}

impl Inode {
    /// Appends it. A compact one's fields must fit.
    #[expect(clippy::cast_possible_truncation, reason = "`compact` says that they fit")]
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        let format = (self.layout as u16) << 1 | u16::from(!self.compact);
        put(bytes, &format.to_le_bytes());
        put(bytes, &self.xattr_units.to_le_bytes());
        put(bytes, &self.mode.to_le_bytes());
        if self.compact {
            put(bytes, &(self.links as u16).to_le_bytes());
            put(bytes, &(self.size as u32).to_le_bytes());
            put(bytes, &[0; 4]); // seconds after the epoch
            put(bytes, &self.union.to_le_bytes());
            put(bytes, &self.serial.to_le_bytes());
            put(bytes, &(self.uid as u16).to_le_bytes());
            put(bytes, &(self.gid as u16).to_le_bytes());
            put(bytes, &[0; 4]);
        } else {
            put(bytes, &[0; 2]);
            put(bytes, &self.size.to_le_bytes());
            put(bytes, &self.union.to_le_bytes());
            put(bytes, &self.serial.to_le_bytes());
            put(bytes, &self.uid.to_le_bytes());
            put(bytes, &self.gid.to_le_bytes());
            put(bytes, &self.mtime.0.to_le_bytes());
            put(bytes, &self.mtime.1.to_le_bytes());
            put(bytes, &self.links.to_le_bytes());
            put(bytes, &[0; 16]);
        }
    }
}

/// One name's fixed part.
pub(super) fn dirent(bytes: &mut Vec<u8>, nid: u64, name_at: u16, kind: &Kind) {
    put(bytes, &nid.to_le_bytes());
    put(bytes, &name_at.to_le_bytes());
    put(bytes, &[entry_type(kind), 0]);
}

/// How large a hole's chunks are, as a shift of blocks, and how many there are.
pub(super) fn chunks(size: u64) -> (u32, u64) {
    let blocks = size.div_ceil(BLOCK as u64);
    let bits = blocks.next_power_of_two().trailing_zeros().min(CHUNK_BITS_MAX);
    (bits, blocks.div_ceil(1 << bits))
}

/// How large the chunks of a file with holes are, as a shift of blocks, and how many there are: so many that a hole is found
/// where one is, and no more than take 64 KiB.
pub(super) fn fine_chunks(size: u64) -> (u32, u64) {
    let blocks = size.div_ceil(BLOCK as u64);
    let bits = blocks.div_ceil(FINE_CHUNKS_MAX).next_power_of_two().trailing_zeros();
    (bits, blocks.div_ceil(1 << bits))
}

/// A device's number as the kernel writes it on disks; none where it has no room for it.
pub(super) fn device(major: u32, minor: u32) -> Option<u32> {
    (major <= MAJOR_MAX && minor <= MINOR_MAX).then_some(minor & 0xFF | major << 8 | (minor & !0xFF) << 12)
}

pub(super) fn file_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => 0o040_000,
        Kind::File { .. } | Kind::Kept { .. } | Kind::Stored { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
        Kind::Char(..) => 0o020_000,
        Kind::Block(..) => 0o060_000,
    }
}

fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } | Kind::Kept { .. } | Kind::Stored { .. } => 1,
        Kind::Directory(_) => 2,
        Kind::Char(..) => 3,
        Kind::Block(..) => 4,
        Kind::Fifo => 5,
        Kind::Socket => 6,
        Kind::Symlink(_) => 7,
    }
}

fn put(bytes: &mut Vec<u8>, field: &[u8]) {
    bytes.extend_from_slice(field);
}

/// CRC-32C as the kernel computes it: from all ones, and not inverted at the end. Three KiB an image: a table is not
/// worth its lines.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |mut sum, &byte| {
        sum ^= u32::from(byte);
        for _ in 0..8 {
            sum = sum >> 1 ^ if sum & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_kernels() {
        // RFC 3720, B.4, and the catalogue's check value; both are inverted at the end, the kernel's is not.
        assert_eq!(!crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_superblock_stands_where_the_kernel_reads_it() {
        let facts = Superblock {
            inodes: 7,
            blocks: 9,
            epoch: (-2, 5),
            chunks: true,
            uuid: *b"0123456789abcdef",
            devices: &[],
        };
        let mut block = facts.encode();
        assert_eq!(block.len() as u64, first_inode_at(0));
        assert_eq!(block[1024..1040], *b"\xe2\xe1\xf5\xe0\0\0\0\0\x07\0\0\0\x0c\0\x24\0");
        assert_eq!(block[1040..1048], 7u64.to_le_bytes());
        assert_eq!(block[1048..1056], (-2i64).to_le_bytes());
        assert_eq!(block[1056..1064], *b"\x05\0\0\0\x09\0\0\0");
        assert_eq!(block[1072..1088], *b"0123456789abcdef");
        assert_eq!(block[1104..1108], 4u32.to_le_bytes());
        block.resize(BLOCK, 0);
        seal(&mut block);
        assert_ne!(block[1028..1032], [0; 4]);
    }

    #[test]
    fn devices_stand_behind_the_superblock() {
        let facts = Superblock { blocks: 9, devices: &[3, 5], ..Superblock::default() };
        let block = facts.encode();
        assert_eq!(block.len() as u64, first_inode_at(2));
        assert_eq!(block[1038..1040], 44u16.to_le_bytes(), "the root is behind both");
        assert_eq!(block[1104..1108], 8u32.to_le_bytes());
        assert_eq!(block[1110..1114], *b"\x02\0\x09\0");
        assert_eq!(block[1152 + 64..1152 + 72], *b"\x03\0\0\0\x09\0\0\0");
        assert_eq!(block[1280 + 64..1280 + 72], *b"\x05\0\0\0\x0c\0\0\0");
        assert!(devices_fit(16_000) && !devices_fit(17_000));
    }

    #[test]
    fn both_forms_of_an_inode_have_their_length() {
        let mut inode = Inode {
            compact: true,
            layout: Layout::Inline,
            xattr_units: 3,
            mode: 0o100_644,
            links: 2,
            size: 5,
            union: 6,
            serial: 7,
            uid: 8,
            gid: 9,
            mtime: (10, 11),
        };
        let mut bytes = Vec::new();
        inode.encode(&mut bytes);
        assert_eq!(bytes.len(), COMPACT);
        assert_eq!(bytes[..2], [4, 0]);
        inode.compact = false;
        inode.encode(&mut bytes);
        assert_eq!(bytes.len(), COMPACT + EXTENDED);
        assert_eq!(bytes[COMPACT..COMPACT + 2], [5, 0]);
    }

    #[test]
    fn devices_are_written_as_the_kernel_does() {
        assert_eq!(device(8, 300), Some(8 << 8 | 0x2C | 1 << 20));
        assert_eq!(device(4095, 1_048_575), Some(u32::MAX));
        assert_eq!(device(4096, 0), None);
        assert_eq!(device(0, 1_048_576), None);
    }

    #[test]
    fn a_hole_has_as_few_chunks_as_can_be() {
        assert_eq!(chunks(1), (0, 1));
        assert_eq!(chunks(4096), (0, 1));
        assert_eq!(chunks(4097), (1, 1));
        assert_eq!(chunks(8 << 40), (31, 1));
        assert_eq!(chunks((8 << 40) + 1), (31, 2));
        assert_eq!(chunks(i64::MAX.cast_unsigned()), (31, 1 << 20));
    }
}
