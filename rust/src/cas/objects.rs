//! File objects: contents of regular files by their BLAKE3, one copy for all layers of all images.
//!
//! `objects/<2 hex>/<62 hex>`, 0444, written once. A layer's objects are staged beside the layer and get their names when
//! it is published, after the flush and before the layer has its own: what has a name is whole and durable, and an image
//! names nothing that a power cut could take. What no layer names is garbage, for [`super::sweep_objects`] to remove.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom};
use rustix::io::Errno;

use super::PRIVATE_MODE;
use crate::error::{Error, Result};
use crate::root::{Root, names, open_directory};

/// Where objects are.
pub const OBJECTS: &str = "objects";
/// Objects are written once and never changed, and nobody can run them.
const OBJECT_MODE: u32 = 0o444;
/// Contents up to this are looked up before anything is written: what the store has costs no file.
const HELD_MAX_BYTES: usize = 1 << 20;
/// Read at a time.
const CHUNK_BYTES: usize = 128 << 10;
/// What a sparse file's name is made of in place of all its bytes: hashing holes would take as long as their size says.
const SPARSE_CONTEXT: &str =
    "pyctrd object of a sparse file: its size, then number and bytes of each block of 4096 that is not zero";
const BLOCK_BYTES: usize = 4096;
/// Behind the name of a staged object of a sparse file.
const SPARSE_SUFFIX: &str = "-sparse";

/// An object's name.
pub type Key = [u8; 32];

/// Where an object is, below the directory of all of them.
#[must_use]
pub fn object_path(key: &Key) -> String {
    let hex = blake3::Hash::from_bytes(*key).to_hex();
    format!("{}/{}", &hex[..2], &hex[2..])
}

/// Opens an object for reading.
///
/// # Errors
/// The kernel's; ENOENT where it is not there.
pub fn open_object(objects: BorrowedFd<'_>, key: &Key) -> std::result::Result<File, Errno> {
    // NONBLOCK: a fifo in its place would be waited for.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(objects, object_path(key), flags, Mode::empty()).map(File::from)
}

/// Whether an object is there, whole and under its right name: a regular file of this size whose content was digested.
///
/// # Errors
/// [`Error::Io`], but for a disk that cannot give the bytes back: then it has lost them.
pub fn is_object(objects: BorrowedFd<'_>, key: &Key, size: u64, sparse: bool) -> Result<bool> {
    let failed = |operation, e: &std::io::Error| Error::io(operation, object_path(key), e);
    let file = match open_object(objects, key) {
        Ok(file) => file,
        Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
        Err(e) => return Err(Error::errno("open", object_path(key), e)),
    };
    if !is_regular(&file, size).map_err(|e| Error::errno("stat", object_path(key), e))? {
        return Ok(false);
    }
    match if sparse { sparse_key(&file, size) } else { content_key(&file) } {
        Ok(actual) => Ok(actual == *key),
        Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(false),
        Err(e) => Err(failed("read", &e)),
    }
}

fn is_regular(file: &File, size: u64) -> std::result::Result<bool, Errno> {
    let stat = rustix::fs::fstat(file)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && u64::try_from(stat.st_size) == Ok(size))
}

fn content_key(file: &File) -> std::io::Result<Key> {
    let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; CHUNK_BYTES], 0);
    loop {
        let count = read_at(file, &mut buffer, at)?;
        hasher.update(&buffer[..count]);
        at += count as u64;
        if count < buffer.len() {
            return Ok(hasher.finalize().into());
        }
    }
}

/// The name of a sparse file's content, whichever of its zeros are holes.
fn sparse_key(file: &File, size: u64) -> std::io::Result<Key> {
    let mut hasher = blake3::Hasher::new_derive_key(SPARSE_CONTEXT);
    hasher.update(&size.to_le_bytes());
    let (mut buffer, mut at) = (vec![0; CHUNK_BYTES], 0);
    while at < size {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data / BLOCK_BYTES as u64 * BLOCK_BYTES as u64,
            Err(Errno::NXIO) => break, // a hole to the end
            Err(e) => return Err(e.into()),
        };
        let count = read_at(file, &mut buffer, at)?;
        for (block, bytes) in (at / BLOCK_BYTES as u64..).zip(buffer[..count].chunks(BLOCK_BYTES)) {
            if bytes.iter().any(|&byte| byte != 0) {
                hasher.update(&block.to_le_bytes());
                hasher.update(bytes);
            }
        }
        at += buffer.len() as u64;
    }
    Ok(hasher.finalize().into())
}

