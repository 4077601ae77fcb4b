//! POSIX ACLs as xattrs say them, judged as the kernel does where it sets one: an image has nobody else who would.

use rustix::io::Errno;

const VERSION: [u8; 4] = [2, 0, 0, 0];
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
const NOBODY: u32 = u32::MAX;

/// What an access ACL makes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// The permission bits that it means.
    pub(super) bits: u32,
    /// Whether it says more than these: otherwise file systems keep the bits alone.
    pub(super) kept: bool,
}

/// Looks at an ACL; none where it has no entries, which is the same as having none.
///
/// # Errors
/// What the kernel says to a wrong one.
pub(super) fn check(value: &[u8]) -> Result<Option<Access>, Errno> {
    let (version, entries) = value.split_at_checked(VERSION.len()).ok_or(Errno::INVAL)?;
    if version != VERSION {
        return Err(Errno::OPNOTSUPP);
    }
    let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
    if !rest.is_empty() {
        return Err(Errno::INVAL);
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut access = Access { bits: 0, kept: false };
    let (mut mask, mut last) = (None, 0);
    for &[tag, tag_high, perm, perm_high, a, b, c, d] in entries {
        let tag = u16::from_le_bytes([tag, tag_high]);
        let perm = u32::from(u16::from_le_bytes([perm, perm_high]));
        let named = matches!(tag, USER | GROUP);
        // In this order, and only named users and groups more than once.
        let follows = if named { tag >= last } else { tag > last };
        let known = matches!(tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER);
        if !known || !follows || perm > 7 || (named && u32::from_le_bytes([a, b, c, d]) == NOBODY) {
            return Err(Errno::INVAL);
        }
        if (tag > USER_OBJ && last < USER_OBJ) || (tag > GROUP_OBJ && last < GROUP_OBJ) {
            return Err(Errno::INVAL);
        }
        match tag {
            USER_OBJ => access.bits |= perm << 6,
            GROUP_OBJ => access.bits |= perm << 3,
            OTHER => access.bits |= perm,
            MASK => (mask, access.kept) = (Some(perm), true),
            _ => access.kept = true,
        }
        // A named entry means nothing without a mask.
        if tag == OTHER && mask.is_none() && access.kept {
            return Err(Errno::INVAL);
        }
        last = tag;
    }
    if last != OTHER {
        return Err(Errno::INVAL);
    }
    if let Some(mask) = mask {
        access.bits = access.bits & 0o707 | mask << 3;
    }
    Ok(Some(access))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_vec();
        for (tag, perm, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    #[test]
    fn an_acl_is_judged_as_the_kernel_judges_it() {
        let cases = [
            vec![(USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 0, NOBODY)],
            vec![
                (USER_OBJ, 6, 0),
                (USER, 7, 5),
                (USER, 5, 6),
                (GROUP_OBJ, 4, 0),
                (MASK, 1, 0),
                (OTHER, 4, 0),
            ],
            vec![(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (GROUP, 7, 9), (MASK, 7, 0), (OTHER, 0, 0)],
            vec![(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (MASK, 2, 0), (OTHER, 0, 0)],
            vec![(USER_OBJ, 6, 0), (USER, 7, 5), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)],
            vec![(USER_OBJ, 6, 0), (USER, 7, NOBODY), (GROUP_OBJ, 4, 0), (MASK, 4, 0), (OTHER, 4, 0)],
            vec![(GROUP_OBJ, 4, 0), (USER_OBJ, 6, 0), (OTHER, 4, 0)],
            vec![(USER_OBJ, 6, 0), (OTHER, 4, 0)],
            vec![(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0)],
            vec![(USER_OBJ, 6, 0), (GROUP_OBJ, 8, 0), (OTHER, 4, 0)],
            vec![(USER_OBJ, 6, 0), (USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0)],
            vec![(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 4, 0), (0x40, 4, 0)],
            vec![],
        ];
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("file");
        for (number, case) in cases.iter().enumerate() {
            let value = acl(case);
            std::fs::write(&path, b"").expect("made");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o4531))
                .expect("set");
            let name = "system.posix_acl_access";
            let kernel = rustix::fs::setxattr(&path, name, &value, rustix::fs::XattrFlags::empty());
            if kernel == Err(Errno::OPNOTSUPP) {
                return; // a file system without ACLs has no opinion
            }
            let ours = check(&value);
            assert_eq!(ours.map(|_| ()), kernel, "case {number}");
            let stat = rustix::fs::stat(&path).expect("stat");
            let kept = rustix::fs::getxattr(&path, name, &mut [0u8; 256]).is_ok();
            if let Ok(access) = ours {
                let expected = access.unwrap_or(Access { bits: 0o531, kept: false });
                assert_eq!((stat.st_mode & 0o777, kept), (expected.bits, expected.kept), "case {number}");
            }
            std::fs::remove_file(&path).expect("removed");
        }
        assert_eq!(check(&[1, 0, 0, 0]), Err(Errno::OPNOTSUPP));
        assert_eq!(check(&acl(&[])[..3]), Err(Errno::INVAL));
    }
}
