//! Which contents a layer has, by SHA-256: how tables of contents name files (zstd:chunked, eStargz).
//!
//! The file `digests` of a layer's directory has a record for each of its files that is neither empty nor sparse, sorted:
//! the SHA-256 of the content, its size, and where it begins in the uncompressed tar, by which the index knows the file.
//! Behind them stands their BLAKE3. All of it is computed while the layer is unpacked; nothing is anybody's claim.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::index::{Record, What};
use super::layers::{LayerDirectory, read_index};
use crate::cas::DIGESTS as FILE;
use crate::digest::Digest;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"pyctrdD1";
const CHECKSUM_BYTES: usize = 32;
const RECORD_BYTES: usize = 48;

/// SHA-256 of a content.
pub type Sha256 = [u8; 32];

/// One content of a layer: what it hashes to, its bytes, and where it begins in the layer's tar.
pub(super) type Content = (Sha256, u64, u64);

/// Writes the file into a layer's directory.
pub(super) fn write(directory: BorrowedFd<'_>, mut contents: Vec<Content>) -> Result<()> {
    contents.sort_unstable();
    let mut bytes = Vec::with_capacity(MAGIC.len() + contents.len() * RECORD_BYTES + CHECKSUM_BYTES);
    bytes.extend_from_slice(MAGIC);
    for (sha256, size, offset) in &contents {
        bytes.extend_from_slice(sha256);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
    }
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, FILE, flags, Mode::from_raw_mode(0o600))
        .map_err(|e| Error::errno("create", FILE, e))?;
    File::from(fd).write_all(&bytes).map_err(|e| Error::io("write", FILE, &e))
}

/// The contents of a layer that are among the wanted. A layer that has no such file, or a damaged one, says nothing: what it
/// would say saves work, and no more.
fn read(layer: &Path, wanted: &HashSet<Sha256>) -> Result<Vec<Content>> {
    let path = layer.join(FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("read", path, &e)),
    };
    let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else { return Ok(Vec::new()) };
    if blake3::hash(body) != *checksum {
        return Ok(Vec::new());
    }
    let Some(records) = body.strip_prefix(MAGIC) else { return Ok(Vec::new()) };
    Ok(records
        .chunks_exact(RECORD_BYTES)
        .filter_map(|record| {
            let (sha256, rest) = record.split_first_chunk::<32>()?;
            let (size, offset) = rest.split_first_chunk::<8>()?;
            let offset = offset.first_chunk::<8>()?;
            let found = (*sha256, u64::from_le_bytes(*size), u64::from_le_bytes(*offset));
            wanted.contains(sha256).then_some(found)
        })
        .collect())
}

/// Contents that unpacked layers have, by SHA-256.
#[derive(Debug, Default)]
pub struct KnownFiles {
    layers: Vec<LayerDirectory>,
    files: HashMap<Sha256, (usize, Record)>,
}

impl KnownFiles {
    /// Looks for contents in some layers. One layer's index is in memory at a time, and of it only what is wanted stays.
    ///
    /// # Errors
    /// [`Error::Io`]. A layer that is gone or damaged has nothing.
    pub fn find<P: AsRef<Path>>(layers: &[P], wanted: &HashSet<Sha256>) -> Result<Self> {
        let mut found = Self::default();
        for layer in layers {
            let layer = layer.as_ref();
            let mut contents = read(layer, wanted)?;
            contents.retain(|(sha256, ..)| !found.files.contains_key(sha256));
            if contents.is_empty() {
                continue;
            }
            let index = match read_index(layer) {
                Ok(index) => index,
                Err(Error::NotFound { .. } | Error::Invalid { .. }) => continue,
                Err(e) => return Err(e),
            };
            let Ok(directory) = LayerDirectory::open_layer(layer, &index) else { continue };
            let by_offset: HashMap<u64, &Record> = index
                .records
                .iter()
                .filter(|record| record.what == What::File && !record.sparse)
                .filter_map(|record| record.offset.map(|offset| (offset, record)))
                .collect();
            let number = found.layers.len();
            for (sha256, size, offset) in contents {
                if let Some(record) = by_offset.get(&offset).filter(|record| record.size == size) {
                    found.files.insert(sha256, (number, (*record).clone()));
                }
            }
            found.layers.push(directory);
        }
        Ok(found)
    }

