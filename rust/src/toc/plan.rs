//! What of a layer has to be fetched, and the layer's tar from that and from what is here.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::estargz::HEADERS_MAX_BYTES;
use super::gotar::padding;
use super::split::{Piece, Reader};
use super::table::{Between, Span, Table};
use super::{STEP_BYTES, feed, refuse};
use crate::compression::Decoder;
use crate::digest::{Algorithm, Digest, Hasher};
use crate::error::{Error, Result};
use crate::tar::Limits;
use crate::tar::digests::{KnownFiles, Sha256};

/// Which ranges of a blob are needed.
#[derive(Debug)]
pub struct Plan {
    table: Table,
    known: KnownFiles,
    /// Of each file, whether its content is taken from here.
    is_here: Vec<bool>,
    ranges: Vec<Range<u64>>,
}

impl Table {
    /// The digests of all contents.
    #[must_use]
    pub fn wanted(&self) -> HashSet<Sha256> {
        self.files.iter().map(|file| file.sha256).collect()
    }

    /// Decides what is fetched: whatever is not known, and what lies between two such ranges where that is no more than `gap`
    /// bytes.
    #[must_use]
    pub fn plan(self, known: KnownFiles, gap: u64) -> Plan {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let mut need = |from: u64, to: u64| match ranges.last_mut() {
            Some(last) if from <= last.end.saturating_add(gap) => last.end = to.max(last.end),
            _ if from < to => ranges.push(from..to),
            _ => {}
        };
        let mut at = 0;
        for (number, file) in self.files.iter().enumerate() {
            match &self.between {
                Between::Frames => need(at, file.start),
                Between::Headers(_) if number == 0 => need(0, file.start),
                Between::Headers(_) | Between::Split(_) => {}
            }
            let told = match &self.between {
                Between::Headers(headers) => headers.behind(number).is_some(),
                Between::Frames | Between::Split(_) => true,
            };
            if !told || !known.has(&file.sha256, file.size) {
                need(file.start, file.end);
            }
            at = file.end;
        }
        match &self.between {
            Between::Frames => need(at, self.end),
            Between::Headers(_) if self.files.is_empty() => need(0, self.end),
            Between::Headers(_) | Between::Split(_) => {}
        }
        let mut rest = &ranges[..];
        let mut is_here = Vec::with_capacity(self.files.len());
        for file in &self.files {
            rest = &rest[rest.iter().take_while(|range| range.end <= file.start).count()..];
            is_here.push(rest.first().is_none_or(|range| file.start < range.start || range.end < file.end));
        }
        Plan { table: self, known, is_here, ranges }
    }
}

impl Plan {
    /// What has to be fetched, in order and apart from each other.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Bytes of contents that are not fetched.
    #[must_use]
    pub fn known_bytes(&self) -> u64 {
        let files = self.table.files.iter().zip(&self.is_here);
        files.filter(|(_, here)| **here).map(|(file, _)| file.size).sum()
    }

    /// Writes the tar. What comes out is nothing but a guess until somebody has hashed it.
    ///
    /// # Arguments
    /// * `blob`: has the ranges, each at its place.
    /// * `blob_bytes`: of the whole blob, by which the ratio limit goes.
    ///
    /// # Errors
    /// [`Error::DigestMismatch`] for a fetched content that is not the table's; [`Error::Invalid`],
    /// [`Error::UnsafeArchive`], [`Error::Io`] and [`Error::NotFound`] for what cannot be read; whatever `sink` returns.
    pub fn rebuild(
        &self,
        blob: &File,
        blob_bytes: u64,
        limits: Limits,
        mut sink: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut total = 0u64;
        let mut out = |bytes: &[u8]| {
            total = total.saturating_add(bytes.len() as u64);
            limits.check_ratio(blob_bytes, total)?;
            sink(bytes)
        };
        let mut work =
            Work { plan: self, blob, input: vec![0; STEP_BYTES], buffer: vec![0; STEP_BYTES], out: &mut out };
        match &self.table.between {
            Between::Frames => work.between_frames(),
            Between::Split(split) => work.by_split(split),
            Between::Headers(_) => work.by_headers(),
        }
    }
}

struct Work<'a, F> {
    plan: &'a Plan,
    blob: &'a File,
    input: Vec<u8>,
    buffer: Vec<u8>,
    out: &'a mut F,
}

