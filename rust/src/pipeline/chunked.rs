//! zstd:chunked: a layer of which any reader of zstd takes the whole, and others single files.
//!
//! The archive's bytes stay what they are, and so does its `diff_id`; they are only cut into frames: headers and padding in
//! one, each chunk of a file's content in one of its own. Behind them, in frames that a decoder skips, stand a table of
//! contents, tar-split's record of the archive, and a footer that says where these are. An archive that no table can tell in full
//! is written as any zstd layer, in the frames that it has by then.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::Path;

use super::batches::Batches;
use super::contents::{Chunk, Contents, Described, Spooled};
use super::crc64::Crc64;
use super::cuts::{Cutter, Piece};
use super::measured::Measured;
use super::wrong_layer;
use crate::compression::{Compression, levels};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::Result;
use crate::tar::{Entry, Kind};

/// RFC 8878, 3.1.2: a frame of the user's, and four bytes of its length.
const SKIPPABLE_MAGIC: [u8; 4] = 0x184d_2a50_u32.to_le_bytes();
const SKIPPABLE_HEAD_BYTES: u64 = 8;
const FOOTER_MAGIC: &[u8; 8] = b"GNUlInUx";
/// The kind of table: entries as CRFS and eStargz have them.
const TABLE_KIND: u64 = 1;
/// Chunks of one file: 16 GiB of content that repeats nowhere. What is behind them is one chunk, or a hostile file would
/// fill the memory with its chunks.
const CHUNKS_MAX: usize = 1 << 18;
/// What stands around the files is compressed no better than so: the levels beyond take tens of megabytes each.
const AROUND_LEVEL_MAX: u32 = 9;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Where in a blob its table of contents is, and what else a manifest says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    /// Of the compressed table.
    pub digest: Digest,
    /// Offset, compressed and uncompressed bytes of the table.
    pub position: (u64, u64, u64),
    /// Of tar-split's record, compressed.
    pub record_digest: Digest,
    /// The same of tar-split's record.
    pub record_position: (u64, u64, u64),
}

impl Table {
    /// What the layer's descriptor says, by containers/storage's names.
    #[must_use]
    pub fn annotations(&self) -> Vec<(&'static str, String)> {
        let (offset, compressed, bytes) = self.position;
        let (record, record_compressed, record_bytes) = self.record_position;
        let checksum = self.digest.to_string();
        let position = format!("{offset}:{compressed}:{bytes}:{TABLE_KIND}");
        vec![
            ("io.github.containers.zstd-chunked.manifest-checksum", checksum.clone()),
            ("io.github.containers.zstd-chunked.manifest-position", position.clone()),
            (
                "io.github.containers.zstd-chunked.tarsplit-position",
                format!("{record}:{record_compressed}:{record_bytes}"),
            ),
            // The table says it too; Podman 4.8 to 5.1 look for it here.
            ("io.github.containers.zstd-chunked.tarsplit-checksum", self.record_digest.to_string()),
            // As Podman up to 4.3 calls them.
            ("io.containers.zstd-chunked.manifest-checksum", checksum),
            ("io.containers.zstd-chunked.manifest-position", position),
        ]
    }
}

/// The blob, and the file whose content goes by.
struct Body {
    frames: Batches,
    /// Whether files are in frames of their own: not without a table.
    cuts: bool,
    file: Option<Content>,
}

/// The content of a file.
struct Content {
    cutter: Cutter,
    whole: Hasher,
    sum: Crc64,
    /// Of the chunk that is open, but for the first, whose digest is that of the whole so far.
    chunk: Option<Hasher>,
    /// The frame that the chunk is in.
    frame: u64,
    size: u64,
    /// Where each begins is the number of its frame, until that is written.
    chunks: Vec<Chunk>,
}

/// An entry that the table has not, since not all frames before it are written.
struct Pending {
    entry: Described,
    /// The digest, the frame behind the last one, and the chunks.
    content: Option<(Digest, u64, Vec<Chunk>)>,
}

/// Writes a layer's archive so.
pub(super) struct Chunked {
    body: Body,
    contents: Option<Contents>,
    pending: VecDeque<Pending>,
    /// Why there is no table.
    untold: Option<&'static str>,
    entry: Option<Described>,
    /// Whether the entry's header was told by its reader, and its bytes were not yet.
    header_due: bool,
}

