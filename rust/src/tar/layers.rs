//! Unpacked layers, opened to read files from: from a layer's tree, from its pack and the store's objects, or from blocks.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, SealFlags, SeekFrom};
use rustix::io::Errno;

use super::index::{self, Index, Place, Record};
use crate::cas::{OBJECTS, object_path, open_object};
use crate::erofs::BLOCK_BYTES;
use crate::error::{Error, Result};
use crate::root::{Root, to_path};

/// Short contents, one after the other, in the directory of a layer that was unpacked as objects.
pub const PACK: &str = "pack";
/// All contents, one after the other, in the directory of a layer that was unpacked as blocks.
pub const BLOCKS: &str = "blocks";
/// What is copied out of blocks and is no longer than this is in memory; it is otherwise a file without a name.
const IN_MEMORY_BYTES: u64 = 1 << 20;
/// In an ingest's directory.
const STAGED_INDEX: &str = "layer/index";
/// Beside the layer: what a kill leaves of it goes with the ingest.
const JOINED_INDEX: &str = "joined";
/// Copied at a time.
const CHUNK_BYTES: usize = 256 << 10;
/// A store is so many directories above a layer: `layers/<algorithm>/<hex>`.
const LEVELS: usize = 3;

/// An unpacked layer, to read files from.
#[derive(Debug)]
pub struct LayerDirectory {
    path: PathBuf,
    files: Files,
}

/// Where its files' contents are.
#[derive(Debug)]
enum Files {
    Tree(Root),
    /// What it has of a pack and of blocks, and where the store's objects are: that is opened when one is asked for.
    Apart {
        pack: Option<Part>,
        blocks: Option<Part>,
        objects: PathBuf,
    },
}

/// Contents of many files in one.
#[derive(Debug)]
struct Part {
    name: &'static str,
    file: File,
    bytes: u64,
}

/// Opens unpacked layers and reads their indexes, lowest first.
///
/// # Errors
/// [`Error::NotFound`] for a layer that is not there, [`Error::Invalid`] for a damaged index.
pub fn open_layers<P: AsRef<Path>>(paths: &[P]) -> Result<(Vec<LayerDirectory>, Vec<Index>)> {
    let mut layers = Vec::with_capacity(paths.len());
    let mut indexes = Vec::with_capacity(paths.len());
    for path in paths {
        let path = path.as_ref();
        let index = read_index(path)?;
        layers.push(LayerDirectory::open_layer(path, &index)?);
        indexes.push(index);
    }
    Ok((layers, indexes))
}

/// Reads the index of an unpacked layer.
///
/// # Errors
/// As [`open_layers`].
pub fn read_index(layer: &Path) -> Result<Index> {
    let path = layer.join("index");
    let bytes = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { kind: "layer", name: layer.display().to_string() },
        _ => Error::io("read", &path, &e),
    })?;
    index::decode(&bytes, &path.display().to_string())
}

/// Whether an unpacked layer has a pack and whether it has blocks: what is asked of each layer of each pull, at one look
/// where the index says it in front. It is not checked then.
///
/// # Errors
/// As [`open_layers`].
pub fn read_forms(layer: &Path) -> Result<(bool, bool)> {
    let mut head = [0; index::FORMS_BYTES];
    let told = File::open(layer.join("index"))
        .and_then(|mut file| file.read_exact(&mut head))
        .ok()
        .and_then(|()| index::read_forms(&head));
    match told {
        Some(forms) => Ok(forms),
        None => read_index(layer).map(|index| (index.pack.is_some(), index.blocks.is_some())),
    }
}

