//! eStargz: where the table is, and what stands between the files.

use std::collections::HashMap;

use super::gotar::{BLOCK_BYTES, header};
use super::refuse;
use super::table::Entry;
use crate::error::Result;

/// What stands at the end of a blob: an empty gzip member whose extra field says where the table's begins.
pub const FOOTER_BYTES: usize = 51;
/// The header of that member up to the offset: deflate, an extra field of 26 bytes, in it "SG" and its 22 bytes.
const EXTRA_AT: usize = 10;
const EXTRA: &[u8] = b"\x1a\0SG\x16\0";
const OFFSET_DIGITS: usize = 16;
const MAGIC: &[u8] = b"STARGZ";
const TABLE_NAME: &[u8] = b"stargz.index.json\0";
/// Headers that are made from a table are in memory all at once; of more than so many bytes the layer is taken whole.
pub(super) const HEADERS_MAX_BYTES: usize = 16 << 20;

/// Where the table's member begins, by a blob's footer.
///
/// # Errors
/// [`crate::error::Error::Invalid`] for another end.
pub fn table_offset(footer: &[u8]) -> Result<u64> {
    let wrong = || refuse("the blob does not end as eStargz does");
    let digits_at = EXTRA_AT + EXTRA.len();
    let magic_at = digits_at + OFFSET_DIGITS;
    let fits = footer.len() == FOOTER_BYTES
        && footer.starts_with(b"\x1f\x8b\x08\x04")
        && &footer[EXTRA_AT..digits_at] == EXTRA
        && &footer[magic_at..magic_at + MAGIC.len()] == MAGIC;
    let digits = footer.get(digits_at..magic_at).filter(|_| fits).ok_or_else(wrong)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(wrong());
    }
    std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok()).ok_or_else(wrong)
}

/// The table itself, in the tar of its member.
pub(super) fn table_in(tar: &[u8]) -> Result<&[u8]> {
    let wrong = || refuse("its member does not begin with stargz.index.json");
    let (head, rest) = tar.split_first_chunk::<BLOCK_BYTES>().ok_or_else(wrong)?;
    let size = std::str::from_utf8(&head[124..135]).ok().and_then(|text| usize::from_str_radix(text, 8).ok());
    let size = size.filter(|_| head.starts_with(TABLE_NAME)).ok_or_else(wrong)?;
    rest.get(..size).ok_or_else(|| refuse("it is shorter than its header says"))
}

/// The headers between the files, as far as they can be told from the table.
#[derive(Debug)]
pub(super) struct Headers {
    /// In front of the first file that has content.
    first: Option<Vec<u8>>,
    /// Behind the content of each, but for its padding.
    behind: Vec<Option<Vec<u8>>>,
    /// What the table's member comes to: the end of the tar.
    last: Vec<u8>,
    users: HashMap<i64, Vec<u8>>,
    groups: HashMap<i64, Vec<u8>>,
    bytes: usize,
}

impl Headers {
    /// Of no entry yet.
    pub(super) fn new() -> Self {
        Self {
            first: Some(Vec::new()),
            behind: Vec::new(),
            last: Vec::new(),
            users: HashMap::new(),
            groups: HashMap::new(),
            bytes: 0,
        }
    }

    /// The next entry of the table.
    pub(super) fn add(&mut self, entry: &Entry) -> Result<()> {
        let user = last_name(&mut self.users, entry.uid, &entry.user);
        let group = last_name(&mut self.groups, entry.gid, &entry.group);
        let made = header(entry, user, group);
        self.bytes += made.as_ref().map_or(0, Vec::len);
        if self.bytes > HEADERS_MAX_BYTES {
            return Err(refuse(format!("its entries have more than {HEADERS_MAX_BYTES} bytes of headers")));
        }
        let current = self.behind.last_mut().unwrap_or(&mut self.first);
        match (current.as_mut(), made) {
            (Some(current), Some(made)) => current.extend_from_slice(&made),
            _ => *current = None,
        }
        if entry.kind == b"reg" && entry.size > 0 {
            self.behind.push(Some(Vec::new()));
        }
        Ok(())
    }

    /// The end of the table.
    pub(super) fn end(&mut self, last: Vec<u8>) {
        self.last = last;
    }

    /// What stands in front of the first file; None where it cannot be told.
    pub(super) fn first(&self) -> Option<&[u8]> {
        self.first.as_deref()
    }

    /// What stands behind the padding of a file; None where it cannot be told.
    pub(super) fn behind(&self, file: usize) -> Option<&[u8]> {
        self.behind.get(file)?.as_deref()
    }

    /// What stands behind all files.
    pub(super) fn last(&self) -> &[u8] {
        &self.last
    }
}

/// A table has a name only where it is another than the last one of the same number.
fn last_name<'a>(names: &'a mut HashMap<i64, Vec<u8>>, id: i64, name: &[u8]) -> &'a [u8] {
    let known = names.entry(id).or_default();
    if !name.is_empty() {
        known.clear();
        known.extend_from_slice(name);
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(offset: &str) -> Vec<u8> {
        let mut made = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0".to_vec();
        made.extend_from_slice(offset.as_bytes());
        made.extend_from_slice(b"STARGZ\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        made
    }

    #[test]
    fn a_footer_says_where_the_table_is() {
        assert_eq!(table_offset(&footer("000000000000abcd")).expect("good"), 0xabcd);
        for bad in ["00000000000000g0", "+00000000000abcd", "abcd"] {
            assert!(table_offset(&footer(bad)).is_err(), "{bad}");
        }
        let good = footer("000000000000abcd");
        for at in [0, 1, 2, 3, 10, 12, 13, 32, 37] {
            let mut damaged = good.clone();
            damaged[at] ^= 1;
            assert!(table_offset(&damaged).is_err(), "byte {at}");
        }
        assert!(table_offset(&good[1..]).is_err());
        assert!(table_offset(b"").is_err());
    }
}