impl<F: FnMut(&[u8]) -> Result<()>> Work<'_, F> {
    fn between_frames(&mut self) -> Result<()> {
        let mut at = 0;
        for (number, file) in self.plan.table.files.iter().enumerate() {
            self.frames(at, file.start)?;
            self.content(number, file)?;
            at = file.end;
        }
        self.frames(at, self.plan.table.end)
    }

    fn by_split(&mut self, split: &[u8]) -> Result<()> {
        let mut reader = Reader::new(split)?;
        let mut files = self.plan.table.files.iter().enumerate();
        while let Some(piece) = reader.next()? {
            match piece {
                Piece::Raw(bytes) => (self.out)(&bytes)?,
                Piece::Content(0) => {}
                Piece::Content(size) => {
                    let (number, file) = files
                        .next()
                        .filter(|(_, file)| file.size == size)
                        .ok_or_else(|| refuse("its tar-split has other files than it"))?;
                    self.content(number, file)?;
                }
            }
        }
        Ok(())
    }

    fn by_headers(&mut self) -> Result<()> {
        let plan = self.plan;
        let Between::Headers(headers) = &plan.table.between else { return Ok(()) };
        self.first_headers(headers.first())?;
        for (number, file) in plan.table.files.iter().enumerate() {
            if !plan.is_here[number] {
                self.fetched(file, true)?; // with what stands behind it
                continue;
            }
            self.known(file)?;
            (self.out)(padding(file.size))?;
            (self.out)(headers.behind(number).ok_or_else(|| refuse("a header cannot be told from it"))?)?;
        }
        (self.out)(headers.last())
    }

    /// What stands in front of the first file comes as it is: where headers are made in another way than is known, this
    /// shows it before anything else is done.
    fn first_headers(&mut self, expected: Option<&[u8]>) -> Result<()> {
        let plan = self.plan;
        let end = plan.table.files.first().map_or(plan.table.end, |file| file.start);
        let mut found = Vec::new();
        let mut decoder = Decoder::default();
        self.read(0, end, |bytes, buffer| {
            feed(bytes, &mut decoder, buffer, &mut |piece| {
                found.extend_from_slice(piece);
                if found.len() > HEADERS_MAX_BYTES {
                    return Err(refuse("what stands in front of its first file is too long"));
                }
                Ok(())
            })
        })?;
        decoder.finish()?;
        if plan.is_here.contains(&true) && expected.is_some_and(|expected| expected != found) {
            return Err(refuse("its headers were made by something else than Go's archive/tar"));
        }
        (self.out)(&found)
    }

    fn content(&mut self, number: usize, file: &Span) -> Result<()> {
        if self.plan.is_here[number] { self.known(file) } else { self.fetched(file, false) }
    }

    /// A content from one of the layers that are here. It is not hashed: what it makes is.
    fn known(&mut self, file: &Span) -> Result<()> {
        let (from, mut at) = self.plan.known.open(&file.sha256)?;
        let mut left = file.size;
        while left > 0 {
            let count = usize::try_from(left).map_or(self.buffer.len(), |left| left.min(self.buffer.len()));
            let piece = &mut self.buffer[..count];
            from.read_exact_at(piece, at).map_err(|e| Error::io("read", "content", &e))?;
            (self.out)(piece)?;
            at += count as u64;
            left -= count as u64;
        }
        Ok(())
    }

    /// A content that was fetched; what follows it in its range is let through, or refused.
    fn fetched(&mut self, file: &Span, more: bool) -> Result<()> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut left = file.size;
        let mut decoder = Decoder::default();
        self.read_into(file.start, file.end, |bytes, buffer, out| {
            feed(bytes, &mut decoder, buffer, &mut |piece| {
                let own = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
                hasher.update(&piece[..own]);
                left -= own as u64;
                if own < piece.len() && !more {
                    return Err(refuse(format!("a file has more than the {} bytes that it says", file.size)));
                }
                out(piece)
            })
        })?;
        decoder.finish()?;
        let actual = hasher.finish();
        if left > 0 || actual.as_bytes() != file.sha256 {
            return Err(Error::DigestMismatch {
                subject: format!("content at bytes {} to {}", file.start, file.end),
                expected: Box::new(Digest::from_sha256(&file.sha256)),
                actual: Box::new(actual),
            });
        }
        Ok(())
    }

    /// Whole frames that are no file's.
    fn frames(&mut self, from: u64, to: u64) -> Result<()> {
        if from == to {
            return Ok(());
        }
        let mut decoder = Decoder::default();
        self.read_into(from, to, |bytes, buffer, out| feed(bytes, &mut decoder, buffer, out))?;
        decoder.finish()
    }

    fn read_into(
        &mut self,
        from: u64,
        to: u64,
        mut each: impl FnMut(&[u8], &mut [u8], &mut F) -> Result<()>,
    ) -> Result<()> {
        let mut at = from;
        while at < to {
            let count = usize::try_from(to - at).map_or(self.input.len(), |left| left.min(self.input.len()));
            self.blob
                .read_exact_at(&mut self.input[..count], at)
                .map_err(|e| Error::io("read", "fetched ranges", &e))?;
            each(&self.input[..count], &mut self.buffer, self.out)?;
            at += count as u64;
        }
        Ok(())
    }

    fn read(
        &mut self,
        from: u64,
        to: u64,
        mut each: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.read_into(from, to, |bytes, buffer, _| each(bytes, buffer))
    }
}