impl Chunked {
    /// `beside`: the file that `out` is, in whose directory two more are made for the time being.
    pub(super) fn new(out: File, beside: &Path, level: Option<u32>) -> Result<Self> {
        let own = levels(Compression::Zstd).map_or(0, |(_, own, _)| own);
        let around = level.unwrap_or(own).min(AROUND_LEVEL_MAX).cast_signed();
        Ok(Self {
            body: Body { frames: Batches::new(out, level)?, cuts: true, file: None },
            contents: Some(Contents::create(beside, around)?),
            pending: VecDeque::new(),
            untold: None,
            entry: None,
            header_due: false,
        })
    }

    /// There can be no table: from here on frames are not cut.
    fn give_up(&mut self, why: &'static str) {
        self.untold = Some(why);
        self.contents = None;
        self.pending.clear();
        self.entry = None;
        self.header_due = false;
        self.body.cuts = false;
    }

    pub(super) fn begin(&mut self, entry: &Entry) {
        if let Some(contents) = &mut self.contents {
            match contents.check(entry) {
                Ok(()) => {
                    self.entry = Some(Described::new(entry));
                    self.header_due = true;
                }
                Err(why) => self.give_up(why),
            }
        }
    }

    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<()> {
        self.body.content(bytes)
    }

    pub(super) fn end(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != Kind::File || entry.size == 0 || !self.body.cuts {
            return Ok(()); // it has been told with its header
        }
        let Some(content) = self.body.end_content()? else { return Ok(()) };
        if let (Some(contents), Some(entry)) = (&mut self.contents, self.entry.take()) {
            contents.record(&entry, Some(content.sum.value()))?;
            let end = self.body.frames.number();
            let content = Some((content.whole.finish(), end, content.chunks));
            self.pending.push_back(Pending { entry, content });
        }
        self.tell()
    }

    pub(super) fn frame(&mut self, bytes: &[u8]) -> Result<()> {
        self.body.frames.write(bytes)?;
        let Some(contents) = &mut self.contents else { return Ok(()) };
        contents.raw(bytes)?;
        if std::mem::take(&mut self.header_due)
            && let Some(entry) = self.entry.take_if(|entry| !entry.has_content())
        {
            contents.record(&entry, None)?;
            self.pending.push_back(Pending { entry, content: None });
            return self.tell();
        }
        Ok(())
    }

    /// Puts into the table what can be told by now.
    fn tell(&mut self) -> Result<()> {
        let Some(contents) = &mut self.contents else { return Ok(()) };
        let frames = &mut self.body.frames;
        while let Some(first) = self.pending.front_mut() {
            match &mut first.content {
                None => contents.entry(&first.entry, None)?,
                Some((digest, end, chunks)) => {
                    let Some(place) = frames.place(*end) else { return Ok(()) };
                    for chunk in &mut *chunks {
                        chunk.at = frames.place(chunk.at).unwrap_or_default(); // it is before the end
                    }
                    contents.entry(&first.entry, Some((*digest, place, chunks)))?;
                    frames.forget(*end);
                }
            }
            self.pending.pop_front();
        }
        Ok(())
    }

    /// The archive has ended. `foreign`: it has headers that other readers take for entries.
    pub(super) fn finish(
        mut self,
        foreign: bool,
    ) -> Result<(Digest, u64, std::result::Result<Table, &'static str>)> {
        if foreign {
            self.give_up("a global header");
        }
        self.body.frames.finish_frames()?;
        self.tell()?;
        let mut out = self.body.frames.finish()?;
        let table = match self.contents {
            None => Err(self.untold.unwrap_or_default()),
            Some(contents) => {
                let (table, record) = contents.finish()?;
                Ok(append(&mut out, table, record).map_err(|e| wrong_layer(&e))?)
            }
        };
        let (_, digest, size) = out.finish();
        Ok((digest, size, table))
    }
}