/// Has the index of a staged layer say as well where contents are in the forms that it is there in already.
///
/// # Errors
/// [`Error::Io`]; [`Error::Invalid`] for a damaged staged index. One that is there and damaged is not gone by.
pub fn join_forms(staging: BorrowedFd<'_>, there: &Path) -> Result<()> {
    let other = match read_index(there) {
        Ok(other) => other,
        Err(Error::NotFound { .. } | Error::Invalid { .. }) => return Ok(()),
        Err(e) => return Err(e),
    };
    let wrong = |operation, e: &std::io::Error| Error::io(operation, STAGED_INDEX, e);
    let open = |name: &str, flags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(staging, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("open", name, e))
    };
    let mut bytes = Vec::new();
    open(STAGED_INDEX, OFlags::RDONLY)?.read_to_end(&mut bytes).map_err(|e| wrong("read", &e))?;
    let Index { mut records, mut pack, mut blocks, .. } = index::decode(&bytes, STAGED_INDEX)?;
    let own = (pack, blocks);
    if !index::join(&mut records, &mut pack, &mut blocks, &other) || (pack, blocks) == own {
        return Ok(());
    }
    let mut joined = open(JOINED_INDEX, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    index::write(&mut joined, &records, pack.as_ref(), blocks)?;
    rustix::fs::renameat(staging, JOINED_INDEX, staging, STAGED_INDEX)
        .map_err(|e| Error::errno("rename", JOINED_INDEX, e))
}

