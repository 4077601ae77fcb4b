//! How much of an archive is too much. Counted while it is read, from what is really there; never believed.
//!
//! What is not set here is fixed: a component of a path has 255 bytes at the most (the kernel's bound), and a zstd
//! frame may ask for a window of 128 MiB (`compression/zstd.rs`), which is refused before it is allocated.

use super::AppliedLayer;
use super::entry::Entry;
use super::metadata::applicable;
use crate::error::{Error, Result};

/// Entries of one archive, markers and directories that no entry lists included. Ten times what the largest images
/// have, and under what an ext4 of common size has inodes for.
pub const DEFAULT_ENTRIES: u64 = 10_000_000;
/// Bytes of all files of one archive, holes included: 16 TiB, the largest file system that ext4 makes by default. What
/// the disk holds is the real limit; a service for strangers should set its own.
pub const DEFAULT_BYTES: u64 = 1 << 44;
/// Bytes of tar for each compressed byte. Deflate cannot reach it (1032), so no gzip layer is refused; a zstd layer
/// that does says one block over and over.
pub const DEFAULT_RATIO: u64 = 2000;
/// Bytes of an entry's whole path: `PATH_MAX` less its NUL. No program could open what lies deeper, so it cannot be raised.
pub const DEFAULT_NAME_BYTES: u64 = 4095;
/// Components of an entry's path. Nobody nests a tenth of that; each level costs a directory on disk.
pub const DEFAULT_DEPTH: u64 = 1024;
/// Bytes of the names and values of one entry's xattrs: the kernel takes 64 KiB for a value and 64 KiB for all names.
pub const DEFAULT_XATTR_BYTES: u64 = 256 << 10;
/// Bytes of extended headers, long names and sparse maps in front of one entry: they are held in memory. The longest
/// path and all xattrs of a file fit many times (rule R11: 1 MiB).
pub const DEFAULT_HEADER_BYTES: u64 = 1 << 20;

/// Bytes of tar that may come out before the ratio counts: a small layer of zeros harms nobody.
pub const RATIO_FLOOR_BYTES: u64 = 64 << 20;
/// Directories that no entry lists have their paths in the index: a header of one entry can ask for a thousand with
/// paths of kilobytes. All such paths together may take so many bytes, …
const IMPLIED_PATHS_FLOOR_BYTES: u64 = 16 << 20;
/// … and so many more for each byte of the archive until there: memory stays linear in what is really there.
const IMPLIED_PATHS_PER_BYTE: u64 = 16;

/// What refuses an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries, markers and directories that no entry lists included.
    pub entries: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// Bytes of tar for each compressed byte, once [`RATIO_FLOOR_BYTES`] came out.
    pub ratio: u64,
    /// Bytes of a whole path, as the archive has it and as it is made.
    pub name_bytes: u64,
    /// Components of a path, as the archive has it and as it is made.
    pub depth: u64,
    /// Bytes of the names and values of one entry's xattrs.
    pub xattr_bytes: u64,
    /// Bytes of what stands in front of one entry: extended headers, long names, sparse maps.
    pub header_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: DEFAULT_ENTRIES,
            bytes: DEFAULT_BYTES,
            ratio: DEFAULT_RATIO,
            name_bytes: DEFAULT_NAME_BYTES,
            depth: DEFAULT_DEPTH,
            xattr_bytes: DEFAULT_XATTR_BYTES,
            header_bytes: DEFAULT_HEADER_BYTES,
        }
    }
}

impl Limits {
    /// Holds what came out of a decompressor against what went in.
    ///
    /// # Errors
    /// [`Error::OverLimit`].
    pub fn check_ratio(&self, compressed: u64, expanded: u64) -> Result<()> {
        if expanded > RATIO_FLOOR_BYTES && expanded > compressed.saturating_mul(self.ratio) {
            return Err(over(
                "ratio",
                self.ratio,
                "more comes out for each compressed byte",
                &[],
                compressed,
            ));
        }
        Ok(())
    }

    /// Holds the bytes in front of an entry against their limit.
    pub(super) fn check_headers(&self, bytes: u64, entry: &[u8], offset: u64) -> Result<()> {
        if bytes > self.header_bytes {
            let what = "the headers in front of the entry have more bytes";
            return Err(over("header_bytes", self.header_bytes, what, entry, offset));
        }
        Ok(())
    }
}

/// What an archive has come to so far, held against its limits.
#[derive(Debug)]
pub struct Meter {
    limits: Limits,
    entries: u64,
    bytes: u64,
    implied: u64,
    implied_path_bytes: u64,
    skipped_xattrs: u64,
    unrecorded_owners: u64,
}

