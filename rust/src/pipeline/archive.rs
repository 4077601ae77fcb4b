//! The tar that images are handed over in, plain or compressed: told member by member, of which none is held in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::compression::{Compression, Decoder};
use crate::error::{Error, Result};
use crate::tar::{Entry, Kind, Limits, Sink, Stream};

/// Read, or decoded, at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// How often `stop` is asked while a pipe has nothing.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Bytes that may follow the end marks: the largest record that GNU tar fills up (2048 blocks) is 1 MiB.
const TAIL_MAX_BYTES: u64 = 1 << 20;

/// A member of the archive, by its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As it stands in the archive.
    pub name: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Bytes of its content, holes included.
    pub size: u64,
    /// Where its content begins in the tar.
    pub offset: u64,
    /// Whether the archive has its content with holes left out.
    pub sparse: bool,
}

/// The archive under inspection. Errors leave it where it is; it is of no use then.
pub struct Archive {
    source: Source,
    stream: Stream,
    /// Bytes of the tar that were read or passed over.
    position: u64,
    tail: u64,
}

enum Source {
    /// A plain tar in a file: what nobody reads is passed over.
    File { input: BufReader<File>, length: u64 },
    /// Compressed, or a stream that comes once.
    Stream(Box<Decoded>),
}

struct Decoded {
    input: BufReader<File>,
    decoder: Decoder,
    limits: Limits,
    output: Vec<u8>,
    at: usize,
    end: usize,
    /// Bytes that went in, and that came out.
    compressed: u64,
    expanded: u64,
}

