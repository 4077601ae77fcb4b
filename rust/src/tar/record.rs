//! Owner, mode and type written down in an xattr of a file that has others: how a tree that belongs to one user says
//! what it is an image of.
//!
//! The form is that of containers/storage (`force_mask`) and fuse-overlayfs, which Podman reads: `user.containers.
//! override_stat` holds `uid:gid:mode:type`. Files and directories can have it; devices and pipes become empty files that
//! do, and of symbolic links, which the kernel lets have no `user.` xattr, the owner is lost. Xattrs that a user may not set
//! stand beside it under the same prefix, as fuse-overlayfs has it for `security.`.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::entry::Kind;
use super::facts::{Facts, Xattrs};
use super::metadata::{Attributes, Done, Maker, applicable, is_mark};
use super::pax::Time;
use crate::error::{Error, Result};

/// What all names of records begin with: from an archive none may come.
pub(super) const PREFIX: &[u8] = b"user.containers.override_";
/// Owner, mode and type.
const STAT: &[u8] = b"user.containers.override_stat";
/// More than any record has: two numbers of 32 bits, a mode, a type with two more numbers.
const STAT_MAX_BYTES: usize = 128;

/// How a record that cannot be read is told apart from the kernel's refusals: no file system says this.
pub(super) const BAD_RECORD: Errno = Errno::PROTO;

/// What a directory is recorded as that no entry lists.
pub(super) const IMPLIED: Attributes<'static> =
    Attributes { mode: 0o755, uid: 0, gid: 0, mtime: Time { seconds: 0, nanoseconds: 0 }, xattrs: &[] };

/// The mode that something really gets: its user's alone, without set-id bits, which would be that user's.
pub(super) fn mode_on_disk(kind: Kind, mode: u32) -> u32 {
    match kind {
        Kind::Directory => 0o700,
        Kind::File if mode & 0o111 != 0 => 0o700,
        _ => 0o600,
    }
}

/// What something really gets of what is recorded.
pub(super) fn on_disk(kind: Kind, recorded: &Attributes<'_>, maker: Maker) -> Attributes<'static> {
    Attributes { mode: mode_on_disk(kind, recorded.mode), mtime: recorded.mtime, ..maker.implied() }
}

/// Records what an open file or directory stands for.
pub(super) fn write(fd: BorrowedFd<'_>, kind: Kind, device: (u32, u32), attributes: &Attributes<'_>) -> Done {
    let set = |name: &[u8], value: &[u8]| {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()).map_err(|e| ("set xattr", e))
    };
    set(STAT, format(kind, device, attributes).as_bytes())?;
    for (name, value) in applicable(attributes.xattrs, kind) {
        if name.starts_with(b"user.") { set(name, value)? } else { set(&[PREFIX, name].concat(), value)? }
    }
    Ok(())
}

/// Records of a directory that was there before what it is read as without a record, if it has none.
pub(super) fn write_if_missing(fd: BorrowedFd<'_>) -> Done {
    match rustix::fs::fgetxattr(fd, STAT, &mut [0u8; 0]) {
        Ok(_) | Err(Errno::RANGE) => return Ok(()),
        Err(Errno::NODATA) => {}
        Err(e) => return Err(("get xattr", e)),
    }
    let stat = rustix::fs::fstat(fd).map_err(|e| ("stat", e))?;
    write(fd, Kind::Directory, (0, 0), &Attributes { mode: stat.st_mode & 0o7777, ..IMPLIED })
}

/// Records the directory that all goes into, before anything does: readers look there whether there are records.
pub(super) fn begin(root: BorrowedFd<'_>, path: &std::path::Path) -> Result<()> {
    write_if_missing(root).map_err(|(operation, errno)| match errno {
        Errno::OPNOTSUPP => Error::Unsupported {
            feature: format!("ownership \"recorded\" in {}", path.display()),
            needs: "a file system that keeps user. xattrs".to_owned(),
        },
        errno => Error::errno(operation, path, errno),
    })
}

