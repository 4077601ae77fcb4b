//! Tables of contents: which bytes of a blob come to which file's content.

use super::estargz::Headers;
use super::json::Json;
use super::{check, expand, refuse};
use crate::digest::{Algorithm, Digest};
use crate::error::Result;
use crate::tar::Limits;
use crate::tar::digests::Sha256;

/// Fifty thousand files or so: what can be in memory beside everything else. A layer with a larger table is taken whole.
const TABLE_MAX_BYTES: u64 = 16 << 20;
/// The only version that there is, of both formats.
const VERSION: i64 = 1;
const DIGEST_PREFIX: &str = "sha256:";

/// A file's content in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Its first compressed byte.
    pub(super) start: u64,
    /// The one behind its last.
    pub(super) end: u64,
    /// Bytes of the content, at least one.
    pub(super) size: u64,
    /// Of the content.
    pub(super) sha256: Sha256,
}

/// What stands between the files.
#[derive(Debug)]
pub(super) enum Between {
    /// Frames of the blob, between those of the files.
    Frames,
    /// A tar-split has it, which came with the table.
    Split(Vec<u8>),
    /// It follows a file's content in the same frame; what would follow one that is not fetched is made from the table.
    Headers(Headers),
}

/// What a blob holds, file by file.
#[derive(Debug)]
pub struct Table {
    pub(super) files: Vec<Span>,
    /// Behind the last byte of the blob that comes to any of the tar, but for the table itself.
    pub(super) end: u64,
    pub(super) between: Between,
}

/// Reads a zstd:chunked layer's table.
///
/// # Arguments
/// * `table`: as it stands in the blob, compressed; must hash to `digest`.
/// * `split`: the tar-split, likewise; its digest is in the table. None where the layer has none.
/// * `end`: where the first skippable frame behind the tar begins.
///
/// # Errors
/// [`crate::error::Error::DigestMismatch`]; [`crate::error::Error::Invalid`] for a table that cannot be gone by.
///
/// # Spec
/// containers/storage, docs/containers-storage-zstd-chunked.md
pub fn zstd_chunked(
    table: &[u8],
    digest: &Digest,
    split: Option<&[u8]>,
    end: u64,
    limits: Limits,
) -> Result<Table> {
    check("table of contents", table, digest)?;
    let text = expand(table, TABLE_MAX_BYTES)?;
    let (mut files, mut split_digest) = (Vec::new(), None);
    let most = limits.entries;
    read(
        &text,
        most,
        |key, json| {
            if key != b"tarSplitDigest" {
                return json.skip();
            }
            split_digest = Some(json.string()?);
            Ok(())
        },
        |entry| {
            if entry.kind == b"reg" && entry.size > 0 {
                let span =
                    Span { start: entry.offset, end: entry.end, size: entry.size, sha256: entry.digest()? };
                files.push(span);
            }
            Ok(())
        },
    )?;
    let between = match split {
        None => Between::Frames,
        Some(split) => {
            if let Some(digest) = split_digest {
                let text = String::from_utf8_lossy(&digest).into_owned();
                check("tar-split", split, &text.parse()?)?;
            }
            Between::Split(split.to_vec())
        }
    };
    Table { files, end, between }.checked()
}

/// Reads an eStargz layer's table.
///
/// # Arguments
/// * `member`: the gzip member that has the table, as it stands in the blob.
/// * `digest`: of the table itself, uncompressed.
/// * `start`: where in the blob the member begins.
///
/// # Errors
/// As [`zstd_chunked`].
///
/// # Spec
/// containerd/stargz-snapshotter, docs/estargz.md
pub fn estargz(member: &[u8], digest: &Digest, start: u64, limits: Limits) -> Result<Table> {
    let tar = expand(member, TABLE_MAX_BYTES)?;
    let text = super::estargz::table_in(&tar)?;
    check("table of contents", text, digest)?;
    let mut files: Vec<Span> = Vec::new();
    let mut headers = Headers::new();
    read(
        text,
        limits.entries,
        |_, json| json.skip(),
        |entry| {
            if entry.inner > 0 {
                return Err(refuse("several files are in one member"));
            }
            if entry.kind == b"chunk" {
                return Ok(());
            }
            headers.add(entry)?;
            if entry.kind == b"reg" && entry.size > 0 {
                if let Some(last) = files.last_mut() {
                    last.end = entry.offset;
                }
                files.push(Span {
                    start: entry.offset,
                    end: start,
                    size: entry.size,
                    sha256: entry.digest()?,
                });
            }
            Ok(())
        },
    )?;
    headers.end(tar);
    Table { files, end: start, between: Between::Headers(headers) }.checked()
}