impl Archive {
    /// Starts at an archive's first byte, which is where the file stands.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(file: File, limits: Limits) -> Result<Self> {
        let source = match plain_length(&file)? {
            Some(length) => Source::File { input: BufReader::with_capacity(BUFFER_BYTES, file), length },
            None => Source::Stream(Box::new(Decoded {
                input: BufReader::with_capacity(BUFFER_BYTES, file),
                decoder: Decoder::default(),
                limits,
                output: vec![0; BUFFER_BYTES],
                at: 0,
                end: 0,
                compressed: 0,
                expanded: 0,
            })),
        };
        Ok(Self { source, stream: Stream::new(limits), position: 0, tail: 0 })
    }

    /// Whether members can be read where they are in the file, in any order.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    /// The next member; what of the one before was not read is passed over. None after the last, once everything to
    /// the end was read.
    ///
    /// `stop` is asked now and then; what it returns as an error ends the reading.
    ///
    /// # Errors
    /// [`Error::UnsafeArchive`] for what is no tar, or cut off; [`Error::Io`].
    pub fn next<E: From<Error>>(
        &mut self,
        stop: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Member>, E> {
        let left = self.stream.data_left();
        self.stream.skip_data();
        self.pass_over(left, &stop)?;
        loop {
            let most = self.stream.step();
            let bytes = self.source.fill(&stop)?;
            if bytes.is_empty() {
                self.stream.finish()?;
                return Ok(None);
            }
            let count = shorter(most, bytes.len());
            let mut found = Header(None);
            self.stream.write(&bytes[..count], &mut found)?;
            self.consume(count);
            if found.0.is_some() {
                return Ok(found.0);
            }
            if self.stream.is_ended() {
                self.tail += count as u64;
                if self.tail > TAIL_MAX_BYTES {
                    return Err(self.refuse("more bytes follow the end of the archive").into());
                }
            }
        }
    }

    /// Writes the current member's content to a file, from its beginning.
    ///
    /// # Errors
    /// As [`Archive::next`].
    pub fn copy<E: From<Error>>(
        &mut self,
        dest: &File,
        stop: impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        while self.stream.data_left() > 0 {
            let bytes = self.source.fill(&stop)?;
            if bytes.is_empty() {
                return self.stream.finish().map_err(E::from);
            }
            let count = shorter(self.stream.data_left(), bytes.len());
            self.stream.write(&bytes[..count], &mut Content(dest))?;
            self.consume(count);
        }
        Ok(())
    }

    fn pass_over<E: From<Error>>(
        &mut self,
        mut left: u64,
        stop: &impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        if let Source::File { input, length } = &mut self.source {
            if left > length.saturating_sub(self.position) {
                return Err(self.refuse("archive is cut off").into());
            }
            // It fits: the file is no longer than a seek can say.
            input.seek_relative(left.cast_signed()).map_err(|e| Error::io("seek", "", &e))?;
            self.position += left;
            return Ok(());
        }
        while left > 0 {
            let bytes = self.source.fill(stop)?;
            if bytes.is_empty() {
                return Err(self.refuse("archive is cut off").into());
            }
            let count = shorter(left, bytes.len());
            self.consume(count);
            left -= count as u64;
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.position += count as u64;
        match &mut self.source {
            Source::File { input, .. } => input.consume(count),
            Source::Stream(decoded) => decoded.at += count,
        }
    }

    fn refuse(&self, reason: &str) -> Error {
        Error::UnsafeArchive { entry: Vec::new(), offset: self.position, reason: reason.to_owned() }
    }
}

impl Source {
    /// The next bytes of the tar; none at its end.
    fn fill<E: From<Error>>(
        &mut self,
        stop: &impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<&[u8], E> {
        match self {
            Self::File { input, .. } => {
                if input.buffer().is_empty() {
                    read(input, stop)?;
                }
                Ok(input.buffer())
            }
            Self::Stream(decoded) => {
                decoded.fill(stop)?;
                Ok(&decoded.output[decoded.at..decoded.end])
            }
        }
    }
}

impl Decoded {
    fn fill<E: From<Error>>(
        &mut self,
        stop: &impl Fn() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        while self.at == self.end {
            read(&mut self.input, stop)?;
            let input = self.input.buffer();
            let step = self.decoder.decode(input, &mut self.output)?;
            let ended = input.is_empty();
            self.input.consume(step.consumed);
            (self.at, self.end) = (0, step.produced);
            self.compressed += step.consumed as u64;
            self.expanded += step.produced as u64;
            self.limits.check_ratio(self.compressed, self.expanded)?;
            if step.consumed == 0 && step.produced == 0 {
                self.decoder.finish()?;
                if ended {
                    return Ok(());
                }
                let reason = "compressed stream makes no progress".to_owned();
                return Err(
                    Error::UnsafeArchive { entry: Vec::new(), offset: self.compressed, reason }.into()
                );
            }
        }
        Ok(())
    }
}

/// Fills the buffer, where it is empty: with nothing, at the end.
fn read<E: From<Error>>(
    input: &mut BufReader<File>,
    stop: &impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    loop {
        stop()?;
        if !input.buffer().is_empty() {
            return Ok(());
        }
        let mut fds = [PollFd::new(input.get_ref(), PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&LOOK)) {
            Ok(0) | Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(e) => return Err(Error::io("read", "", &e.into()).into()),
        }
        match input.fill_buf() {
            Ok(_) => return Ok(()),
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(e) => return Err(Error::io("read", "", &e).into()),
        }
    }
}

/// The length of a regular file that stands at its beginning and is not compressed.
fn plain_length(file: &File) -> Result<Option<u64>> {
    let failed = |e: std::io::Error| Error::io("read", "", &e);
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() || (&*file).stream_position().map_err(failed)? != 0 {
        return Ok(None);
    }
    let mut front = [0; Compression::PREFIX];
    let count = file.read_at(&mut front, 0).map_err(failed)?;
    let plain = count == front.len() && Compression::detect(&front) == Compression::None;
    Ok(plain.then_some(metadata.len()))
}

fn shorter(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}

/// Keeps the entry that begins. Its data is left to be read.
struct Header(Option<Member>);

impl Sink for Header {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        self.0 = Some(Member {
            name: entry.name.clone(),
            link: entry.link.clone(),
            kind: entry.kind,
            size: entry.size,
            offset: entry.content_offset.unwrap_or(entry.offset),
            sparse: entry.sparse,
        });
        Ok(())
    }

    fn data(&mut self, _entry: &Entry, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _entry: &Entry) -> Result<()> {
        Ok(())
    }
}

struct Content<'a>(&'a File);