/// containers/storage's text: decimal ids, at least four octal digits, a word for the type.
fn format(kind: Kind, (major, minor): (u32, u32), attributes: &Attributes<'_>) -> String {
    let Attributes { uid, gid, mode, .. } = attributes;
    let owner = format!("{uid}:{gid}:{mode:04o}");
    match kind {
        Kind::Directory => format!("{owner}:dir"),
        Kind::Symlink => format!("{owner}:symlink"),
        Kind::Fifo => format!("{owner}:pipe"),
        Kind::Block => format!("{owner}:block-{major}-{minor}"),
        Kind::Character => format!("{owner}:char-{major}-{minor}"),
        Kind::File | Kind::Hardlink => format!("{owner}:file"),
    }
}

/// Puts what is recorded of a name in the place of what it is on disk. False for a socket, which no archive holds.
///
/// Without a record it is root's, with its own mode: what the user made there later, and symbolic links.
pub(super) fn read(facts: &mut Facts, xattrs: &mut Xattrs) -> std::result::Result<bool, Errno> {
    (facts.uid, facts.gid) = (0, 0);
    let mut is_layered = true;
    for (name, value) in std::mem::take(xattrs) {
        if name == STAT {
            is_layered = parse(&value, facts).ok_or(BAD_RECORD)?;
        } else if let Some(own) = name.strip_prefix(PREFIX) {
            if !is_mark(own) {
                xattrs.push((own.to_vec(), value));
            }
        } else {
            xattrs.push((name, value));
        }
    }
    xattrs.sort_unstable();
    Ok(is_layered)
}

