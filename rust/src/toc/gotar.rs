//! Headers as Go's archive/tar writes them, which nearly all writers of eStargz use.
//!
//! A guess: a table does not say of which format a header is, nor parts of seconds. A wrong one ends in another `diff_id`.

use super::table::Entry;

pub(super) const BLOCK_BYTES: usize = 512;
const NAME_BYTES: usize = 100;

/// The header of an entry with a size; None where it cannot be told from what a table has.
pub(super) fn header(entry: &Entry, user: &[u8], group: &[u8]) -> Option<Vec<u8>> {
    let flag = match &entry.kind[..] {
        b"reg" => b'0',
        b"hardlink" => b'1',
        b"symlink" => b'2',
        b"char" => b'3',
        b"block" => b'4',
        b"dir" => b'5',
        b"fifo" => b'6',
        _ => return None,
    };
    // Their order among other records is known; whose values they are in which archive is not.
    if entry.has_xattrs || !entry.name.is_ascii() || !entry.link.is_ascii() || entry.link.len() > NAME_BYTES {
        return None;
    }
    let mut out = Vec::new();
    if entry.name.len() > NAME_BYTES {
        extended(&entry.name, &mut out)?;
    }
    let mut block = [0; BLOCK_BYTES];
    block[156] = flag;
    text(&mut block[..NAME_BYTES], &entry.name);
    text(&mut block[157..257], &entry.link);
    octal(&mut block[100..108], entry.mode)?;
    octal(&mut block[108..116], entry.uid)?;
    octal(&mut block[116..124], entry.gid)?;
    octal(&mut block[124..136], i64::try_from(entry.size).ok()?)?;
    octal(&mut block[136..148], seconds(&entry.time)?)?;
    if user.len() > 32 || group.len() > 32 || !user.is_ascii() || !group.is_ascii() {
        return None;
    }
    text(&mut block[265..297], user);
    text(&mut block[297..329], group);
    octal(&mut block[329..337], entry.device.0)?;
    octal(&mut block[337..345], entry.device.1)?;
    seal(&mut block)?;
    out.extend_from_slice(&block);
    Some(out)
}

/// Zeros behind so many bytes of content.
pub(super) fn padding(size: u64) -> &'static [u8] {
    let over = usize::try_from(size % BLOCK_BYTES as u64).unwrap_or(0);
    &[0; BLOCK_BYTES][..(BLOCK_BYTES - over) % BLOCK_BYTES]
}

/// The extended header in front of an entry whose name is too long for its own.
fn extended(name: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (directory, file) = match name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&name[..at], &name[at + 1..]),
        None => (&b""[..], name),
    };
    let join = |parts: [&[u8]; 3]| -> Vec<u8> {
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(&b'/')
    };
    let mut own = join([directory, b"PaxHeaders.0", file]);
    own.truncate(NAME_BYTES);
    // The length counts its own digits.
    let rest = name.len() + " path=\n".len();
    let length = (1..6).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n)?;
    let mut block = [0; BLOCK_BYTES];
    block[156] = b'x';
    text(&mut block[..NAME_BYTES], &own);
    for field in [100..108, 108..116, 116..124, 136..148] {
        octal(&mut block[field], 0)?;
    }
    octal(&mut block[124..136], i64::try_from(length).ok()?)?;
    seal(&mut block)?;
    out.extend_from_slice(&block);
    out.extend_from_slice(format!("{length} path=").as_bytes());
    out.extend_from_slice(name);
    out.push(b'\n');
    out.extend_from_slice(padding(length as u64));
    Some(())
}

/// Magic, version and checksum.
fn seal(block: &mut [u8; BLOCK_BYTES]) -> Option<()> {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: i64 = block.iter().map(|byte| i64::from(*byte)).sum();
    octal(&mut block[148..155], sum)
}

fn text(field: &mut [u8], value: &[u8]) {
    let count = value.len().min(field.len());
    field[..count].copy_from_slice(&value[..count]);
    // A name that is cut may not look like a directory's.
    if value.len() > field.len() && field.last() == Some(&b'/') {
        let kept = field.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
        field[kept] = 0;
    }
}

fn octal(field: &mut [u8], value: i64) -> Option<()> {
    let digits = format!("{:0width$o}", u64::try_from(value).ok()?, width = field.len() - 1);
    let (end, start) = field.split_last_mut()?;
    (digits.len() == start.len()).then(|| start.copy_from_slice(digits.as_bytes()))?;
    *end = 0;
    Some(())
}

/// Seconds since 1970 of `YYYY-MM-DDTHH:MM:SSZ` (RFC 3339); of nothing, none.
fn seconds(time: &[u8]) -> Option<i64> {
    if time.is_empty() {
        return Some(0);
    }
    let marks: Vec<(usize, u8)> = vec![(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'Z')];
    if time.len() != 20 || marks.iter().any(|(at, mark)| time[*at] != *mark) {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = &time[from..to];
        digits.iter().all(u8::is_ascii_digit).then_some(())?;
        std::str::from_utf8(digits).ok()?.parse().ok()
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Years from March on, so that a leap day is a year's last; 719,468 days from 1 March of year 0 to 1970.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leaps = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    let days = 365 * year + leaps + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(((days * 24 + number(11, 13)?) * 60 + number(14, 16)?) * 60 + number(17, 19)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_from_1970() {
        for (text, expected) in [
            (&b""[..], Some(0)),
            (b"1970-01-01T00:00:00Z", Some(0)),
            (b"2000-02-29T12:34:56Z", Some(951_827_696)),
            (b"2024-12-31T23:59:59Z", Some(1_735_689_599)),
            (b"2100-03-01T00:00:00Z", Some(4_107_542_400)),
            (b"1969-12-31T23:59:59Z", Some(-1)),
            (b"2024-01-01T00:00:00+01:00", None),
            (b"2024-13-01T00:00:00Z", None),
            (b"2024-1a-01T00:00:00Z", None),
        ] {
            assert_eq!(seconds(text), expected, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn padding_fills_the_last_block() {
        assert_eq!([0, 1, 511, 512, 513].map(|size| padding(size).len()), [0, 511, 1, 0, 511]);
    }
}
