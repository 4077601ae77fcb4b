//! Two views compared: what one has that the other has not, or has otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use super::index::{Record, What};
use super::layers::LayerDirectory;
use super::view::{Id, Source, View, below};
use crate::error::{Error, Result};
use crate::root::to_path;

/// Read at a time where contents are compared.
const CHUNK_BYTES: usize = 128 << 10;

/// A name that differs, or may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root, without a slash in front.
    pub path: Vec<u8>,
    /// What was there.
    pub before: Option<Source>,
    /// What is there now.
    pub after: Option<Source>,
    /// All that the indexes tell is equal: the contents decide.
    pub doubtful: bool,
}

/// What differs between two views, parents first, sorted.
///
/// `identities` give every layer of each view a number, which is the same for the same layer: a name that both have
/// from one entry of one layer is passed over with no look at it.
#[must_use]
pub fn changes(before: &View<'_>, after: &View<'_>, identities: (&[usize], &[usize])) -> Vec<Change> {
    let mut found = Vec::new();
    let mut pending: Vec<(Vec<u8>, Option<Id>, Option<Id>)> = vec![(Vec::new(), Some(0), Some(0))];
    while let Some((path, one, other)) = pending.pop() {
        let children = (one.and_then(|id| before.children(id)), other.and_then(|id| after.children(id)));
        let names: BTreeSet<&[u8]> = [children.0, children.1]
            .into_iter()
            .flatten()
            .flatten()
            .map(|(name, _)| name.as_slice())
            .collect();
        for name in names.into_iter().rev() {
            let child = |siblings: Option<&BTreeMap<Vec<u8>, Id>>| siblings?.get(name).copied();
            pending.push((below(&path, name), child(children.0), child(children.1)));
        }
        let sources = (one.map(|id| before.source(id)), other.map(|id| after.source(id)));
        let doubtful = match sources {
            (Some(one), Some(other)) => {
                if (identities.0[one.layer], one.record) == (identities.1[other.layer], other.record) {
                    continue;
                }
                match compare(before.record(one), after.record(other)) {
                    Verdict::Same => continue,
                    verdict => verdict == Verdict::Doubtful,
                }
            }
            _ => false,
        };
        found.push(Change { path, before: sources.0, after: sources.1, doubtful });
    }
    found
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    Different,
    Doubtful,
}

fn compare(one: &Record, other: &Record) -> Verdict {
    match (one.blake3, other.blake3) {
        _ if !alike(one, other) => Verdict::Different,
        (Some(first), Some(second)) if first != second => Verdict::Different,
        (Some(_), Some(_)) => Verdict::Same,
        _ if one.what == What::File && one.size > 0 => Verdict::Doubtful,
        _ => Verdict::Same,
    }
}

fn alike(one: &Record, other: &Record) -> bool {
    let sorted = |record: &Record| {
        let mut xattrs = record.xattrs.clone();
        xattrs.sort_unstable();
        xattrs
    };
    let link = one.what != What::Symlink || one.link == other.link;
    // A link's mode is the kernel's business.
    let mode = one.what == What::Symlink || one.mode == other.mode;
    let rest = (one.what, one.uid, one.gid, one.mtime, one.device, one.size)
        == (other.what, other.uid, other.gid, other.mtime, other.device, other.size);
    rest && link && mode && sorted(one) == sorted(other)
}

/// Whether two regular files of layers have the same bytes.
///
/// # Errors
/// [`Error::Io`].
pub fn same_content(one: (&LayerDirectory, &Record), other: (&LayerDirectory, &Record)) -> Result<bool> {
    let (mut first, mut second) = (one.0.open(one.1)?, other.0.open(other.1)?);
    let mut blocks = (vec![0u8; CHUNK_BYTES], vec![0u8; CHUNK_BYTES]);
    loop {
        let count = fill(&mut first, &mut blocks.0, one.1)?;
        if fill(&mut second, &mut blocks.1, other.1)? != count || blocks.0[..count] != blocks.1[..count] {
            return Ok(false);
        }
        if count < CHUNK_BYTES {
            return Ok(true);
        }
    }
}

/// Reads until a block is full or the file ends.
fn fill(file: &mut std::fs::File, block: &mut [u8], record: &Record) -> Result<usize> {
    let mut count = 0;
    while count < block.len() {
        match file.read(&mut block[count..]) {
            Ok(0) => break,
            Ok(read) => count += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", to_path(&record.path), &e)),
        }
    }
    Ok(count)
}
