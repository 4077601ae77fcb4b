//! The `tar-core` crate reads the same archives: what it reads otherwise is listed here, each with the rule.

use tar_core::EntryType;
use tar_core::parse::{Limits, ParseEvent, ParsedEntry, Parser};

use super::entry::{Entry, Kind};
use super::stream::{Sink, Stream};
use crate::error::Result;

const BLOCK: usize = 512;
/// Archives that are made of random pieces.
const ROUNDS: u64 = 3000;

/// What both readers tell of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    name: Vec<u8>,
    kind: Kind,
    mode: u32,
    owner: (u64, u64),
    seconds: i64,
    size: u64,
    link: Vec<u8>,
    device: (u32, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Default)]
struct Listing(Vec<Told>);

impl Sink for Listing {
    fn begin(&mut self, entry: &Entry) -> Result<()> {
        let linked = matches!(entry.kind, Kind::Symlink | Kind::Hardlink);
        self.0.push(Told {
            name: entry.name.clone(),
            kind: entry.kind,
            mode: entry.mode,
            owner: (entry.uid.into(), entry.gid.into()),
            seconds: entry.mtime.seconds,
            size: entry.size,
            link: if linked { entry.link.clone() } else { Vec::new() },
            device: entry.device,
            xattrs: entry.xattrs.clone(),
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

fn ours(archive: &[u8]) -> Result<Vec<Told>> {
    let (mut stream, mut listing) = (Stream::new(crate::tar::Limits::default()), Listing::default());
    // Pieces of a length that nothing in a tar has: it must not matter.
    for piece in archive.chunks(700) {
        stream.write(piece, &mut listing)?;
    }
    stream.finish().map(|()| listing.0)
}

fn theirs(mut archive: &[u8]) -> Option<Vec<Told>> {
    let mut parser = Parser::new(Limits::default());
    let mut found = Vec::new();
    loop {
        if archive.is_empty() {
            return Some(found); // the end marks may be missing
        }
        let (consumed, size, told) = match parser.parse(archive).ok()? {
            ParseEvent::NeedData { .. } => return None,
            ParseEvent::End { .. } => return Some(found),
            ParseEvent::GlobalExtensions { consumed, .. } => (consumed, 0, None),
            ParseEvent::Entry { consumed, entry } => {
                (consumed, entry.padded_size(), Some(tell(&entry, None)?))
            }
            ParseEvent::SparseEntry { consumed, entry, real_size, .. } => {
                (consumed, entry.padded_size(), Some(tell(&entry, Some(real_size))?))
            }
        };
        found.extend(told);
        archive = archive.get(consumed + usize::try_from(size).ok()?..)?;
    }
}

fn tell(entry: &ParsedEntry<'_>, real_size: Option<u64>) -> Option<Told> {
    let kind = match entry.entry_type {
        // v7's directories, which that crate leaves to its caller.
        EntryType::Regular if entry.path.ends_with(b"/") && entry.size == 0 => Kind::Directory,
        EntryType::Regular if entry.path.ends_with(b"/") => return None,
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char => Kind::Character,
        EntryType::Block => Kind::Block,
        EntryType::Fifo => Kind::Fifo,
        _ => return None, // R5: unknown types are refused, which that crate leaves to its caller
    };
    let linked = matches!(kind, Kind::Symlink | Kind::Hardlink); // a long link before another kind means nothing
    let is_device = matches!(kind, Kind::Character | Kind::Block);
    Some(Told {
        name: entry.path.to_vec(),
        kind,
        mode: entry.mode & 0o7777,
        owner: (entry.uid, entry.gid),
        seconds: entry.mtime.cast_signed(),
        size: if kind == Kind::File { real_size.unwrap_or(entry.size) } else { 0 },
        link: entry.link_target.as_deref().filter(|_| linked).unwrap_or_default().to_vec(),
        device: if is_device { (entry.dev_major?, entry.dev_minor?) } else { (0, 0) },
        xattrs: entry.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    })
}

/// Numbers that come out the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("below a usize")
    }
}

fn header(name: &[u8], kind: u8, size: usize, magic: [u8; 8], random: &mut Random) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    block[..name.len()].copy_from_slice(name);
    let mut put = |at: usize, text: String| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(100, format!("{:07o}\0", random.below(0o10000)));
    put(108, format!("{:07o}\0", random.below(1 << 21)));
    put(116, format!("{:07o}\0", random.below(1 << 21)));
    put(124, format!("{size:011o}\0"));
    put(136, format!("{:011o}\0", random.below(1 << 32)));
    put(329, format!("{:07o}\0", random.below(1 << 12)));
    put(337, format!("{:07o}\0", random.below(1 << 20)));
    block[156] = kind;
    if matches!(kind, b'1' | b'2') {
        block[157..163].copy_from_slice(b"target");
    }
    block[257..265].copy_from_slice(&magic);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn entry(archive: &mut Vec<u8>, name: &[u8], kind: u8, content: &[u8], random: &mut Random) {
    let magic = [*b"ustar\x0000", *b"ustar  \0"][random.below(2)];
    archive.extend_from_slice(&header(name, kind, content.len(), magic, random));
    archive.extend_from_slice(content);
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}

fn record(key: &str, value: &str) -> Vec<u8> {
    let mut length = key.len() + value.len() + 3;
    while length != length.to_string().len() + key.len() + value.len() + 3 {
        length = length.to_string().len() + key.len() + value.len() + 3;
    }
    format!("{length} {key}={value}\n").into_bytes()
}

fn archive(random: &mut Random) -> Vec<u8> {
    let mut archive = Vec::new();
    for _ in 0..=random.below(5) {
        let long = vec![b'n'; 101 + random.below(150)];
        match random.below(6) {
            0 => entry(&mut archive, b"././@LongLink", b'L', &[&long[..], b"\0"].concat(), random),
            1 => entry(&mut archive, b"././@LongLink", b'K', &[&long[..], b"\0"].concat(), random),
            2 => {
                let key = ["path", "uid", "gid", "mtime", "comment", "SCHILY.xattr.user.k"][random.below(6)];
                let body = record(key, &random.below(1 << 30).to_string());
                entry(&mut archive, b"PaxHeaders/x", b'x', &body, random);
            }
            3 => entry(&mut archive, b"global", b'g', &record("comment", "of no concern"), random),
            _ => {}
        }
        let kind = *b"0\x007123456".get(random.below(9)).expect("a kind");
        let length = [0, 1, 511, 512, 513, 2000][random.below(6)];
        let name = [&b"file"[..], b"d/file", b"d/", b"\xff\xfe", b"./x", &[b'n'; 100]][random.below(6)];
        // R5: the name of a directory and data contradict each other, which that crate leaves to its caller.
        let holds = matches!(kind, b'0' | 0 | b'7') && name != b"d/";
        let content = vec![b'c'; if holds { length } else { 0 }];
        entry(&mut archive, name, kind, &content, random);
    }
    if random.below(4) > 0 {
        archive.resize(archive.len() + 2 * BLOCK, 0);
    }
    archive
}

#[test]
fn whole_archives_are_read_alike() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let archive = archive(&mut random);
        let mine = ours(&archive).unwrap_or_else(|refused| panic!("round {round}: {refused}"));
        assert_eq!(Some(mine), theirs(&archive), "round {round}");
    }
}

#[test]
fn what_that_crate_refuses_of_a_damaged_archive_is_refused_here_too() {
    let mut random = Random(0xd1b5_4a32_d192_ed03);
    for round in 0..ROUNDS {
        let mut archive = archive(&mut random);
        let at = random.below(archive.len());
        if random.below(2) == 0 {
            archive.truncate(at);
        } else {
            archive[at] ^= 1 << random.below(8);
        }
        if let Ok(mine) = ours(&archive) {
            assert_eq!(Some(mine), theirs(&archive), "round {round}, byte {at}");
        }
    }
}
