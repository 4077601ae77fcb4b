//! Whose what is unpacked becomes.

use std::fs;

use super::entry::{Entry, Kind};
use crate::error::{Error, Result};

/// Whose what is unpacked becomes.
#[derive(Debug, Default)]
pub enum Ownership {
    /// The archive's owners.
    #[default]
    Keep,
    /// The archive's owners as this process' user namespace maps them; what it does not map is refused.
    Mapped(IdMaps),
    /// This process' user. The archive's owners, modes and types are recorded beside ([`super::record`]).
    Recorded,
}

impl Ownership {
    /// The one of a name.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another name; [`Error::Io`] where this process' maps cannot be read.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "keep" => Ok(Self::Keep),
            "mapped" => IdMaps::of_this_process().map(Self::Mapped),
            "recorded" => Ok(Self::Recorded),
            _ => Err(invalid(name, "expected keep, mapped or recorded")),
        }
    }

    /// The one of a name, for a tree that is there: to this process its owners are mapped already.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another name.
    pub fn of_tree(name: &str) -> Result<Self> {
        match name {
            "keep" => Ok(Self::Keep),
            "recorded" => Ok(Self::Recorded),
            _ => Err(invalid(name, "expected keep or recorded")),
        }
    }

    /// Whether owners, modes and types are recorded.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        matches!(self, Self::Recorded)
    }

    /// Refuses an entry whose owner has no id here: the kernel would say no more than that something is invalid.
    pub(super) fn check(&self, entry: &Entry) -> Result<()> {
        let Self::Mapped(maps) = self else { return Ok(()) };
        // A hard link's owner is its file's.
        if entry.kind == Kind::Hardlink {
            return Ok(());
        }
        for (kind, id, map) in [("uid", entry.uid, &maps.uids), ("gid", entry.gid, &maps.gids)] {
            if !map.iter().any(|&(first, count)| (first..first + count).contains(&u64::from(id))) {
                let mapped = map.iter().map(|&(_, count)| count).sum();
                return Err(Error::UnmappedId { entry: entry.name.clone(), kind, id, mapped });
            }
        }
        Ok(())
    }
}

fn invalid(name: &str, reason: &str) -> Error {
    Error::Invalid { field: "ownership", value: name.to_owned(), reason: reason.to_owned() }
}

/// The ids that a user namespace has: of each range the first one, as seen inside, and their number.
#[derive(Debug)]
pub struct IdMaps {
    uids: Vec<(u64, u64)>,
    gids: Vec<(u64, u64)>,
}

impl IdMaps {
    fn of_this_process() -> Result<Self> {
        let read = |path: &str| -> Result<Vec<(u64, u64)>> {
            fs::read_to_string(path).map(|text| parse_map(&text)).map_err(|e| Error::io("read", path, &e))
        };
        Ok(Self { uids: read("/proc/self/uid_map")?, gids: read("/proc/self/gid_map")? })
    }
}

/// The kernel's own form: first id inside, first id outside, count.
fn parse_map(text: &str) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for line in text.lines() {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0));
        if let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) {
            ranges.push((first, count));
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(uid: u32, gid: u32) -> Entry {
        Entry { name: b"f".to_vec(), uid, gid, ..Entry::default() }
    }

    #[test]
    fn an_id_that_no_range_holds_is_named() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        let ownership = Ownership::Mapped(IdMaps { uids: parse_map(map), gids: parse_map("0 1000 1\n") });
        ownership.check(&owned(0, 0)).expect("the first range");
        ownership.check(&owned(65536, 0)).expect("the last id of the second");
        for (uid, gid, expected) in [(65537, 0, ("uid", 65537, 65537)), (7, 1, ("gid", 1, 1))] {
            match ownership.check(&owned(uid, gid)) {
                Err(Error::UnmappedId { kind, id, mapped, .. }) => assert_eq!((kind, id, mapped), expected),
                other => unreachable!("{other:?}"),
            }
        }
        let link = Entry { kind: Kind::Hardlink, ..owned(1 << 20, 0) };
        ownership.check(&link).expect("a link has no owner of its own");
    }
}
