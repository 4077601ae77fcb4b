//! PAX extended headers: records of `length key=value\n`, no I/O.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::header::owner;

/// What extended headers and GNU long names say about the entry that follows them.
#[derive(Debug, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Time>,
    pub(super) atime: Option<Time>,
    pub(super) ctime: Option<Time>,
    /// How many extended headers there were: some readers go by the last of them alone.
    pub(super) headers: u32,
    /// Whether one has xattrs in libarchive's form, which few read.
    pub(super) libarchive: bool,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where each name stands among them: a header can have fifty thousand.
    places: HashMap<Vec<u8>, usize>,
    pub(super) sparse: Sparse,
    /// Whether anything was read at all: an extension must be followed by an entry.
    pub(super) any: bool,
}

/// Seconds since 1970 and nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// The keys of GNU's three PAX forms of sparse files.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: u64,
    pub(super) minor: u64,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) pairs: Vec<(u64, u64)>,
    offset: Option<u64>,
}

type Read<T> = Result<T, String>;

impl Extensions {
    /// Takes in the records of one `x` header; a later record of a key wins.
    pub(super) fn read(&mut self, mut body: &[u8]) -> Read<()> {
        self.any = true;
        self.headers = self.headers.saturating_add(1);
        while !body.is_empty() {
            let (key, value, rest) = record(body)?;
            self.set(key, value)?;
            body = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Read<()> {
        match key {
            b"path" => self.path = text(value, "path")?,
            b"linkpath" => self.link = text(value, "linkpath")?,
            b"size" => self.size = optional(value, "size")?,
            b"uid" => self.uid = id(value, "uid")?,
            b"gid" => self.gid = id(value, "gid")?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            // Nothing is made of them, so that nothing is refused for them.
            b"atime" => self.atime = time(value).ok(),
            b"ctime" => self.ctime = time(value).ok(),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(name.to_vec(), value.to_vec());
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    self.libarchive = true;
                    self.xattr(percent(name)?, base64(value)?);
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn xattr(&mut self, name: Vec<u8>, value: Vec<u8>) {
        match self.places.entry(name) {
            Entry::Occupied(known) => self.xattrs[*known.get()].1 = value,
            Entry::Vacant(new) => {
                self.xattrs.push((new.key().clone(), value));
                new.insert(self.xattrs.len() - 1);
            }
        }
    }
}

impl Sparse {
    pub(super) fn is_used(&self) -> bool {
        self.real_size.is_some() || !self.pairs.is_empty() || self.major != 0
    }

    fn set(&mut self, name: &[u8], value: &[u8]) -> Read<()> {
        match name {
            b"major" => self.major = decimal(value, "GNU.sparse.major")?,
            b"minor" => self.minor = decimal(value, "GNU.sparse.minor")?,
            b"name" => self.name = text(value, "GNU.sparse.name")?,
            b"realsize" | b"size" => self.real_size = Some(decimal(value, "GNU.sparse.size")?),
            b"offset" => self.offset = Some(decimal(value, "GNU.sparse.offset")?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("GNU.sparse.numbytes without an offset")?;
                self.pairs.push((offset, decimal(value, "GNU.sparse.numbytes")?));
            }
            b"map" => {
                self.pairs.clear();
                let mut numbers = value.split(|&b| b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or("GNU.sparse.map has an odd number of entries")?;
                    self.pairs.push((decimal(offset, "GNU.sparse.map")?, decimal(length, "GNU.sparse.map")?));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The first record of a body, and what follows it.
fn record(body: &[u8]) -> Read<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|&b| b == b' ').ok_or("pax record without a length")?;
    let length = usize::try_from(decimal(&body[..space], "pax record length")?).unwrap_or(usize::MAX);
    if length <= space + 1 || length > body.len() {
        return Err("pax record length is wrong".to_owned());
    }
    let (found, rest) = body.split_at(length);
    let content = found[space + 1..].strip_suffix(b"\n").ok_or("pax record does not end with a newline")?;
    let equals = memchr::memchr(b'=', content).ok_or("pax record without =")?;
    let (key, value) = (&content[..equals], &content[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err("pax record has no key".to_owned());
    }
    Ok((key, value, rest))
}

/// A decimal number without sign or spaces; `i64::MAX` at most, so that sums of two do not overflow.
pub(super) fn decimal(digits: &[u8], what: &str) -> Read<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(format!("{what} is no number"));
    }
    digits
        .iter()
        .try_fold(0u64, |value, &digit| value.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
        .filter(|&value| value <= i64::MAX.cast_unsigned())
        .ok_or_else(|| format!("{what} is too large"))
}

fn optional(value: &[u8], what: &str) -> Read<Option<u64>> {
    if value.is_empty() { Ok(None) } else { decimal(value, what).map(Some) }
}

fn id(value: &[u8], what: &str) -> Read<Option<u32>> {
    optional(value, what)?.map(|n| owner(n.cast_signed(), what)).transpose()
}

fn text(value: &[u8], what: &str) -> Read<Option<Vec<u8>>> {
    if value.contains(&0) {
        return Err(format!("{what} has a NUL"));
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

/// Seconds, perhaps negative, perhaps with a fraction of which nine digits count.
fn time(value: &[u8]) -> Read<Time> {
    let (negative, rest) = value.strip_prefix(b"-").map_or((false, value), |rest| (true, rest));
    let point = memchr::memchr(b'.', rest).unwrap_or(rest.len());
    let seconds = decimal(&rest[..point], "mtime")?.cast_signed();
    let mut nanoseconds = 0u32;
    let fraction = rest.get(point + 1..).unwrap_or(b"");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("mtime is no number".to_owned());
    }
    for place in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.get(place).map_or(0, |&digit| u32::from(digit - b'0'));
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// libarchive writes names percent-encoded.
fn percent(name: &[u8]) -> Read<Vec<u8>> {
    let mut found = Vec::with_capacity(name.len());
    let mut at = 0;
    while at < name.len() {
        if name[at] == b'%' {
            let digits = name.get(at + 1..at + 3).and_then(|d| std::str::from_utf8(d).ok());
            let byte =
                digits.and_then(|d| u8::from_str_radix(d, 16).ok()).ok_or("xattr name is badly encoded")?;
            found.push(byte);
            at += 3;
        } else {
            found.push(name[at]);
            at += 1;
        }
    }
    Ok(found)
}

/// … and values in base64, without padding.
fn base64(value: &[u8]) -> Read<Vec<u8>> {
    let mut found = Vec::with_capacity(value.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    for &byte in value.iter().filter(|&&b| b != b'=') {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return Err("xattr value is no base64".to_owned()),
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            found.push((bits >> count & 0xff) as u8);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &[u8]) -> Read<Extensions> {
        let mut found = Extensions::default();
        found.read(body)?;
        Ok(found)
    }

    #[test]
    fn records_are_read_and_the_last_of_a_key_wins() {
        let found = read(b"9 path=a\n9 path=b\n12 uid=1000\n17 size=12345678\n").expect("good records");
        assert_eq!(found.path.as_deref(), Some(&b"b"[..]));
        assert_eq!(found.uid, Some(1000));
        assert_eq!(found.size, Some(12_345_678));
    }

    #[test]
    fn bad_records_are_refused() {
        for body in [
            &b"99 path=a\n"[..],
            b"8 path=a\n",
            b"9 path=ax",
            b"0 path=a\n",
            b"8 patha\n",
            b"5 =a\n",
            b"path=a\n",
            b"11 size=-1\n",
            b"12 size=1e3\n",
            b"29 size=99999999999999999999\n",
            b"13 mtime=abc\n",
            b"12 path=a\0b\n",
        ] {
            assert!(read(body).is_err(), "{}", body.escape_ascii());
        }
    }

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        assert_eq!(time(b"1.5"), Ok(Time { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(time(b"-1.25"), Ok(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(time(b"-3"), Ok(Time { seconds: -3, nanoseconds: 0 }));
        assert_eq!(time(b"7.1234567891"), Ok(Time { seconds: 7, nanoseconds: 123_456_789 }));
    }

    #[test]
    fn the_last_value_of_an_xattr_wins_at_the_place_of_the_first() {
        let found = read(b"22 SCHILY.xattr.u.a=1\n22 SCHILY.xattr.u.b=2\n22 SCHILY.xattr.u.a=3\n");
        let found = found.expect("good records").xattrs;
        assert_eq!(found, [(b"u.a".to_vec(), b"3".to_vec()), (b"u.b".to_vec(), b"2".to_vec())]);
    }

    #[test]
    fn libarchive_xattrs_are_decoded() {
        let found = read(b"35 LIBARCHIVE.xattr.user.a%3db=aGk\n").expect("good record");
        assert_eq!(found.xattrs, [(b"user.a=b".to_vec(), b"hi".to_vec())]);
    }
}