/// Reads until the buffer is full or the file ends.
fn read_at(file: &File, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Takes files' contents in, and stages those that the store has not.
#[derive(Debug)]
pub struct ObjectWriter {
    objects: OwnedFd,
    staging: OwnedFd,
    /// Those that are there, or are staged here.
    known: HashSet<Key>,
    spilled: u64,
}

/// A content on its way; dropping it leaves at most a staged file, which goes with its directory.
#[derive(Debug)]
pub struct NewObject {
    hasher: Box<blake3::Hasher>,
    held: Vec<u8>,
    /// Where it is once it is too long to be held, and its name among what is staged.
    file: Option<(File, String)>,
    sparse: bool,
}

/// What became of a content.
#[derive(Debug)]
pub enum Stored {
    /// It is short, and whoever asked keeps it.
    Held(Vec<u8>),
    /// It is an object.
    Object(Key),
}

impl NewObject {
    fn new(sparse: bool) -> Self {
        Self { hasher: Box::new(blake3::Hasher::new()), held: Vec::new(), file: None, sparse }
    }
}

fn staged_wrong(e: &std::io::Error) -> Error {
    Error::io("write", "object", e)
}

impl ObjectWriter {
    /// Over the directory of all objects, and an empty one on the same file system for those that are new.
    #[must_use]
    pub fn new(objects: OwnedFd, staging: OwnedFd) -> Self {
        Self { objects, staging, known: HashSet::new(), spilled: 0 }
    }

    /// Starts a content; of a sparse one, bytes may come at any offset.
    #[must_use]
    pub fn begin(&self, sparse: bool) -> NewObject {
        NewObject::new(sparse)
    }

    /// Takes its next bytes, or for a sparse one those at an offset.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, object: &mut NewObject, offset: u64, bytes: &[u8]) -> Result<()> {
        if object.sparse {
            let (file, _) = self.spill(object)?;
            return file.write_all_at(bytes, offset).map_err(|e| staged_wrong(&e));
        }
        object.hasher.update(bytes);
        if object.file.is_none() && object.held.len() + bytes.len() <= HELD_MAX_BYTES {
            object.held.extend_from_slice(bytes);
            return Ok(());
        }
        let (file, _) = self.spill(object)?;
        file.write_all(bytes).map_err(|e| staged_wrong(&e))
    }

    /// Moves what is held to a staged file.
    fn spill<'a>(&mut self, object: &'a mut NewObject) -> Result<&'a mut (File, String)> {
        if object.file.is_none() {
            let name = format!("new-{}", self.spilled);
            self.spilled += 1;
            let mut file = self.create(&name)?;
            file.write_all(&object.held).map_err(|e| staged_wrong(&e))?;
            object.held = Vec::new();
            object.file = Some((file, name));
        }
        object.file.as_mut().ok_or(Error::Cancelled) // it was just made
    }

    fn create(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.staging, name, flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| Error::errno("create", "object", e))
    }

    /// Ends a content of `size` bytes: one of at most `inline` bytes is handed back, any other is an object from here on.
    /// Its digest is given beside, but for a sparse file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(&mut self, mut object: NewObject, size: u64, inline: u64) -> Result<(Stored, Option<Key>)> {
        let digest = (!object.sparse).then(|| object.hasher.finalize().into());
        if size <= inline {
            return Ok((Stored::Held(self.take_back(&mut object, size)?), digest));
        }
        if object.sparse {
            let (file, _) = self.spill(&mut object)?;
            file.set_len(size).map_err(|e| staged_wrong(&e))?;
        }
        let key = match (&object.file, digest) {
            (Some((file, _)), None) => sparse_key(file, size).map_err(|e| staged_wrong(&e))?,
            (_, digest) => digest.unwrap_or_default(), // it has one where it is not sparse
        };
        if !self.known.contains(&key) {
            if !self.has(&key, size, &object)? {
                self.stage(&key, object)?;
            } else if let Some((_, name)) = object.file {
                self.unlink(&name)?;
            }
            self.known.insert(key);
        } else if let Some((_, name)) = object.file {
            self.unlink(&name)?;
        }
        Ok((Stored::Object(key), digest))
    }

    /// The bytes of a short content, its holes filled.
    fn take_back(&mut self, object: &mut NewObject, size: u64) -> Result<Vec<u8>> {
        let Some((file, name)) = object.file.take() else {
            object.held.resize(usize::try_from(size).unwrap_or(0), 0);
            return Ok(std::mem::take(&mut object.held));
        };
        file.set_len(size).map_err(|e| staged_wrong(&e))?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0).map_err(|e| staged_wrong(&e))?;
        self.unlink(&name)?;
        Ok(bytes)
    }

    fn unlink(&self, name: &str) -> Result<()> {
        rustix::fs::unlinkat(&self.staging, name, AtFlags::empty())
            .map_err(|e| Error::errno("remove", "object", e))
    }

    /// Whether the store has the content, byte for byte: a damaged object is never given to another layer.
    fn has(&self, key: &Key, size: u64, object: &NewObject) -> Result<bool> {
        if object.file.is_some() {
            return is_object(self.objects.as_fd(), key, size, object.sparse);
        }
        let file = match open_object(self.objects.as_fd(), key) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP) => return Ok(false),
            Err(e) => return Err(Error::errno("open", object_path(key), e)),
        };
        if !is_regular(&file, size).map_err(|e| Error::errno("stat", object_path(key), e))? {
            return Ok(false);
        }
        let mut there = vec![0; object.held.len()];
        match file.read_exact_at(&mut there, 0) {
            Ok(()) => Ok(there == object.held),
            // Cut off meanwhile, or lost by the disk.
            Err(_) => Ok(false),
        }
    }

    fn stage(&self, key: &Key, object: NewObject) -> Result<()> {
        let mut name = blake3::Hash::from_bytes(*key).to_hex().to_string();
        if object.sparse {
            name.push_str(SPARSE_SUFFIX);
        }
        let file = if let Some((file, spilled)) = object.file {
            rustix::fs::renameat(&self.staging, &spilled, &self.staging, &name)
                .map_err(|e| Error::errno("rename", "object", e))?;
            file
        } else {
            let mut file = self.create(&name)?;
            file.write_all(&object.held).map_err(|e| staged_wrong(&e))?;
            file
        };
        rustix::fs::fchmod(&file, Mode::from_raw_mode(OBJECT_MODE))
            .map_err(|e| Error::errno("chmod", "object", e))
    }

    /// Opens an object that is there or was staged, for reading.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(&self, key: &Key) -> Result<File> {
        let hex = blake3::Hash::from_bytes(*key).to_hex().to_string();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for name in [hex.clone(), hex + SPARSE_SUFFIX] {
            match rustix::fs::openat(&self.staging, name, flags, Mode::empty()) {
                Ok(file) => return Ok(File::from(file)),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(Error::errno("open", "object", e)),
            }
        }
        open_object(self.objects.as_fd(), key).map_err(|e| Error::errno("open", object_path(key), e))
    }
}