impl LayerDirectory {
    /// Opens a layer whose index was read.
    pub(super) fn open_layer(path: &Path, index: &Index) -> Result<Self> {
        if index.pack.is_none() && index.blocks.is_none() {
            let tree = Root::open(path.join("tree"))?;
            return Ok(Self { path: path.to_owned(), files: Files::Tree(tree) });
        }
        let directory = Root::open(path)?;
        let open = |name: &'static str| {
            let file = directory
                .resolve_plain(name.as_bytes(), OFlags::RDONLY | OFlags::NONBLOCK)
                .map(File::from)
                .map_err(|e| Error::errno("open", path.join(name), e))?;
            let bytes = file.metadata().map_err(|e| Error::io("read", path.join(name), &e))?.len();
            Ok(Part { name, file, bytes })
        };
        let pack = index.pack.map(|_| open(PACK)).transpose()?;
        let blocks = index.blocks.map(|_| open(BLOCKS)).transpose()?;
        let objects = path.ancestors().nth(LEVELS).unwrap_or(path).join(OBJECTS);
        Ok(Self { path: path.to_owned(), files: Files::Apart { pack, blocks, objects } })
    }

    /// Whether its files are still there: of a layer that was removed nothing has a name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn is_there(&self) -> Result<bool> {
        let held = match &self.files {
            Files::Tree(tree) => tree.as_fd(),
            Files::Apart { pack: Some(held), .. } | Files::Apart { blocks: Some(held), .. } => {
                held.file.as_fd()
            }
            Files::Apart { .. } => return Ok(false), // it is opened with one of them
        };
        let stat = rustix::fs::fstat(held).map_err(|e| Error::errno("stat", self.path(), e))?;
        Ok(stat.st_nlink > 0)
    }

    /// Where it is: the same for the same layer.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file of the layer for reading.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(&self, record: &Record) -> Result<File> {
        let (file, start) = self.locate(record)?;
        let wrong = |e: &std::io::Error| Error::io("open", to_path(&record.path), e);
        match start {
            None => Ok(file),
            Some(start) if record.size <= IN_MEMORY_BYTES => {
                in_memory(&file, start, record.size).map_err(|e| wrong(&e))
            }
            Some(start) => self.copy_out(&file, start, record.size).map_err(|e| wrong(&e)),
        }
    }

    /// A file that has a file's content, and from which byte on it does; with no such byte it is all of it.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] where the layer lacks such bytes.
    pub(super) fn locate(&self, record: &Record) -> Result<(File, Option<u64>)> {
        match &self.files {
            Files::Tree(tree) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                Ok((tree.open_in(&record.path, flags, Mode::empty())?.into(), None))
            }
            Files::Apart { pack, blocks, objects } => {
                if let (Place::Object(key), Some(_)) = (record.place, pack) {
                    let object = open_object(Root::open(objects)?.as_fd(), &key)
                        .map_err(|e| Error::errno("open", objects.join(object_path(&key)), e))?;
                    return Ok((object, None));
                }
                let (part, start) = self.part_of(record, pack.as_ref(), blocks.as_ref())?;
                let file = part.file.try_clone();
                Ok((file.map_err(|e| Error::io("read", self.path().join(part.name), &e))?, Some(start)))
            }
        }
    }

    /// What has a file's content among others', and from which byte on.
    fn part_of<'p>(
        &self,
        record: &Record,
        pack: Option<&'p Part>,
        blocks: Option<&'p Part>,
    ) -> Result<(&'p Part, u64)> {
        let (part, start) = match (record.place, pack, record.extent, blocks) {
            (Place::Packed(start), Some(pack), ..) => (pack, start),
            (_, _, Some(extent), Some(blocks)) => (blocks, extent.start),
            // An empty file is nowhere.
            (_, Some(held), ..) | (_, _, _, Some(held)) if record.size == 0 => (held, 0),
            _ => {
                return Err(Error::NotFound {
                    kind: "content",
                    name: to_path(&record.path).display().to_string(),
                });
            }
        };
        // What the index claims is no more than what is there: memory does not grow by a claim.
        if start.checked_add(record.size).is_none_or(|end| end > part.bytes) {
            return Err(Error::Invalid {
                field: if part.name == PACK { "layer pack" } else { "layer blocks" },
                value: self.path().display().to_string(),
                reason: "is shorter than its index says; unpack the layer again".to_owned(),
            });
        }
        Ok((part, start))
    }

    /// A short content, as an image has it in itself.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub(super) fn content(&self, record: &Record) -> Result<Vec<u8>> {
        if record.size == 0 {
            return Ok(Vec::new());
        }
        let read = |file: &File, start: u64| {
            let mut bytes = vec![0; usize::try_from(record.size).unwrap_or(0)];
            file.read_exact_at(&mut bytes, start)
                .map_err(|e| Error::io("read", to_path(&record.path), &e))?;
            Ok(bytes)
        };
        if let (Files::Apart { pack, blocks, .. }, Place::Packed(_) | Place::Tree) =
            (&self.files, record.place)
        {
            // Without a descriptor of its own: there are very many.
            let (part, start) = self.part_of(record, pack.as_ref(), blocks.as_ref())?;
            return read(&part.file, start);
        }
        let (file, start) = self.locate(record)?;
        read(&file, start.unwrap_or(0))
    }

    /// Which blocks of a sparse file among the layer's blocks have data, as far as the file system knows.
    ///
    /// # Errors
    /// As [`Self::locate`].
    pub(super) fn data_blocks(&self, record: &Record) -> Result<Vec<(u64, u64)>> {
        let (file, start) = self.locate(record)?;
        let (start, mut ranges) = (start.unwrap_or(0), Vec::new());
        let (mut at, end) = (start, start + record.size);
        let wrong = |e| Error::errno("seek", self.path().join(BLOCKS), e);
        while at < end {
            let data = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
                Ok(data) if data < end => data,
                Ok(_) | Err(Errno::NXIO) => break, // a hole to its end
                Err(e) => return Err(wrong(e)),
            };
            at = rustix::fs::seek(&file, SeekFrom::Hole(data)).map_err(wrong)?.min(end);
            ranges.push(((data - start) / BLOCK_BYTES, (at - start).div_ceil(BLOCK_BYTES)));
        }
        Ok(ranges)
    }

    /// A part of a file as a file of its own, without a name, beside it; where nothing may be written, in memory.
    fn copy_out(&self, file: &File, start: u64, size: u64) -> std::io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let Ok(unnamed) = rustix::fs::openat(CWD, &self.path, flags, Mode::from_raw_mode(0o400)) else {
            return in_memory(file, start, size);
        };
        let mut unnamed = File::from(unnamed);
        copy_range(file, start, size, &mut unnamed)?;
        // Who gets it can read it, and no more.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&unnamed));
        Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?.into())
    }
}

/// Appends a part of a file to another; by the file system where it can.
///
/// # Errors
/// The kernel's; of a file that is too short.
pub(super) fn copy_range(from: &File, start: u64, size: u64, to: &mut File) -> std::io::Result<()> {
    let (mut at, end) = (start, start + size);
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut at), &*to, None, most) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(_) => break, // not between these two
        }
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    while at < end {
        let most = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
        from.read_exact_at(&mut buffer[..most], at)?;
        to.write_all(&buffer[..most])?;
        at += most as u64;
    }
    Ok(())
}

/// A part of a file as a file of its own that nobody changes.
fn in_memory(from: &File, start: u64, size: u64) -> std::io::Result<File> {
    let made = rustix::fs::memfd_create(PACK, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(made);
    copy_range(from, start, size, &mut file)?;
    file.rewind()?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}
