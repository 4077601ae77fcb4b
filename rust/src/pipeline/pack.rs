//! A tree into a layer, in one pass: tar, SHA-256 of it, compression, SHA-256 of that, file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::measured::Measured;
use crate::compression::{Compression, Encoder};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::tar::diff::Plan;

/// Handed on at once: large enough for hashes and system calls, and always as much, so that what a compressor makes of
/// it does not depend on how files were read.
const BLOCK_BYTES: usize = 1 << 18;
/// As any file that a user makes.
const FILE_MODE: u32 = 0o644;

/// Whether whoever waits has had enough.
pub type Stop<'a> = &'a (dyn Fn() -> bool + Sync);

/// A layer that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
    /// Of the file's bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// Of the tar.
    pub diff_id: Digest,
    /// Its bytes.
    pub tar_bytes: u64,
    /// Its entries.
    pub entries: u64,
}

/// Writes a planned layer to a file, which appears, or takes the place of one, when it is whole.
///
/// `clamp`: seconds since 1970 that no time in it may be after. `durable`: it is flushed before it gets its name. `stop` is
/// asked for each block; what it answers with true ends as an error.
///
/// # Errors
/// As [`Plan::write`]; nothing is left then.
pub fn pack(
    plan: &Plan<'_>,
    target: &Path,
    compression: Compression,
    clamp: Option<i64>,
    durable: bool,
    stop: Stop<'_>,
) -> Result<Packed> {
    let draft = Draft::create(target)?;
    let packed = pass(plan, &draft.file, compression, clamp, target, stop)?;
    if durable {
        draft.file.sync_data().map_err(|e| Error::io("fdatasync", target, &e))?;
    }
    draft.publish()?;
    Ok(packed)
}

fn pass(
    plan: &Plan<'_>,
    file: &File,
    compression: Compression,
    clamp: Option<i64>,
    target: &Path,
    stop: Stop<'_>,
) -> Result<Packed> {
    let failed = |e: io::Error| Error::io("write", target, &e);
    let blob = Measured::new(file);
    let encoder = Encoder::new(compression, None, Blocks::new(blob))?;
    let tar = Stopping { out: Measured::new(encoder), stop };
    let tar = plan.write(Blocks::new(tar), clamp)?.finish().map_err(failed)?.out;
    let (encoder, diff_id, tar_bytes) = tar.finish();
    let (_, digest, size) = encoder.finish().and_then(Blocks::finish).map_err(failed)?.finish();
    Ok(Packed { digest, size, diff_id, tar_bytes, entries: plan.entries() })
}

/// Asks, before it hands anything on, whether anybody still wants it.
struct Stopping<'a, W> {
    out: W,
    stop: Stop<'a>,
}

impl<W: Write> Write for Stopping<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.stop)() {
            return Err(Errno::CANCELED.into());
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Gathers what is written into blocks of one size. (`BufWriter` hands large writes on as they come.)
struct Blocks<W: Write> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Blocks<W> {
    fn new(out: W) -> Self {
        Self { out, block: Vec::with_capacity(BLOCK_BYTES) }
    }

    fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&self.block)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Blocks<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..count]);
        if self.block.len() == BLOCK_BYTES {
            self.out.write_all(&self.block)?;
            self.block.clear();
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // a block that is not full waits for the rest
    }
}

/// A file without its final name yet; it is removed where it does not get it.
struct Draft<'a> {
    directory: OwnedFd,
    name: String,
    target: &'a Path,
    file: File,
    published: bool,
}

impl<'a> Draft<'a> {
    fn create(target: &'a Path) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        if target.file_name().is_none() {
            return Err(Error::Invalid {
                field: "dest",
                value: target.display().to_string(),
                reason: "expected the path of a file".to_owned(),
            });
        }
        let parent = target.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(CWD, parent, flags, Mode::empty())
            .map_err(|e| Error::errno("open", parent, e))?;
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!(".pyctrd-layer-{}-{number}", std::process::id());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match rustix::fs::openat(&directory, &name, flags, Mode::from_raw_mode(FILE_MODE)) {
                Ok(file) => {
                    return Ok(Self { directory, name, target, file: File::from(file), published: false });
                }
                Err(Errno::EXIST) => {} // left by a process that was killed
                Err(e) => return Err(Error::errno("create", target, e)),
            }
        }
    }

    fn publish(mut self) -> Result<()> {
        let name = self.target.file_name().unwrap_or_default();
        rustix::fs::renameat(&self.directory, &self.name, &self.directory, name.as_bytes())
            .map_err(|e| Error::errno("rename", self.target, e))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.published {
            // The error that brought us here is what the caller must hear of.
            let _ = rustix::fs::unlinkat(self.directory.as_fd(), &self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root::Root;
    use crate::tar::diff::{Form, plan};
    use crate::tar::{Below, Ownership};

    #[test]
    fn what_cannot_be_written_leaves_nothing_and_what_can_is_whole() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).expect("made");
        std::fs::write(tree.join("file"), b"content").expect("written");
        let root = Root::open(&tree).expect("opens");
        let planned = plan(&root, Form::Whole, &Below::Nothing, &Ownership::Keep).expect("planned");
        let out = dir.path().join("out");
        std::fs::create_dir(&out).expect("made");
        let target = out.join("layer");
        let first = pack(&planned, &target, Compression::Gzip, None, true, &|| false).expect("packed");
        let again = pack(&planned, &target, Compression::Gzip, None, false, &|| false).expect("packed");
        assert_eq!(first, again);
        assert_eq!(std::fs::metadata(&target).expect("there").len(), first.size);
        std::fs::write(tree.join("file"), b"another content").expect("written");
        assert!(matches!(
            pack(&planned, &out.join("other"), Compression::None, None, false, &|| false),
            Err(Error::Conflict { .. })
        ));
        assert_eq!(std::fs::read_dir(&out).expect("listed").count(), 1);
    }
}
