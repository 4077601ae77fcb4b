//! Loop devices, for kernels that mount no image straight from its file.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};

use crate::error::{Error, Result};

const GET_FREE: Opcode = 0x4C82;
const CONFIGURE: Opcode = 0x4C0A;
const READ_ONLY: u32 = 1;
/// It is let go of when the last that has it open closes it: the mount is one of them.
const AUTOCLEAR: u32 = 4;
/// Two that ask at once are told the same device, and one of them asks again.
const ATTEMPTS: u32 = 64;

/// A device over a file, for as long as this or a mount has it open.
#[derive(Debug)]
pub(super) struct Loop {
    number: u32,
    _device: OwnedFd,
}

impl Loop {
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }
}

/// The kernel's `struct loop_config`, with a `struct loop_info64` in it.
#[repr(C)]
struct Config {
    fd: u32,
    block_bytes: u32,
    /// Device, inode, device number, offset, limit of the size: nothing that is wanted here.
    numbers: [u64; 5],
    number: u32,
    encryption: [u32; 2],
    flags: u32,
    name: [u8; 64],
    cipher: [u8; 96],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// Asks for the number of a free device.
struct GetFree;

#[allow(unsafe_code, reason = "the trait is rustix' way to declare a system call")]
// SAFETY: the call reads and writes no memory; its answer is the number that it returns.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        number: IoctlOutput,
        _: *mut c_void,
    ) -> std::result::Result<Self::Output, Errno> {
        u32::try_from(number).map_err(|_| Errno::NODEV)
    }
}

/// Makes a file a read-only block device.
///
/// # Errors
/// [`Error::Unsupported`] where there are no loop devices; [`Error::Io`].
pub(super) fn attach(image: &Path) -> Result<Loop> {
    let wrong = |e| match e {
        Errno::NOENT | Errno::NODEV | Errno::ACCESS | Errno::PERM => Error::Unsupported {
            feature: "mounting an image".to_owned(),
            needs: "Linux 6.12 or later, or loop devices".to_owned(),
        },
        e => Error::errno("attach loop device", image, e),
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(CWD, image, flags, Mode::empty()).map_err(|e| Error::errno("open", image, e))?;
    let control = rustix::fs::openat(CWD, "/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(wrong)?;
    for _ in 0..ATTEMPTS {
        let number = free(&control).map_err(wrong)?;
        let device =
            rustix::fs::openat(CWD, format!("/dev/loop{number}"), flags, Mode::empty()).map_err(wrong)?;
        match configure(&device, &file) {
            Ok(()) => return Ok(Loop { number, _device: device }),
            Err(Errno::BUSY) => {} // another was faster
            Err(e) => return Err(wrong(e)),
        }
    }
    Err(wrong(Errno::BUSY))
}

#[allow(unsafe_code, reason = "a system call that rustix does not know")]
fn free(control: &OwnedFd) -> std::result::Result<u32, Errno> {
    // SAFETY: the call touches no memory of ours.
    unsafe { ioctl(control, GetFree) }
}

#[allow(unsafe_code, reason = "a system call that rustix does not know")]
fn configure(device: &OwnedFd, file: &OwnedFd) -> std::result::Result<(), Errno> {
    let config = Config {
        fd: u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?,
        block_bytes: 0,
        numbers: [0; 5],
        number: 0,
        encryption: [0; 2],
        flags: READ_ONLY | AUTOCLEAR,
        name: [0; 64],
        cipher: [0; 96],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: `Config` is laid out as the kernel's structure, which the call only reads.
    unsafe { ioctl(device, Setter::<{ CONFIGURE }, Config>::new(config)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_is_as_long_as_the_kernels() {
        assert_eq!(size_of::<Config>(), 304);
    }
}
