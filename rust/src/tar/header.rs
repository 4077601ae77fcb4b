//! One 512-byte header block, no I/O. Numbers, names and the checksum of v7, ustar, GNU and PAX.

use std::ops::Range;

/// Everything in an archive comes in blocks of this size.
pub(super) const BLOCK: usize = 512;

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
pub(super) const CHECKSUM: Range<usize> = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Range<usize> = 157..257;
pub(super) const MAGIC: Range<usize> = 257..263;
pub(super) const DEVICE_MAJOR: Range<usize> = 329..337;
pub(super) const DEVICE_MINOR: Range<usize> = 337..345;
pub(super) const PREFIX: Range<usize> = 345..500;
/// GNU has times where ustar has the prefix: of the last access, and of the inode's last change.
const GNU_TIMES: [usize; 2] = [345, 357];
const GNU_MAGIC: &[u8] = b"ustar  \0";
/// Schilling's star says at the end that the header is its own.
const STAR_TRAILER: Range<usize> = 508..512;
/// Old GNU sparse: four (offset, length) pairs, "more follows", real size.
const SPARSE_PAIRS: usize = 386;
const SPARSE_EXTENDED: usize = 482;
const SPARSE_REAL_SIZE: Range<usize> = 483..495;
const SPARSE_NUMBER: usize = 12;

/// A view of one header block; every reader says what is wrong in a few words.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

type Read<T> = Result<T, String>;

impl<'a> Header<'a> {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|&b| b == 0)
    }

    /// The sum over the block with the sum's own field as spaces; old tars summed signed bytes.
    pub(super) fn check_sum(&self) -> Read<()> {
        let stored = number(&self.0[CHECKSUM]).map_err(|e| format!("header checksum {e}"))?;
        let mut unsigned = 0i64;
        let mut signed = 0i64;
        for (at, &byte) in self.0.iter().enumerate() {
            let byte = if CHECKSUM.contains(&at) { b' ' } else { byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(())
        } else {
            Err("header checksum does not match".to_owned())
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// The name, with ustar's prefix where the header is ustar's own (GNU keeps other things there).
    pub(super) fn name(&self, into: &mut Vec<u8>) {
        into.clear();
        let prefix = if &self.0[MAGIC] == b"ustar\0" { text(&self.0[PREFIX]) } else { b"" };
        if !prefix.is_empty() {
            into.extend_from_slice(prefix);
            into.push(b'/');
        }
        into.extend_from_slice(text(&self.0[NAME]));
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.0[LINK])
    }

    pub(super) fn mode(&self) -> Read<u32> {
        let mode = number(&self.0[MODE]).map_err(|e| format!("mode {e}"))?;
        Ok(u32::try_from(mode & 0o7777).unwrap_or(0))
    }

    /// As it stands there.
    pub(super) fn whole_mode(&self) -> Read<i64> {
        number(&self.0[MODE])
    }

    /// As they stand there; nothing where the header is older than these fields.
    pub(super) fn device_numbers(&self) -> Read<(i64, i64)> {
        if !self.0[MAGIC].starts_with(b"ustar") {
            return Ok((0, 0));
        }
        Ok((number(&self.0[DEVICE_MAJOR])?, number(&self.0[DEVICE_MINOR])?))
    }

    /// Whether the header is of a form that everybody reads alike: ustar's own, or GNU's without times of its own, or older.
    pub(super) fn is_common(&self) -> bool {
        let magic = &self.0[MAGIC.start..MAGIC.start + GNU_MAGIC.len()];
        if magic.starts_with(b"ustar\0") {
            return &self.0[STAR_TRAILER] != b"tar\0";
        }
        if magic == GNU_MAGIC {
            return GNU_TIMES.iter().all(|&at| self.0[at] == 0);
        }
        !magic.starts_with(b"ustar") && !matches!(self.kind(), b'3' | b'4')
    }

    pub(super) fn size(&self) -> Read<u64> {
        u64::try_from(number(&self.0[SIZE]).map_err(|e| format!("size {e}"))?)
            .map_err(|_| "size is negative".to_owned())
    }

    pub(super) fn uid(&self) -> Read<u32> {
        owner(number(&self.0[UID]).map_err(|e| format!("uid {e}"))?, "uid")
    }

    pub(super) fn gid(&self) -> Read<u32> {
        owner(number(&self.0[GID]).map_err(|e| format!("gid {e}"))?, "gid")
    }

    pub(super) fn mtime(&self) -> Read<i64> {
        number(&self.0[MTIME]).map_err(|e| format!("mtime {e}"))
    }

    /// Major and minor, as the kernel can hold them: 12 and 20 bits.
    pub(super) fn device(&self) -> Read<(u32, u32)> {
        let part = |field: Range<usize>, what: &str, limit: i64| {
            let value = number(&self.0[field]).map_err(|e| format!("device {what} {e}"))?;
            if (0..limit).contains(&value) {
                Ok(u32::try_from(value).unwrap_or(0))
            } else {
                Err(format!("device {what} does not fit the kernel's"))
            }
        };
        Ok((part(DEVICE_MAJOR, "major", 1 << 12)?, part(DEVICE_MINOR, "minor", 1 << 20)?))
    }

    /// The sparse map of an old GNU header: pairs, whether more follow, and the real size.
    pub(super) fn sparse(&self, pairs: &mut Vec<(u64, u64)>) -> Read<(bool, u64)> {
        sparse_pairs(&self.0[SPARSE_PAIRS..SPARSE_EXTENDED], pairs)?;
        let real = number(&self.0[SPARSE_REAL_SIZE]).map_err(|e| format!("sparse size {e}"))?;
        let real = u64::try_from(real).map_err(|_| "sparse size is negative".to_owned())?;
        Ok((self.0[SPARSE_EXTENDED] != 0, real))
    }
}

/// An extension block of an old GNU sparse map: 21 pairs, then "more follows".
pub(super) fn sparse_extension(block: &[u8; BLOCK], pairs: &mut Vec<(u64, u64)>) -> Read<bool> {
    sparse_pairs(&block[..21 * 2 * SPARSE_NUMBER], pairs)?;
    Ok(block[21 * 2 * SPARSE_NUMBER] != 0)
}

fn sparse_pairs(bytes: &[u8], pairs: &mut Vec<(u64, u64)>) -> Read<()> {
    for pair in bytes.chunks_exact(2 * SPARSE_NUMBER) {
        if pair[0] == 0 && pair[SPARSE_NUMBER] == 0 {
            return Ok(());
        }
        let read = |field: &[u8]| {
            u64::try_from(number(field).map_err(|e| format!("sparse map {e}"))?)
                .map_err(|_| "sparse map is negative".to_owned())
        };
        pairs.push((read(&pair[..SPARSE_NUMBER])?, read(&pair[SPARSE_NUMBER..])?));
    }
    Ok(())
}

/// An owner that `chown` takes: 2^32-1 means "leave as it is" there.
pub(super) fn owner(value: i64, what: &str) -> Read<u32> {
    u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or_else(|| format!("{what} is out of range"))
}

fn text(field: &[u8]) -> &[u8] {
    &field[..memchr::memchr(0, field).unwrap_or(field.len())]
}

/// Octal digits between spaces and NULs, or GNU's base 256 where the top bit is set.
fn number(field: &[u8]) -> Read<i64> {
    if field[0] & 0x80 != 0 {
        return base_256(field);
    }
    let start = field.iter().position(|&b| b != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|&b| b == b' ' || b == 0).unwrap_or(digits.len());
    if digits[end..].iter().any(|&b| b != b' ' && b != 0) {
        return Err("is no number".to_owned());
    }
    let mut value = 0i64;
    for &digit in &digits[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return Err("is no octal number".to_owned());
        }
        // Twelve octal digits are 36 bits: no overflow.
        value = value << 3 | i64::from(digit - b'0');
    }
    Ok(value)
}