impl Sink for Content<'_> {
    fn begin(&mut self, _entry: &Entry) -> Result<()> {
        Ok(())
    }

    fn data(&mut self, entry: &Entry, offset: u64, bytes: &[u8]) -> Result<()> {
        let path = || crate::root::to_path(&entry.name);
        self.0.write_all_at(bytes, offset).map_err(|e| Error::io("write", path(), &e))
    }

    fn end(&mut self, _entry: &Entry) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    const CONTENTS: [(&str, usize); 4] = [("one", 3), ("empty", 0), ("large", 700_000), ("block", 512)];

    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|i| u8::try_from(i % 251).expect("small")).collect()
    }

    fn header(name: &str, size: usize, kind: u8) -> [u8; 512] {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[148..156].fill(b' ');
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn tar() -> Vec<u8> {
        let mut made = header("directory/", 0, b'5').to_vec();
        for (name, size) in CONTENTS {
            made.extend(header(name, size, b'0'));
            made.extend(content(size));
            made.resize(made.len().next_multiple_of(512), 0);
        }
        made.resize(made.len() + 1024, 0);
        made
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("written");
        file.rewind().expect("rewound");
        file
    }

    /// Never says so.
    const GO_ON: fn() -> Result<()> = || Ok(());

    /// All members, with the contents of those whose turn it is.
    fn walk(archive: &mut Archive, reads: impl Fn(usize) -> bool) -> Result<Vec<(Member, Option<Vec<u8>>)>> {
        let mut found = Vec::new();
        while let Some(member) = archive.next(GO_ON)? {
            let mut read = None;
            if reads(found.len()) {
                let mut copy = file(b"");
                archive.copy(&copy, GO_ON)?;
                let mut bytes = Vec::new();
                copy.read_to_end(&mut bytes).expect("read");
                read = Some(bytes);
            }
            found.push((member, read));
        }
        Ok(found)
    }

    fn check(archive: &mut Archive, bytes: &[u8]) {
        let found = walk(archive, |at| at % 2 == 0).expect("good archive");
        assert_eq!(found[0].0.kind, Kind::Directory);
        assert_eq!(found.len(), CONTENTS.len() + 1);
        for (at, (member, read)) in found.iter().enumerate().skip(1) {
            let (name, size) = CONTENTS[at - 1];
            assert_eq!(member.name, name.as_bytes());
            assert_eq!(member.size, size as u64);
            let from = usize::try_from(member.offset).expect("small");
            assert!(size == 0 || bytes[from..from + size] == content(size));
            assert!(read.as_ref().is_none_or(|read| *read == content(size)), "{name}");
        }
    }

    #[test]
    fn members_are_read_or_passed_over_in_files_and_in_streams() {
        let bytes = tar();
        let mut archive = Archive::open(file(&bytes), Limits::default()).expect("opens");
        assert!(archive.is_in_place());
        check(&mut archive, &bytes);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&bytes).expect("memory");
        for packed in [gzip.finish().expect("memory"), ::zstd::encode_all(&*bytes, 1).expect("memory")] {
            let mut archive = Archive::open(file(&packed), Limits::default()).expect("opens");
            assert!(!archive.is_in_place());
            check(&mut archive, &bytes);
        }
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let sent = bytes.clone();
        let sender = std::thread::spawn(move || writer.write_all(&sent));
        let reader = File::from(std::os::fd::OwnedFd::from(reader));
        check(&mut Archive::open(reader, Limits::default()).expect("opens"), &bytes);
        sender.join().expect("ended").expect("all of it was read");
    }

    #[test]
    fn what_is_cut_off_is_refused_wherever_it_is_cut() {
        let bytes = tar();
        for length in [300, 700, 2000, 100_000, 703_000] {
            for reads in [true, false] {
                let mut plain = Archive::open(file(&bytes[..length]), Limits::default()).expect("opens");
                assert!(walk(&mut plain, |_| reads).is_err(), "{length}");
                let packed = ::zstd::encode_all(&bytes[..length], 1).expect("memory");
                let mut stream = Archive::open(file(&packed), Limits::default()).expect("opens");
                assert!(walk(&mut stream, |_| reads).is_err(), "{length}");
            }
        }
    }

    #[test]
    fn what_follows_the_end_is_bounded_and_so_is_what_comes_of_few_bytes() {
        let mut bytes = tar();
        bytes.resize(bytes.len() + (1 << 20) - 512, 0);
        let mut archive = Archive::open(file(&bytes), Limits::default()).expect("opens");
        assert!(walk(&mut archive, |_| false).is_ok());
        bytes.resize(bytes.len() + 2048, 0);
        let mut archive = Archive::open(file(&bytes), Limits::default()).expect("opens");
        let error = walk(&mut archive, |_| false).expect_err("too long").to_string();
        assert!(error.contains("follow the end"), "{error}");
        let mut bomb = header("index.json", 200 << 20, b'0').to_vec();
        bomb.resize(200 << 20, 0);
        let packed = ::zstd::encode_all(&*bomb, 1).expect("memory");
        let mut archive = Archive::open(file(&packed), Limits::default()).expect("opens");
        let error = walk(&mut archive, |_| false).expect_err("a bomb").to_string();
        assert!(error.contains("ratio"), "{error}");
    }

    #[test]
    fn a_caller_that_gives_up_is_heard() {
        let mut archive = Archive::open(file(&tar()), Limits::default()).expect("opens");
        assert!(matches!(archive.next(|| Err(Error::Cancelled)), Err(Error::Cancelled)));
    }
}
