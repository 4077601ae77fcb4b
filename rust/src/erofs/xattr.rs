//! Extended attributes behind an inode: a header, then each with its name's prefix as a number.
//!
//! The format has attributes that inodes share, too. They would save nothing: of overlayfs' two for a file, `redirect` is
//! each file's own, and what `metacopy` takes is lost to rounding up to slots (192 bytes for such an inode either way).

use super::node::Node;
use crate::error::{Error, Result};

const HEADER: usize = 12;
/// The header's length is counted as one unit, then each four bytes are. Kernels before 6.4 keep 16 bits of the length in
/// bytes, but no overlayfs of theirs can use such an image either.
const UNIT: usize = 4;
const BODY_MAX: usize = HEADER + (u16::MAX as usize - 1) * UNIT;
const VALUE_MAX: usize = u16::MAX as usize;
/// The kernel's own.
const NAME_MAX: usize = 255;
const FILTER_SEED: u32 = 0x25BB_E08F;

/// Prefixes that are written as a number.
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
/// Names that are.
const NAMES: [(&[u8], u8); 2] = [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];

/// Bytes that a node's attributes take.
///
/// # Errors
/// [`Error::Unsupported`] where they are too long, or not of a kind that EROFS knows; [`Error::Invalid`].
pub(super) fn size(node: &Node) -> Result<usize> {
    let mut body = 0;
    for (name, value) in sorted(node)? {
        if name.len() > NAME_MAX {
            return Err(too_long(format!("an xattr's name of {} bytes", name.len()), NAME_MAX));
        }
        if value.len() > VALUE_MAX {
            let feature = format!("xattr {} of {} bytes", name.escape_ascii(), value.len());
            return Err(too_long(feature, VALUE_MAX));
        }
        let (_, rest) = split(name)?;
        body += entry(rest, value);
    }
    if body > 0 {
        body += HEADER;
    }
    if body > BODY_MAX { Err(too_long(format!("xattrs of {body} bytes"), BODY_MAX)) } else { Ok(body) }
}

/// What an inode says of a body of that size.
pub(super) fn units(size: usize) -> u16 {
    if size == 0 { 0 } else { u16::try_from((size - HEADER) / UNIT + 1).unwrap_or(u16::MAX) }
}

/// Appends the attributes.
///
/// # Errors
/// As for [`size`].
pub(super) fn encode(bytes: &mut Vec<u8>, node: &Node) -> Result<()> {
    if node.xattrs.is_empty() {
        return Ok(());
    }
    let start = bytes.len();
    bytes.resize(start + HEADER, 0);
    let mut present = 0u32;
    for (name, value) in sorted(node)? {
        let (index, rest) = split(name)?;
        present |= 1 << (xxh32(rest, FILTER_SEED.wrapping_add(index.into())) % 32);
        let end = bytes.len() + entry(rest, value);
        bytes.extend_from_slice(&[u8::try_from(rest.len()).unwrap_or(0), index]);
        bytes.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(end, 0);
    }
    // A bit that is set means that no attribute here has it.
    bytes[start..start + 4].copy_from_slice(&(!present).to_le_bytes());
    Ok(())
}

/// By name, so that the same attributes are always the same bytes.
fn sorted(node: &Node) -> Result<Vec<(&[u8], &[u8])>> {
    let mut sorted: Vec<_> =
        node.xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())).collect();
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(invalid(pair[0].0, "is given twice"));
    }
    Ok(sorted)
}

/// A name as its prefix's number and the rest.
fn split(name: &[u8]) -> Result<(u8, &[u8])> {
    if name.contains(&0) {
        return Err(invalid(name, "has a NUL"));
    }
    if let Some((_, index)) = NAMES.iter().find(|(whole, _)| *whole == name) {
        return Ok((*index, b""));
    }
    let found = PREFIXES.iter().find_map(|(prefix, index)| Some((*index, name.strip_prefix(*prefix)?)));
    match found {
        Some((_, b"")) => Err(invalid(name, "is nothing but a prefix")),
        Some(found) => Ok(found),
        None => Err(Error::Unsupported {
            feature: format!("xattr {}", name.escape_ascii()),
            needs: "a name in user, trusted or security, or an ACL".to_owned(),
        }),
    }
}