    /// Whether a content of this size is there.
    #[must_use]
    pub fn has(&self, sha256: &Sha256, size: u64) -> bool {
        self.files.get(sha256).is_some_and(|(_, record)| record.size == size)
    }

    /// A file that has a content, and from which byte on it does.
    ///
    /// # Errors
    /// [`Error::NotFound`] where it is not known; [`Error::Io`] and [`Error::Invalid`] where its layer lost it meanwhile.
    pub fn open(&self, sha256: &Sha256) -> Result<(File, u64)> {
        let (number, record) = self.files.get(sha256).ok_or_else(|| Error::NotFound {
            kind: "content",
            name: Digest::from_sha256(sha256).to_string(),
        })?;
        self.layers[*number].locate(record).map(|(file, start)| (file, start.unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::fresh::LayerWriter;
    use super::super::limits::Limits;
    use super::*;
    use crate::digest::{Algorithm, Hasher};

    fn sha256(content: &[u8]) -> Sha256 {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(content);
        hasher.finish().as_bytes().try_into().expect("32 bytes")
    }

    /// A file entry: what the header of the oldest format has.
    fn entry(name: &str, content: &[u8]) -> Vec<u8> {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut out = header.to_vec();
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    fn layer(directory: &Path, entries: &[(&str, &[u8])]) {
        let fd = crate::root::open_directory(rustix::fs::CWD, directory.as_os_str().as_encoded_bytes())
            .expect("a directory");
        let mut writer =
            LayerWriter::new(fd, Limits::default()).expect("an empty directory").with_file_digests();
        for (name, content) in entries {
            writer.write(&entry(name, content)).expect("good entry");
        }
        writer.write(&[0; 1024]).expect("end");
        writer.finish().expect("whole");
    }

    #[test]
    fn contents_are_found_by_their_digest_and_read() {
        let (one, two) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        layer(one.path(), &[("a", b"first"), ("b", b"second"), ("empty", b"")]);
        layer(two.path(), &[("c", b"second"), ("d", b"third")]);
        let wanted: HashSet<Sha256> = [&b"first"[..], b"third", b"absent", b""].map(sha256).into();
        let known = KnownFiles::find(&[one.path(), two.path()], &wanted).expect("readable");
        for content in [&b"first"[..], b"third"] {
            assert!(known.has(&sha256(content), content.len() as u64));
            let (mut file, start) = known.open(&sha256(content)).expect("there");
            let mut found = Vec::new();
            file.read_to_end(&mut found).expect("readable");
            assert_eq!((&found[..], start), (content, 0));
        }
        assert!(!known.has(&sha256(b"first"), 6), "of another size");
        for content in [&b"second"[..], b"absent", b""] {
            assert!(known.open(&sha256(content)).is_err(), "was not asked for, or is not there");
        }
    }

    #[test]
    fn a_file_that_a_later_entry_replaced_is_not_known() {
        let directory = tempfile::tempdir().expect("dir");
        layer(directory.path(), &[("a", b"before"), ("a", b"after!")]);
        let wanted: HashSet<Sha256> = [&b"before"[..], b"after!"].map(sha256).into();
        let known = KnownFiles::find(&[directory.path()], &wanted).expect("readable");
        assert!(known.has(&sha256(b"after!"), 6) && !known.has(&sha256(b"before"), 6));
    }

    #[test]
    fn a_damaged_or_missing_list_says_nothing() {
        let directory = tempfile::tempdir().expect("dir");
        layer(directory.path(), &[("a", b"first")]);
        let wanted: HashSet<Sha256> = [sha256(b"first")].into();
        let path = directory.path().join(FILE);
        let bytes = std::fs::read(&path).expect("there");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).expect("writable");
            let known = KnownFiles::find(&[directory.path()], &wanted).expect("readable");
            assert!(!known.has(&sha256(b"first"), 5), "byte {at}");
        }
        std::fs::remove_file(&path).expect("there");
        let known = KnownFiles::find(&[directory.path()], &wanted).expect("readable");
        assert!(!known.has(&sha256(b"first"), 5));
        let gone = directory.path().join("gone");
        assert!(KnownFiles::find(&[gone], &wanted).is_ok());
    }
}