/// Writes the frames behind the archive.
fn append(out: &mut Measured<File>, table: Spooled, record: Spooled) -> io::Result<Table> {
    let at = out.bytes() + SKIPPABLE_HEAD_BYTES;
    let position = (at, table.compressed, table.bytes);
    let record_position = (at + table.compressed + SKIPPABLE_HEAD_BYTES, record.compressed, record.bytes);
    let digests = (table.digest, record.digest);
    for mut spooled in [table, record] {
        head(out, spooled.compressed)?;
        spooled.file.rewind()?;
        io::copy(&mut spooled.file, out)?;
    }
    let numbers = [
        position.0,
        position.1,
        position.2,
        TABLE_KIND,
        record_position.0,
        record_position.1,
        record_position.2,
    ];
    head(out, (numbers.len() * 8 + FOOTER_MAGIC.len()) as u64)?;
    for number in numbers {
        out.write_all(&number.to_le_bytes())?;
    }
    out.write_all(FOOTER_MAGIC)?;
    Ok(Table { digest: digests.0, position, record_digest: digests.1, record_position })
}

/// The head of a frame that decoders skip.
fn head(out: &mut Measured<File>, bytes: u64) -> io::Result<()> {
    let bytes = u32::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(27))?; // EFBIG
    out.write_all(&SKIPPABLE_MAGIC)?;
    out.write_all(&bytes.to_le_bytes())
}

impl Body {
    /// Ends the frame; the number of the next one.
    fn cut(&mut self) -> Result<u64> {
        self.frames.end()?;
        Ok(self.frames.number())
    }

    fn content(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.cuts {
            return self.frames.write(bytes);
        }
        let mut content = match self.file.take() {
            Some(content) => content,
            None => Content::new(self.cut()?),
        };
        content.sum.update(bytes);
        let mut cutter = std::mem::take(&mut content.cutter);
        cutter.write(bytes, &mut |piece| content.take(self, piece))?;
        content.cutter = cutter;
        self.file = Some(content);
        Ok(())
    }

    /// The content that has ended.
    fn end_content(&mut self) -> Result<Option<Content>> {
        let Some(mut content) = self.file.take() else { return Ok(None) };
        std::mem::take(&mut content.cutter).finish(&mut |piece| content.take(self, piece))?;
        content.close_chunk(self, false)?;
        Ok(Some(content))
    }
}

impl Content {
    fn new(frame: u64) -> Self {
        Self {
            cutter: Cutter::default(),
            whole: Hasher::new(Algorithm::Sha256),
            sum: Crc64::default(),
            chunk: None,
            frame,
            size: 0,
            chunks: Vec::new(),
        }
    }

    fn take(&mut self, body: &mut Body, piece: Piece<'_>) -> Result<()> {
        match piece {
            Piece::Data(bytes, ends) => {
                self.put(body, bytes)?;
                if ends { self.end_chunk(body, false) } else { Ok(()) }
            }
            Piece::Hole(mut count) => {
                self.end_chunk(body, false)?;
                while count > 0 {
                    let zeros = usize::try_from(count).map_or(ZEROS.len(), |count| count.min(ZEROS.len()));
                    self.put(body, &ZEROS[..zeros])?;
                    count -= zeros as u64;
                }
                self.end_chunk(body, true)
            }
        }
    }

    fn put(&mut self, body: &mut Body, bytes: &[u8]) -> Result<()> {
        self.whole.update(bytes);
        if let Some(chunk) = &mut self.chunk {
            chunk.update(bytes);
        }
        self.size += bytes.len() as u64;
        body.frames.write(bytes)
    }

    /// Ends the chunk where there is room for another one behind it.
    fn end_chunk(&mut self, body: &mut Body, hole: bool) -> Result<()> {
        if self.chunks.len() + 1 < CHUNKS_MAX { self.close_chunk(body, hole) } else { Ok(()) }
    }

    fn close_chunk(&mut self, body: &mut Body, hole: bool) -> Result<()> {
        if self.size == 0 {
            return Ok(());
        }
        let hasher = self.chunk.take().unwrap_or_else(|| self.whole.clone());
        let chunk = Chunk { digest: hasher.finish(), at: self.frame, size: self.size, hole };
        self.chunks.push(chunk);
        self.frame = body.cut()?;
        self.size = 0;
        self.chunk = Some(Hasher::new(Algorithm::Sha256));
        Ok(())
    }
}