/// Two's complement, big endian, the top bit of the first byte being the mark.
fn base_256(field: &[u8]) -> Read<i64> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let fill: u8 = if negative { 0xff } else { 0 };
    let split = field.len().saturating_sub(8);
    let head_fits = split == 0 || (first == fill && field[1..split].iter().all(|&b| b == fill));
    let mut bytes = [fill; 8];
    let tail = &field[split..];
    bytes[8 - tail.len()..].copy_from_slice(tail);
    if split == 0 {
        bytes[8 - tail.len()] = first;
    }
    let value = i64::from_be_bytes(bytes);
    if head_fits && (value < 0) == negative { Ok(value) } else { Err("is too large".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_their_forms() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"00000000012\0"), Ok(10));
        assert_eq!(number(b"777777777777"), Ok(0o777_777_777_777));
        assert!(number(b"00000000xyz\0").is_err());
        assert!(number(b"0000000-005\0").is_err());
        assert!(number(b"12\x00345 \0").is_err());
    }

    #[test]
    fn base_256_in_both_signs() {
        let mut size = [0u8; 12];
        size[0] = 0x80;
        size[11] = 5;
        assert_eq!(number(&size), Ok(5));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Ok(-2));
        assert_eq!(number(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Ok(0xffff_ffff));
        let mut huge = [0u8; 12];
        huge[0] = 0x80;
        huge[4] = 0x80;
        assert!(number(&huge).is_err(), "2^63 does not fit");
    }
}