/// Reads a record into facts; None where it says nothing that can be, of this file. False for a socket.
fn parse(value: &[u8], facts: &mut Facts) -> Option<bool> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() < STAT_MAX_BYTES)?;
    let mut parts = text.split(':');
    let (uid, gid, mode) = (parts.next()?, parts.next()?, parts.next()?);
    let id = |text: &str| text.parse().ok().filter(|&id| id != u32::MAX); // which is nobody's
    (facts.uid, facts.gid) = (id(uid)?, id(gid)?);
    facts.mode = u32::from_str_radix(mode, 8).ok()? & 0o7777;
    // Older writers leave the type out: then it is what it looks like.
    let Some(word) = parts.next() else { return Some(true) };
    let (word, numbers) = word.split_once('-').unwrap_or((word, ""));
    let kind = match word {
        "file" => Kind::File,
        "dir" => Kind::Directory,
        "pipe" => Kind::Fifo,
        "block" => Kind::Block,
        "char" => Kind::Character,
        "socket" => return (facts.kind == Kind::File).then_some(false),
        _ => return None,
    };
    // Only an empty file stands for something else.
    let stands_for = facts.kind == Kind::File && facts.size == 0 && kind != Kind::Directory;
    if kind != facts.kind && !stands_for {
        return None;
    }
    if matches!(kind, Kind::Block | Kind::Character) {
        let (major, minor) = numbers.split_once('-')?;
        let number = |text: &str, bits: u32| text.parse().ok().filter(|&number: &u32| number >> bits == 0);
        facts.device = (number(major, 12)?, number(minor, 20)?);
    }
    facts.kind = kind;
    Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kind: Kind, size: u64) -> Facts {
        Facts { size, mode: 0o600, uid: 1000, gid: 1000, ..Facts::new(kind, (1, 1), 1) }
    }

    fn read_one(record: &[u8], mut facts: Facts) -> std::result::Result<(bool, Facts), Errno> {
        let mut xattrs = vec![(STAT.to_vec(), record.to_vec())];
        read(&mut facts, &mut xattrs).map(|layered| (layered, facts))
    }

    #[test]
    fn the_text_is_that_of_containers_storage() {
        let attributes = |mode| Attributes { mode, uid: 1005, gid: 1016, ..IMPLIED };
        assert_eq!(format(Kind::File, (0, 0), &attributes(0o644)), "1005:1016:0644:file");
        assert_eq!(format(Kind::File, (0, 0), &attributes(0o4755)), "1005:1016:4755:file");
        assert_eq!(format(Kind::Directory, (0, 0), &attributes(0)), "1005:1016:0000:dir");
        assert_eq!(format(Kind::Fifo, (0, 0), &attributes(0o666)), "1005:1016:0666:pipe");
        assert_eq!(format(Kind::Block, (8, 0), &attributes(0o600)), "1005:1016:0600:block-8-0");
        assert_eq!(format(Kind::Character, (10, 11), &attributes(0o600)), "1005:1016:0600:char-10-11");
    }

    #[test]
    fn what_was_written_is_read() {
        for (kind, on_disk) in [
            (Kind::File, Kind::File),
            (Kind::Directory, Kind::Directory),
            (Kind::Fifo, Kind::File),
            (Kind::Block, Kind::File),
            (Kind::Character, Kind::File),
        ] {
            let device =
                if matches!(kind, Kind::Block | Kind::Character) { (259, 1_048_575) } else { (0, 0) };
            let attributes = Attributes { mode: 0o6751, uid: u32::MAX - 1, gid: 7, ..IMPLIED };
            let record = format(kind, device, &attributes);
            let (layered, found) = read_one(record.as_bytes(), facts(on_disk, 0)).expect("read");
            assert!(layered);
            let owner = (found.kind, found.device, found.mode, found.uid, found.gid);
            assert_eq!(owner, (kind, device, 0o6751, u32::MAX - 1, 7));
        }
    }

    #[test]
    fn other_writers_records_are_read() {
        let (_, found) =
            read_one(b"5:6:0100755", facts(Kind::File, 9)).expect("with no type, and its bits in the mode");
        assert_eq!((found.kind, found.mode, found.uid, found.gid), (Kind::File, 0o755, 5, 6));
        assert!(!read_one(b"5:6:0700:socket", facts(Kind::File, 0)).expect("read").0);
    }

    #[test]
    fn a_record_that_cannot_be_is_no_record() {
        for record in [
            &b""[..],
            b"0:0",
            b"a:0:0644:file",
            b"-1:0:0644:file",
            b"0:0:0899:file",
            b"0:0:0644:door",
            b"0:0:0644:dir",
            b"0:0:0644:char",
            b"0:0:0644:char-1",
            b"0:0:0644:char-1-x",
            b"4294967295:0:0644:file",
            b"0:4294967296:0644:file",
            b"0:0:0644:char-4096-0",
            b"0:0:0644:block-0-1048576",
            b"\xff:0:0644:file",
        ] {
            assert_eq!(read_one(record, facts(Kind::File, 0)).map(|_| ()), Err(BAD_RECORD), "{record:?}");
        }
        // Content would be lost, and a directory is none of these.
        assert_eq!(read_one(b"0:0:0644:pipe", facts(Kind::File, 1)).map(|_| ()), Err(BAD_RECORD));
        assert_eq!(read_one(b"0:0:0644:file", facts(Kind::Directory, 0)).map(|_| ()), Err(BAD_RECORD));
    }

    #[test]
    fn without_a_record_it_is_roots() {
        let mut found = facts(Kind::Symlink, 0);
        let mut xattrs = vec![(b"user.k".to_vec(), b"v".to_vec())];
        assert_eq!(read(&mut found, &mut xattrs), Ok(true));
        assert_eq!((found.uid, found.gid, found.mode), (0, 0, 0o600));
        assert_eq!(xattrs, [(b"user.k".to_vec(), b"v".to_vec())]);
    }

    #[test]
    fn xattrs_beside_it_are_read_but_for_marks() {
        let named = |name: &str| ([PREFIX, name.as_bytes()].concat(), b"v".to_vec());
        let mut xattrs = vec![
            named("trusted.overlay.opaque"),
            named("stat"),
            named("security.capability"),
            named("stats"),
        ];
        xattrs[1].1 = b"0:0:0644:file".to_vec();
        read(&mut facts(Kind::File, 0), &mut xattrs).expect("read");
        let names: Vec<_> = xattrs.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [b"security.capability".to_vec(), b"stats".to_vec()]);
    }

    #[test]
    fn nobody_else_gets_anything() {
        for mode in 0..=0o7777 {
            for kind in [Kind::File, Kind::Directory, Kind::Fifo, Kind::Character, Kind::Block] {
                let real = mode_on_disk(kind, mode);
                assert_eq!((real & 0o600, real & !0o700), (0o600, 0), "{mode:o}");
            }
        }
    }
}