impl Table {
    /// Every file behind the one before, and all of them in front of the end: whatever is fetched is inside the blob, and
    /// nothing twice.
    fn checked(self) -> Result<Self> {
        let (mut at, mut total) = (0, 0u64);
        for file in &self.files {
            if file.start < at || file.end <= file.start || file.end > self.end {
                return Err(refuse(format!(
                    "a file is at bytes {} to {}, expected from {at} on and before {}",
                    file.start, file.end, self.end
                )));
            }
            at = file.end;
            total = total.checked_add(file.size).ok_or_else(|| refuse("its files are too large"))?;
        }
        Ok(self)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum() // checked when it was read
    }
}

/// One entry, as far as it is looked at.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) kind: Vec<u8>,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) user: Vec<u8>,
    pub(super) group: Vec<u8>,
    pub(super) time: Vec<u8>,
    pub(super) device: (i64, i64),
    pub(super) size: u64,
    pub(super) has_xattrs: bool,
    offset: u64,
    inner: u64,
    end: u64,
    digest: Vec<u8>,
}

impl Entry {
    fn digest(&self) -> Result<Sha256> {
        let text = String::from_utf8_lossy(&self.digest);
        let digest: Digest = text.parse()?;
        if digest.algorithm() != Algorithm::Sha256 {
            return Err(refuse(format!("a file's digest is none of {DIGEST_PREFIX}")));
        }
        digest.as_bytes().try_into().map_err(|_| refuse("a file's digest is too short"))
    }

    fn read(json: &mut Json<'_>) -> Result<Self> {
        let mut entry = Self::default();
        json.object(|json, key| {
            match key {
                b"type" => entry.kind = json.string()?,
                b"name" => entry.name = json.string()?,
                b"linkName" => entry.link = json.string()?,
                b"mode" => entry.mode = json.integer()?,
                b"uid" => entry.uid = json.integer()?,
                b"gid" => entry.gid = json.integer()?,
                b"userName" => entry.user = json.string()?,
                b"groupName" => entry.group = json.string()?,
                b"modtime" => entry.time = json.string()?,
                b"devMajor" => entry.device.0 = json.integer()?,
                b"devMinor" => entry.device.1 = json.integer()?,
                b"size" => entry.size = json.unsigned()?,
                b"offset" => entry.offset = json.unsigned()?,
                b"innerOffset" => entry.inner = json.unsigned()?,
                b"endOffset" => entry.end = json.unsigned()?,
                b"digest" => entry.digest = json.string()?,
                b"xattrs" => json.object(|json, _| {
                    entry.has_xattrs = true;
                    json.skip()
                })?,
                _ => json.skip()?,
            }
            Ok(())
        })?;
        Ok(entry)
    }
}

/// Reads a table: `entry` is called for each entry, `other` at each value beside them, which it reads or skips.
fn read(
    text: &[u8],
    most: u64,
    mut other: impl FnMut(&[u8], &mut Json<'_>) -> Result<()>,
    mut each: impl FnMut(&Entry) -> Result<()>,
) -> Result<()> {
    let (mut version, mut count) = (0, 0u64);
    let mut json = Json::new(text);
    json.object(|json, key| match key {
        b"version" => {
            version = json.integer()?;
            Ok(())
        }
        b"entries" => json.array(|json| {
            count += 1;
            if count > most {
                return Err(refuse(format!("it has more than {most} entries")));
            }
            each(&Entry::read(json)?)
        }),
        _ => other(key, json),
    })?;
    json.end()?;
    if version != VERSION {
        return Err(refuse(format!("it has version {version}, expected {VERSION}")));
    }
    Ok(())
}