fn entry(rest: &[u8], value: &[u8]) -> usize {
    (4 + rest.len() + value.len()).next_multiple_of(UNIT)
}

fn invalid(name: &[u8], reason: &str) -> Error {
    Error::Invalid { field: "xattr", value: name.escape_ascii().to_string(), reason: reason.to_owned() }
}

fn too_long(feature: String, most: usize) -> Error {
    Error::Unsupported { feature, needs: format!("at most {most}") }
}

const PRIMES: [u32; 5] = [0x9E37_79B1, 0x85EB_CA77, 0xC2B2_AE3D, 0x27D4_EB2F, 0x1656_67B1];

/// The hash of names in the kernel's filter.
fn xxh32(bytes: &[u8], seed: u32) -> u32 {
    let word = |at: &[u8]| u32::from_le_bytes([at[0], at[1], at[2], at[3]]);
    let mut sum = if bytes.len() < 16 {
        seed.wrapping_add(PRIMES[4])
    } else {
        let start = [PRIMES[0].wrapping_add(PRIMES[1]), PRIMES[1], 0, PRIMES[0].wrapping_neg()];
        let mut lanes = start.map(|offset| seed.wrapping_add(offset));
        for stripe in bytes.chunks_exact(16) {
            for (lane, at) in lanes.iter_mut().zip(stripe.chunks_exact(4)) {
                *lane = lane
                    .wrapping_add(word(at).wrapping_mul(PRIMES[1]))
                    .rotate_left(13)
                    .wrapping_mul(PRIMES[0]);
            }
        }
        let turned = [1, 7, 12, 18];
        lanes.iter().zip(turned).fold(0, |sum: u32, (lane, by)| sum.wrapping_add(lane.rotate_left(by)))
    };
    sum = sum.wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    let words = bytes.chunks_exact(16).remainder().chunks_exact(4);
    let rest = words.remainder();
    for at in words {
        sum = sum.wrapping_add(word(at).wrapping_mul(PRIMES[2])).rotate_left(17).wrapping_mul(PRIMES[3]);
    }
    for &byte in rest {
        sum =
            sum.wrapping_add(u32::from(byte).wrapping_mul(PRIMES[4])).rotate_left(11).wrapping_mul(PRIMES[0]);
    }
    sum = (sum ^ sum >> 15).wrapping_mul(PRIMES[1]);
    sum = (sum ^ sum >> 13).wrapping_mul(PRIMES[2]);
    sum ^ sum >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_hash_is_that_of_its_inventor() {
        assert_eq!(xxh32(b"", 0), 0x02CC_5D05);
        assert_eq!(xxh32(b"a", 0), 0x550D_7456);
        assert_eq!(xxh32(b"abc", 0), 0x32D1_53FF);
        assert_eq!(xxh32(b"Nobody inspects the spammish repetition", 0), 0xE229_3B2F);
    }

    #[test]
    fn a_body_has_the_length_that_was_planned() {
        let value = |length| vec![b'v'; length];
        for xattrs in [
            vec![],
            vec![(b"user.a".to_vec(), value(0))],
            vec![
                (b"security.capability".to_vec(), value(20)),
                (b"system.posix_acl_access".to_vec(), value(44)),
            ],
            vec![(b"user.b".to_vec(), value(65_535)), (b"trusted.overlay.opaque".to_vec(), value(1))],
        ] {
            let kind = super::super::node::Kind::Fifo;
            let node = Node { kind, mode: 0, uid: 0, gid: 0, mtime: (0, 0), xattrs };
            let planned = size(&node).expect("attributes that fit");
            let mut bytes = Vec::new();
            encode(&mut bytes, &node).expect("attributes that fit");
            assert_eq!(bytes.len(), planned);
            assert_eq!(usize::from(units(planned)), if planned == 0 { 0 } else { (planned - 12) / 4 + 1 });
        }
    }

    #[test]
    fn prefixes_are_numbers() {
        assert_eq!(
            split(b"trusted.overlay.redirect").expect("a known prefix"),
            (4, &b"overlay.redirect"[..])
        );
        assert_eq!(split(b"system.posix_acl_default").expect("a known name"), (3, &b""[..]));
        split(b"system.posix_acl_access.x").expect_err("a name that is none");
    }
}
