//! Names of entries: their components, and the markers of the image spec among them.

/// The longest name of one component that a file system holds.
const COMPONENT_MAX_BYTES: usize = 255;
/// The longest path that any program can use: `PATH_MAX`, less the NUL at its end.
pub(super) const PATH_MAX_BYTES: usize = 4095;

pub(super) const WHITEOUT: &[u8] = b".wh.";
const RESERVED: &[u8] = b".wh..wh.";
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the last component of a name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Last<'a> {
    /// Nothing but the directory that the rest names: the root, or what `..` leads to.
    Itself,
    /// An entry of this name.
    Name(&'a [u8]),
    /// The removal of this name from the layers below.
    Whiteout(&'a [u8]),
    /// The removal of all that the layers below have in this directory.
    Opaque,
    /// Aufs' own names, which are never made.
    Reserved,
}

/// A name split: the components of the parent, `.` and empty ones left out, and the last.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split<'a> {
    pub(super) parents: Vec<&'a [u8]>,
    pub(super) last: Last<'a>,
}

/// Refuses a path from the root that no program could use. Names alone are not enough: links that lead to the depth
/// of other links would make a tree as deep as an archive likes, of which every path is held in memory.
///
/// # Errors
/// As [`components`].
pub(super) fn check_length(bytes: usize) -> Result<(), &'static str> {
    if bytes > PATH_MAX_BYTES { Err("path is longer than 4095 bytes") } else { Ok(()) }
}

/// The components of a path, `..` among them.
///
/// # Errors
/// A path or component that no file system holds.
pub(super) fn components(name: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    check_length(name.len())?;
    if name.contains(&0) {
        return Err("path has a NUL");
    }
    let parts: Vec<&[u8]> =
        name.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.iter().any(|part| part.len() > COMPONENT_MAX_BYTES) {
        return Err("path has a component longer than 255 bytes");
    }
    Ok(parts)
}

/// Splits an entry's name.
///
/// # Errors
/// As [`components`]; a whiteout of nothing.
pub(super) fn split(name: &[u8]) -> Result<Split<'_>, &'static str> {
    let mut parents = components(name)?;
    let last = match parents.pop() {
        None => Last::Itself,
        Some(b"..") => {
            parents.push(b"..");
            Last::Itself
        }
        Some(OPAQUE) => Last::Opaque,
        Some(part) if part.starts_with(RESERVED) => Last::Reserved,
        Some(part) => match part.strip_prefix(WHITEOUT) {
            None => Last::Name(part),
            Some(b"" | b"." | b"..") => return Err("whiteout names nothing"),
            Some(hidden) => Last::Whiteout(hidden),
        },
    };
    Ok(Split { parents, last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_down_to_components() {
        let found = split(b"./a//b/./c").expect("fine");
        assert_eq!(found.parents, [b"a", b"b"]);
        assert_eq!(found.last, Last::Name(b"c"));
        assert_eq!(split(b"./").expect("fine").last, Last::Itself);
        assert_eq!(split(b"a/..").expect("fine").last, Last::Itself);
        assert!(split(&[b'x'; 256]).is_err());
        split(&[b'x'; 255]).expect("the longest component");
    }

    #[test]
    fn markers_are_told_from_names() {
        assert_eq!(split(b"a/.wh.b").expect("fine").last, Last::Whiteout(b"b"));
        assert_eq!(split(b".wh..wh..opq").expect("fine").last, Last::Opaque);
        assert_eq!(split(b".wh..wh.plnk").expect("fine").last, Last::Reserved);
        assert_eq!(split(b".wh.dir/x").expect("fine").last, Last::Name(b"x"));
        for nothing in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(split(nothing).is_err());
        }
    }
}