/// Gives flushed objects their names; the directories in which they stand now. The caller flushes these.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn place_objects(root: &Root, staging: BorrowedFd<'_>) -> Result<HashSet<String>> {
    let wrong = |operation, e| Error::errno(operation, OBJECTS, e);
    let staged = match open_directory(staging, OBJECTS.as_bytes()) {
        Ok(staged) => staged,
        Err(Errno::NOENT) => return Ok(HashSet::new()),
        Err(e) => return Err(wrong("open", e)),
    };
    let objects = root.directory(OBJECTS)?;
    let mut touched = HashSet::new();
    for name in names(staged.as_fd()).map_err(|e| wrong("list", e))? {
        let name = name.to_string_lossy().into_owned();
        let Some((key, sparse)) = parse_staged(&name) else { continue };
        place_object(staged.as_fd(), &name, objects.as_fd(), &key, sparse)?;
        touched.insert(name[..2].to_owned());
    }
    Ok(touched)
}

fn parse_staged(name: &str) -> Option<(Key, bool)> {
    let hex = name.strip_suffix(SPARSE_SUFFIX);
    let key = blake3::Hash::from_hex(hex.unwrap_or(name)).ok()?;
    Some((key.into(), hex.is_some()))
}

fn place_object(
    staged: BorrowedFd<'_>,
    name: &str,
    objects: BorrowedFd<'_>,
    key: &Key,
    sparse: bool,
) -> Result<()> {
    let path = object_path(key);
    let failed = |operation, e| Error::errno(operation, &path, e);
    loop {
        match rustix::fs::renameat_with(staged, name, objects, &path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(objects, &path[..2], Mode::from_raw_mode(PRIVATE_MODE)) {
                    Ok(()) => {}
                    // Made just now: only then the rename was right to fail.
                    Err(Errno::EXIST) if rustix::fs::statat(staged, name, AtFlags::empty()).is_ok() => {}
                    Err(e) => return Err(failed("make directory", e)),
                }
            }
            Err(Errno::EXIST) => break,
            Err(e) => return Err(failed("rename", e)),
        }
    }
    // Another made it meanwhile, or it was damaged when it was looked at: then ours takes its place in one step.
    let stat = rustix::fs::statat(staged, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("stat", e))?;
    if is_object(objects, key, u64::try_from(stat.st_size).unwrap_or(0), sparse)? {
        return Ok(());
    }
    rustix::fs::renameat(staged, name, objects, &path).map_err(|e| failed("rename", e))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::garbage::{
        ObjectsLock, Swept, count_objects, list_objects, sweep_in_turns, sweep_objects,
    };
    use super::*;

    struct Store {
        directory: tempfile::TempDir,
        root: Root,
    }

    impl Store {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a temporary directory");
            for name in [OBJECTS, "staging", "staging/objects"] {
                std::fs::create_dir(directory.path().join(name)).expect("made");
            }
            let root = Root::open(directory.path()).expect("opens");
            Self { directory, root }
        }

        fn writer(&self) -> ObjectWriter {
            let open = |path| self.root.directory(path).expect("opens");
            ObjectWriter::new(open(OBJECTS), open("staging/objects"))
        }

        fn publish(&self) -> bool {
            place_objects(&self.root, self.root.directory("staging").expect("opens").as_fd()).expect("placed")
                != HashSet::new()
        }

        fn staged(&self) -> usize {
            std::fs::read_dir(self.directory.path().join("staging/objects")).expect("listed").count()
        }

        fn take(&self, content: &[u8]) -> Key {
            let mut writer = self.writer();
            let mut object = writer.begin(false);
            for part in content.chunks(300_000) {
                writer.write(&mut object, 0, part).expect("written");
            }
            match writer.finish(object, content.len() as u64, 0).expect("finished") {
                (Stored::Object(key), Some(digest)) => {
                    assert_eq!(key, digest);
                    key
                }
                other => unreachable!("{other:?}"),
            }
        }

        fn path(&self, key: &Key) -> std::path::PathBuf {
            self.directory.path().join(OBJECTS).join(object_path(key))
        }
    }

    #[test]
    fn a_content_is_written_once_whatever_its_length() {
        let store = Store::new();
        for content in [vec![1; 10], vec![2; HELD_MAX_BYTES], vec![3; 3 * HELD_MAX_BYTES]] {
            let key = store.take(&content);
            assert_eq!(key, *blake3::hash(&content).as_bytes());
            assert_eq!(store.staged(), 1);
            assert!(store.publish());
            assert_eq!(std::fs::read(store.path(&key)).expect("read"), content);
            assert_eq!(store.take(&content), key);
            assert_eq!(store.staged(), 0);
            assert!(!store.publish());
        }
    }

    #[test]
    fn short_contents_are_handed_back() {
        let store = Store::new();
        let mut writer = store.writer();
        let mut object = writer.begin(true);
        writer.write(&mut object, 3, b"ab").expect("written");
        let (stored, digest) = writer.finish(object, 7, 7).expect("finished");
        assert!(matches!(stored, Stored::Held(bytes) if bytes == b"\0\0\0ab\0\0"));
        assert_eq!(digest, None);
        assert_eq!(store.staged(), 0);
    }

    #[test]
    fn a_damaged_object_gives_way_to_the_right_bytes() {
        let store = Store::new();
        for content in [vec![1; 10], vec![3; 3 * HELD_MAX_BYTES]] {
            let key = store.take(&content);
            store.publish();
            let path = store.path(&key);
            let mut permissions = std::fs::metadata(&path).expect("there").permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
            std::fs::set_permissions(&path, permissions).expect("set");
            std::fs::write(&path, vec![9; content.len()]).expect("damaged");
            assert!(
                !is_object(
                    store.root.directory(OBJECTS).expect("opens").as_fd(),
                    &key,
                    content.len() as u64,
                    false
                )
                .expect("looked at")
            );
            assert_eq!(store.take(&content), key);
            assert!(store.publish());
            assert_eq!(std::fs::read(&path).expect("read"), content);
        }
    }

    #[test]
    fn a_sparse_file_has_one_name_whichever_of_its_zeros_are_holes() {
        let store = Store::new();
        let size = 5 << 20;
        let mut writer = store.writer();
        let mut keys = Vec::new();
        for zeros in [false, true] {
            let mut object = writer.begin(true);
            if zeros {
                writer.write(&mut object, 0, &vec![0; 1 << 20]).expect("written");
            }
            writer.write(&mut object, 4 << 20, b"data").expect("written");
            keys.push(writer.finish(object, size, 4096).expect("finished"));
        }
        let key = |at: usize| match keys[at] {
            (Stored::Object(key), None) => key,
            ref other => unreachable!("{other:?}"),
        };
        assert_eq!(key(0), key(1));
        store.publish();
        let objects = store.root.directory(OBJECTS).expect("opens");
        assert!(is_object(objects.as_fd(), &key(0), size, true).expect("looked at"));
        assert!(!is_object(objects.as_fd(), &key(0), size, false).expect("looked at"));
    }

    #[test]
    fn a_sweep_leaves_what_is_kept_and_what_is_no_object() {
        let store = Store::new();
        let (kept, gone) = (store.take(b"kept"), store.take(b"gone"));
        store.publish();
        let stray = store.directory.path().join(OBJECTS).join("ab-other");
        std::fs::write(&stray, b"").expect("written");
        let shared = ObjectsLock::share(&store.root).expect("locked");
        assert!(ObjectsLock::try_alone(&store.root).expect("tried").is_none());
        drop(shared);
        let alone = ObjectsLock::try_alone(&store.root).expect("tried").expect("free");
        let counted = count_objects(&store.root, |key| *key == kept).expect("counted");
        assert_eq!((counted.kept, counted.removed), (1, 1));
        assert!(counted.kept_bytes > 0 && store.path(&gone).exists());
        assert_eq!(sweep_objects(&store.root, None, || panic!("not alone")).expect("tried"), None);
        drop(alone);
        let named = || Ok(Some(HashSet::from([kept])));
        let late = sweep_objects(&store.root, Some(Instant::now()), named).expect("swept").expect("alone");
        assert_eq!(late, Swept { ended_early: true, ..Swept::default() });
        let swept = sweep_objects(&store.root, None, named).expect("swept").expect("alone");
        assert_eq!(swept, Swept { kept_bytes: 0, ..counted });
        assert!(store.path(&kept).exists() && stray.exists() && !store.path(&gone).exists());
        assert_eq!(list_objects(&store.root).expect("listed"), HashSet::from([kept]));
    }

    #[test]
    fn a_sweep_ends_where_somebody_is_about_to_write_a_layer() {
        let store = Store::new();
        let objects: Vec<_> = (0..500).map(|n: u32| store.take(&n.to_le_bytes())).collect();
        store.publish();
        let root = Root::open(store.directory.path()).expect("opens");
        let (asked, hears) = std::sync::mpsc::channel();
        let writer = std::thread::spawn(move || {
            hears.recv().expect("asked");
            let shared = ObjectsLock::share(&root).expect("locked");
            while hears.recv().is_ok() {} // until the sweep is over
            drop(shared);
        });
        let named = || {
            let _ = asked.send(()); // once is enough
            Ok(Some(HashSet::new()))
        };
        let swept = sweep_in_turns(&store.root, None, Duration::ZERO, named).expect("swept").expect("alone");
        assert!(swept.ended_early && swept.removed < 500);
        drop(asked);
        writer.join().expect("no panic");
        assert_eq!(objects.iter().filter(|key| !store.path(key).exists()).count() as u64, swept.removed);
    }

    #[test]
    fn what_a_new_layer_names_between_two_turns_stays() {
        let store = Store::new();
        let objects: Vec<_> = (0..40).map(|n: u32| store.take(&n.to_le_bytes())).collect();
        store.publish();
        let mut turns = 0;
        let named = || {
            turns += 1;
            // From the third turn on a layer names all that is there still.
            Ok(match turns {
                1 => Some(HashSet::new()),
                3 => Some(list_objects(&store.root).expect("listed")),
                _ => None,
            })
        };
        let swept = sweep_in_turns(&store.root, None, Duration::ZERO, named).expect("swept").expect("alone");
        assert_eq!((swept.removed, swept.kept, swept.ended_early), (1, 39, false));
        assert_eq!(objects.iter().filter(|key| store.path(key).exists()).count(), 39);
    }
}