impl Meter {
    /// Starts at nothing.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: 0,
            bytes: 0,
            implied: 0,
            implied_path_bytes: 0,
            skipped_xattrs: 0,
            unrecorded_owners: 0,
        }
    }

    /// Counts an entry in, by its header alone: nothing of it has been made.
    ///
    /// # Errors
    /// [`Error::OverLimit`].
    pub fn count(&mut self, entry: &Entry) -> Result<()> {
        self.entries += 1;
        self.check_entries(entry)?;
        self.bytes = self.bytes.saturating_add(entry.size);
        check("bytes", self.bytes, self.limits.bytes, "its files have more bytes", entry)?;
        let components = entry.name.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".");
        self.place(entry, components.count(), entry.name.len())?;
        self.skip_xattrs((entry.xattrs.len() - applicable(&entry.xattrs, entry.kind).count()) as u64);
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        check("xattr_bytes", xattrs as u64, self.limits.xattr_bytes, "its xattrs have more bytes", entry)
    }

    /// Looks at where something is to be made. A symbolic link in its name can lead deeper than the name says.
    pub(super) fn place(&self, entry: &Entry, depth: usize, path_bytes: usize) -> Result<()> {
        check("name_bytes", path_bytes as u64, self.limits.name_bytes, "its path has more bytes", entry)?;
        check("depth", depth as u64, self.limits.depth, "its path has more components", entry)
    }

    /// Counts a directory in that is made for what an entry puts in it.
    pub(super) fn imply(&mut self, entry: &Entry, depth: usize, path_bytes: usize) -> Result<()> {
        self.place(entry, depth, path_bytes)?;
        self.implied += 1;
        self.check_entries(entry)?;
        self.implied_path_bytes += path_bytes as u64;
        let most =
            entry.offset.saturating_mul(IMPLIED_PATHS_PER_BYTE).saturating_add(IMPLIED_PATHS_FLOOR_BYTES);
        if self.implied_path_bytes > most {
            return Err(super::refuse(
                entry,
                "the archive lists too few of the directories that its names need",
            ));
        }
        Ok(())
    }

    /// Counts xattrs in that are not set.
    pub(super) fn skip_xattrs(&mut self, count: u64) {
        self.skipped_xattrs += count;
    }

    /// Counts an owner in that is recorded nowhere.
    pub(super) fn lose_owner(&mut self) {
        self.unrecorded_owners += 1;
    }

    /// Entries that were counted so far.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// What a layer came to, but for what its writer knows.
    #[must_use]
    pub fn applied(&self) -> AppliedLayer {
        AppliedLayer {
            entries: self.entries,
            bytes: self.bytes,
            skipped_xattrs: self.skipped_xattrs,
            unrecorded_owners: self.unrecorded_owners,
            ..AppliedLayer::default()
        }
    }

    fn check_entries(&self, entry: &Entry) -> Result<()> {
        let made = self.entries + self.implied;
        check("entries", made, self.limits.entries, "the archive has more entries", entry)
    }
}

fn check(limit: &'static str, found: u64, most: u64, what: &'static str, entry: &Entry) -> Result<()> {
    if found > most { Err(over(limit, most, what, &entry.name, entry.offset)) } else { Ok(()) }
}

fn over(limit: &'static str, most: u64, what: &'static str, entry: &[u8], offset: u64) -> Error {
    Error::OverLimit { limit, most, what, entry: entry.to_vec(), offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(offset: u64) -> Entry {
        Entry { name: b"a/b".to_vec(), offset, ..Entry::default() }
    }

    fn limit_of(result: Result<()>) -> Option<&'static str> {
        match result {
            Err(Error::OverLimit { limit, .. }) => Some(limit),
            Ok(()) => None,
            Err(other) => unreachable!("{other}"),
        }
    }

    #[test]
    fn the_ratio_counts_above_its_floor_and_does_not_overflow() {
        let limits = Limits { ratio: 10, ..Limits::default() };
        assert_eq!(limit_of(limits.check_ratio(0, RATIO_FLOOR_BYTES)), None);
        assert_eq!(limit_of(limits.check_ratio(1, RATIO_FLOOR_BYTES + 1)), Some("ratio"));
        assert_eq!(limit_of(limits.check_ratio(RATIO_FLOOR_BYTES, RATIO_FLOOR_BYTES * 10)), None);
        assert_eq!(
            limit_of(limits.check_ratio(RATIO_FLOOR_BYTES, RATIO_FLOOR_BYTES * 10 + 1)),
            Some("ratio")
        );
        assert_eq!(limit_of(limits.check_ratio(u64::MAX / 2, u64::MAX)), None);
    }

    #[test]
    fn bytes_are_added_up_without_overflow() {
        let mut meter = Meter::new(Limits { bytes: u64::MAX - 1, ..Limits::default() });
        let file = Entry { size: u64::MAX - 1, ..entry(0) };
        assert_eq!(limit_of(meter.count(&file)), None);
        assert_eq!(limit_of(meter.count(&file)), Some("bytes"));
    }

    #[test]
    fn directories_that_no_entry_lists_count_as_entries() {
        let mut meter = Meter::new(Limits { entries: 2, ..Limits::default() });
        assert_eq!(limit_of(meter.count(&entry(0))), None);
        assert_eq!(limit_of(meter.imply(&entry(0), 1, 1)), None);
        assert_eq!(limit_of(meter.imply(&entry(0), 2, 3)), Some("entries"));
        assert_eq!(meter.applied().entries, 1);
    }

    #[test]
    fn their_paths_are_charged_against_the_bytes_read() {
        let most = |offset: u64| {
            let mut meter = Meter::new(Limits::default());
            (0..100_000).take_while(|_| meter.imply(&entry(offset), 1000, 2048).is_ok()).count() as u64
        };
        assert_eq!(most(0), IMPLIED_PATHS_FLOOR_BYTES / 2048);
        assert_eq!(most(1 << 20), (IMPLIED_PATHS_FLOOR_BYTES + (IMPLIED_PATHS_PER_BYTE << 20)) / 2048);
    }
}
