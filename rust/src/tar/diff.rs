//! What changed in a tree, as a layer: the tree is looked at once to plan, then read once to write.
//!
//! The plan has every name that the layer says something of, parents before what is in them, names sorted by their
//! bytes; it is written as it stands, so that one tree gives one archive, whatever order its directories are read in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;

use super::below::{Below, Known, Place};
use super::entry::{Entry, Kind, Time};
use super::facts::{Facts, Reader, Xattrs, changing, open_file, wrong};
use super::name::{OPAQUE, PATH_MAX_BYTES, WHITEOUT};
use super::ownership::Ownership;
use super::view::below;
use super::write::TarWriter;
use crate::error::{Error, Result};
use crate::root::{Root, identity, names, to_path};

/// Read at once.
const READ_BYTES: usize = 1 << 17;
/// Holes are looked for in steps of this, whatever the file system's own: the same file gives the same map anywhere.
const HOLE_BYTES: u64 = 4096;

/// How a tree says what is not there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// It does not: what is missing was removed.
    Whole,
    /// As overlayfs' upper directory does: what is missing was not touched, a character device 0:0 stands for a name
    /// that was removed, and a directory marked opaque is merged with nothing.
    Upper,
    /// The same of an overlay that keeps its marks where a user namespace may set them.
    UserUpper,
}

impl Form {
    /// What its marks' names begin with, where it has any.
    fn marks(self) -> Option<&'static [u8]> {
        match self {
            Self::Whole => None,
            Self::Upper => Some(b"trusted.overlay."),
            Self::UserUpper => Some(b"user.overlay."),
        }
    }
}

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was not there before, or nobody knows.
    Added,
    /// It was something else before, or has something in it that was.
    Modified,
    /// It is not there any more.
    Removed,
}

/// All that a layer says.
pub struct Plan<'r> {
    tree: &'r Root,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    /// From the root, without a slash at either end; empty for the root.
    path: Vec<u8>,
    what: What,
    /// Whether something was there before.
    known: bool,
    /// Whether it goes into the layer: a directory does for what is in it, another name for its file.
    wanted: bool,
    /// The directory that it is in; the root is its own.
    parent: usize,
}

#[derive(Debug)]
enum What {
    /// It is there; and which file it was one of, where there was one.
    Node(Facts, Option<(u64, u64)>),
    /// Another name of what stands at a path.
    Link(Facts, Vec<u8>),
    /// It is gone.
    Whiteout,
    /// Nothing of lower layers is in the directory.
    Opaque,
}

/// Looks at a tree, and says what a layer must say so that it becomes of what is below it.
///
/// Sockets are left out: no archive can hold them, and the image spec says so. Where ownership is recorded, both
/// trees are read as their records say.
///
/// # Errors
/// [`Error::Unsupported`] for what no layer can say: a name of the image spec's own markers, overlayfs' redirected
/// directories and files without their data. [`Error::Invalid`] for a record that cannot be. [`Error::Conflict`] where the tree is changed meanwhile. [`Error::Io`].
pub fn plan<'r>(tree: &'r Root, form: Form, lower: &Below<'_>, ownership: &Ownership) -> Result<Plan<'r>> {
    let mut reader = Reader::new(ownership);
    let read = reader.read(tree.as_fd(), b".").map_err(|e| wrong(b"", "read", e))?;
    let (facts, marks) = read.ok_or_else(|| changing(b""))?;
    let known = lower.root(&mut reader)?;
    let mut scan = Scan { tree, form, lower, reader, steps: Vec::new() };
    check_marks(form, b"", &marks)?; // to overlayfs a mark on the root means nothing
    let wanted = known.as_ref().is_none_or(|known| !facts.is_like(&known.facts));
    let place = known.as_ref().map_or(Place::Nowhere, |known| known.place);
    let key = facts.key;
    scan.push(Vec::new(), What::Node(facts, None), known.is_some(), wanted, 0);
    scan.directory(0, key, place, form != Form::Whole)?;
    let mut steps = scan.steps;
    keep_groups_together(&mut steps, form);
    for at in (0..steps.len()).rev() {
        if steps[at].wanted {
            let parent = steps[at].parent;
            steps[parent].wanted = true;
        }
    }
    steps.retain(|step| step.wanted);
    link_names(&mut steps);
    Ok(Plan { tree, steps })
}

struct Scan<'s, 'r> {
    tree: &'r Root,
    form: Form,
    lower: &'s Below<'s>,
    reader: Reader,
    steps: Vec<Step>,
}

/// What a directory has at a name: with its facts and marks, or nothing.
type Found = Option<(Facts, Xattrs)>;

impl Scan<'_, '_> {
    fn push(&mut self, path: Vec<u8>, what: What, known: bool, wanted: bool, parent: usize) {
        self.steps.push(Step { path, what, known, wanted, parent });
    }

    /// Plans what is in a directory. `merged`: names that are not there are still those of the place below.
    fn directory(&mut self, at: usize, key: (u64, u64), place: Place, merged: bool) -> Result<()> {
        let path = self.steps[at].path.clone();
        let mut known = self.lower.children(place, &path, &mut self.reader)?;
        let mut there: BTreeMap<Vec<u8>, Found> = self.list(&path, key)?;
        if !merged {
            for name in known.keys() {
                there.entry(name.clone()).or_insert(None);
            }
        }
        // By the names that they get in the layer, where a whiteout's is another.
        let mut order: Vec<(Vec<u8>, Vec<u8>)> = there
            .iter()
            .map(|(name, found)| (if found.is_some() { name.clone() } else { whiteout(name) }, name.clone()))
            .collect();
        order.sort_unstable();
        for (said, name) in order {
            let full = below(&path, &name);
            match (there.remove(&name).flatten(), known.remove(&name)) {
                (Some((facts, marks)), known) => {
                    self.node(at, full, facts, &marks, known.as_ref(), merged)?;
                }
                // Nothing is said of the absence of what was never there, if that is known.
                (None, known) if known.is_some() || !self.lower.is_known() => {
                    check_name(&full, &name)?;
                    check_length(&full, &said)?;
                    self.push(full, What::Whiteout, known.is_some(), true, at);
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    /// The names in a directory of the tree; None for those that say that something is gone.
    fn list(&mut self, path: &[u8], key: (u64, u64)) -> Result<BTreeMap<Vec<u8>, Found>> {
        let failed = |e| wrong(path, "read", e);
        let directory: OwnedFd =
            self.tree.resolve_plain(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        if identity(directory.as_fd()).map_err(failed)? != key {
            return Err(changing(path));
        }
        let mut there = BTreeMap::new();
        for name in names(directory.as_fd()).map_err(failed)? {
            let name = name.into_bytes();
            let full = below(path, &name);
            let read = self.reader.read(directory.as_fd(), &name).map_err(|e| wrong(&full, "read", e))?;
            let Some((facts, marks)) = read else { continue }; // a socket
            let gone = facts.kind == Kind::Character && facts.device == (0, 0);
            if gone && self.form == Form::Whole {
                return Err(unsupported("character device 0:0", &full, "another device: this is a whiteout"));
            }
            there.insert(name, if gone { None } else { Some((facts, marks)) });
        }
        Ok(there)
    }

    fn node(
        &mut self,
        parent: usize,
        path: Vec<u8>,
        facts: Facts,
        marks: &Xattrs,
        known: Option<&Known>,
        merged: bool,
    ) -> Result<()> {
        check_name(&path, path.rsplit(|&b| b == b'/').next().unwrap_or(&path))?;
        let opaque = check_marks(self.form, &path, marks)?;
        if facts.kind == Kind::Directory {
            return self.subdirectory(parent, path, facts, known, merged && !opaque, opaque);
        }
        let same = match known {
            Some(known) => facts.is_like(&known.facts) && self.has_content_of(&path, &facts, known)?,
            None => false,
        };
        let names = facts.names.max(known.map_or(1, |known| known.facts.names));
        if same && names == 1 {
            return Ok(());
        }
        let was = known.map(|known| known.facts.key);
        self.push(path, What::Node(facts, was), known.is_some(), !same, parent);
        Ok(())
    }

    fn subdirectory(
        &mut self,
        parent: usize,
        path: Vec<u8>,
        facts: Facts,
        known: Option<&Known>,
        merged: bool,
        opaque: bool,
    ) -> Result<()> {
        let same = known.is_some_and(|known| facts.is_like(&known.facts));
        let place = known.map_or(Place::Nowhere, |known| known.place);
        let (key, at) = (facts.key, self.steps.len());
        let mark = (opaque && !self.lower.is_known()).then(|| below(&path, OPAQUE));
        self.push(path, What::Node(facts, None), known.is_some(), !same, parent);
        if let Some(mark) = mark {
            // Before all that is in it: so readers that go by the order do right, too.
            self.push(mark, What::Opaque, false, true, at);
        }
        self.directory(at, key, place, merged)?;
        if same && self.steps.len() == at + 1 {
            self.steps.pop(); // nothing in it is new either
        }
        Ok(())
    }

    fn has_content_of(&self, path: &[u8], facts: &Facts, known: &Known) -> Result<bool> {
        if facts.kind != Kind::File || facts.size == 0 {
            return Ok(true);
        }
        let Some(lower) = self.lower.open(path, known)? else { return Ok(false) };
        let upper = open_file(self.tree, path, facts)?;
        let (mut ours, mut theirs) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
        let mut at = 0;
        while at < facts.size {
            let count = fill(&upper, &mut ours, at, facts.size, path)?;
            if fill(&lower, &mut theirs, at, facts.size, path)? != count || ours[..count] != theirs[..count] {
                return Ok(false);
            }
            at += count as u64;
        }
        Ok(true)
    }
}

/// The names of one file stay the names of one file: where one of them goes into the layer, all do; and what is one
/// file no more, or had become one, goes in even if nothing else of it has changed.
fn keep_groups_together(steps: &mut [Step], form: Form) {
    let mut groups: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    for (at, step) in steps.iter().enumerate() {
        if let What::Node(facts, _) = &step.what
            && facts.kind != Kind::Directory
        {
            groups.entry(facts.key).or_default().push(at);
        }
    }
    let mut ordered: Vec<Vec<usize>> = groups.into_values().collect();
    ordered.sort_unstable();
    let mut kept = BTreeSet::new();
    for group in ordered {
        let was: BTreeSet<_> = group.iter().filter_map(|&at| steps[at].was()).collect();
        let stays = group.iter().all(|&at| !steps[at].wanted)
            && was.len() == 1
            // Of a file with several names below, an upper directory need not have all: the others are still there.
            && form == Form::Whole
            && was.iter().all(|&key| kept.insert(key));
        if !stays {
            for at in group {
                steps[at].wanted = true;
            }
        }
    }
}

/// Of a file's names the first is the file, the others are links to it.
fn link_names(steps: &mut [Step]) {
    let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    for step in steps {
        let Step { path, what, .. } = step;
        let What::Node(facts, _) = &*what else { continue };
        if facts.kind == Kind::Directory || facts.names < 2 {
            continue;
        }
        match first.get(&facts.key) {
            Some(target) => *what = What::Link(facts.clone(), target.clone()),
            None => {
                first.insert(facts.key, path.clone());
            }
        }
    }
}

impl Step {
    fn was(&self) -> Option<(u64, u64)> {
        match &self.what {
            What::Node(_, was) => *was,
            _ => None,
        }
    }
}

impl Plan<'_> {
    /// How many entries the layer has.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.steps.len() as u64
    }

    /// Every name that changed, but for the root: a directory also for what is in it.
    pub fn changes(&self) -> impl Iterator<Item = (Change, &[u8])> {
        self.steps.iter().filter(|step| !step.path.is_empty()).filter_map(|step| {
            let change = match step.what {
                What::Opaque => return None,
                What::Whiteout => Change::Removed,
                _ if step.known => Change::Modified,
                _ => Change::Added,
            };
            Some((change, step.path.as_slice()))
        })
    }

    /// Writes the layer's tar. `clamp`: seconds since 1970 that no file's time may be after.
    ///
    /// # Errors
    /// [`Error::Conflict`] where a file is another than when it was planned, or is changed while it is read: then
    /// what was written is no archive. [`Error::Io`].
    pub fn write<W: Write>(&self, out: W, clamp: Option<i64>) -> Result<W> {
        let mut writer = TarWriter::new(out);
        let mut buffer = vec![0; READ_BYTES];
        for step in &self.steps {
            match &step.what {
                What::Whiteout => writer.begin(&marker(step_name(&step.path)), &[])?,
                What::Opaque => writer.begin(&marker(step.path.clone()), &[])?,
                What::Link(facts, target) => {
                    let entry = Entry {
                        kind: Kind::Hardlink,
                        link: target.clone(),
                        xattrs: Vec::new(), // the file has them
                        size: 0,
                        ..entry(step.path.clone(), facts, clamp)
                    };
                    writer.begin(&entry, &[])?;
                }
                What::Node(facts, _) if facts.kind == Kind::File => {
                    self.file(&mut writer, step, facts, clamp, &mut buffer)?;
                }
                What::Node(facts, _) => {
                    let mut name = step.path.clone();
                    if facts.kind == Kind::Directory {
                        name.extend_from_slice(if name.is_empty() { b"./" } else { b"/" });
                    }
                    writer.begin(&entry(name, facts, clamp), &[])?;
                }
            }
        }
        writer.finish()
    }

    fn file<W: Write>(
        &self,
        writer: &mut TarWriter<W>,
        step: &Step,
        facts: &Facts,
        clamp: Option<i64>,
        buffer: &mut [u8],
    ) -> Result<()> {
        let path = &step.path;
        let file = open_file(self.tree, path, facts)?;
        let holes = if facts.has_holes() { find_pieces(&file, facts.size, buffer, path)? } else { None };
        let entry = Entry { sparse: holes.is_some(), ..entry(path.clone(), facts, clamp) };
        let pieces = holes.unwrap_or_else(|| vec![(0, facts.size)]);
        writer.begin(&entry, &pieces)?;
        for (offset, length) in pieces {
            let (mut at, end) = (offset, offset + length);
            while at < end {
                let count = fill(&file, buffer, at, end, path)?;
                if count == 0 {
                    return Err(changing(path));
                }
                writer.data(&buffer[..count])?;
                at += count as u64;
            }
        }
        // Not only its size: what was written into it meanwhile is half there, half not.
        if facts.is_still(&file).map_err(|e| wrong(path, "stat", e))? { Ok(()) } else { Err(changing(path)) }
    }
}

/// Where a file has data, in steps of a size; None where there is some in each. What is no hole but has nothing but
/// zeros counts as one: file systems differ in where they leave holes.
fn find_pieces(file: &File, size: u64, buffer: &mut [u8], path: &[u8]) -> Result<Option<Vec<(u64, u64)>>> {
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break, // a hole to the end
            Err(e) => return Err(wrong(path, "seek", e)),
        };
        at = data / HOLE_BYTES * HOLE_BYTES;
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(|e| wrong(path, "seek", e))?;
        let end = hole.next_multiple_of(HOLE_BYTES).min(size);
        while at < end {
            let count = fill(file, buffer, at, end, path)?;
            if count == 0 {
                return Err(changing(path));
            }
            for step in buffer[..count].chunks(usize::try_from(HOLE_BYTES).unwrap_or(READ_BYTES)) {
                let length = step.len() as u64;
                match pieces.last_mut() {
                    _ if step.iter().all(|&b| b == 0) => {}
                    Some(last) if last.0 + last.1 == at => last.1 += length,
                    _ => pieces.push((at, length)),
                }
                at += length;
            }
        }
    }
    if pieces == [(0, size)] {
        return Ok(None);
    }
    // GNU tar's way to say where a hole at the end ends.
    if pieces.last().is_none_or(|last| last.0 + last.1 < size) {
        pieces.push((size, 0));
    }
    Ok(Some(pieces))
}

/// Reads up to `end` or as much as there is room for; less only at the file's own end.
fn fill(file: &File, buffer: &mut [u8], at: u64, end: u64, path: &[u8]) -> Result<usize> {
    let room = usize::try_from(end - at).map_or(buffer.len(), |left| left.min(buffer.len()));
    let mut filled = 0;
    while filled < room {
        match file.read_at(&mut buffer[filled..room], at + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read", to_path(path), &e)),
        }
    }
    Ok(filled)
}

/// Overlayfs' marks on a name; whether it is an opaque directory.
///
/// What it can only say by a mark of its own is refused: a redirected directory is somewhere else below, and a file with
/// its metadata alone has its data there. Nothing of ours mounts overlays that make either.
fn check_marks(form: Form, path: &[u8], marks: &Xattrs) -> Result<bool> {
    let mut opaque = false;
    let Some(prefix) = form.marks() else { return Ok(false) };
    for (name, value) in marks {
        match (name.strip_prefix(prefix).unwrap_or_default(), value.as_slice()) {
            (b"opaque", b"y") => opaque = true,
            (b"opaque", b"x") => {
                return Err(unsupported("overlay whiteouts by xattr", path, "whiteouts by device"));
            }
            (b"redirect", _) => {
                return Err(unsupported(
                    "overlay redirect",
                    path,
                    "an overlay mounted with redirect_dir=off",
                ));
            }
            (b"metacopy", _) => {
                return Err(unsupported("overlay metacopy", path, "an overlay mounted with metacopy=off"));
            }
            _ => {}
        }
    }
    Ok(opaque)
}

/// A file of such a name would take another away.
fn check_name(path: &[u8], name: &[u8]) -> Result<()> {
    if name.starts_with(WHITEOUT) {
        return Err(unsupported("name in a layer", path, "a name that does not begin with .wh."));
    }
    Ok(())
}

fn check_length(path: &[u8], said: &[u8]) -> Result<()> {
    if said.len() > 255 || path.len() + WHITEOUT.len() > PATH_MAX_BYTES {
        return Err(unsupported(
            "removal of a name in a layer",
            path,
            "a shorter name: .wh. is put before it",
        ));
    }
    Ok(())
}

fn unsupported(feature: &str, path: &[u8], needs: &str) -> Error {
    Error::Unsupported { feature: format!("{feature}: {}", path.escape_ascii()), needs: needs.to_owned() }
}

fn whiteout(name: &[u8]) -> Vec<u8> {
    [WHITEOUT, name].concat()
}

/// The name of the marker that takes a path away.
fn step_name(path: &[u8]) -> Vec<u8> {
    let at = path.iter().rposition(|&b| b == b'/').map_or(0, |at| at + 1);
    [&path[..at], WHITEOUT, &path[at..]].concat()
}

/// An empty file that says something by its name.
fn marker(name: Vec<u8>) -> Entry {
    Entry { name, ..Entry::default() }
}

fn entry(name: Vec<u8>, facts: &Facts, clamp: Option<i64>) -> Entry {
    let mtime = match clamp {
        Some(seconds) if facts.mtime.seconds >= seconds => Time { seconds, nanoseconds: 0 },
        _ => facts.mtime,
    };
    Entry {
        name,
        link: facts.link.clone(),
        kind: facts.kind,
        mode: facts.mode,
        uid: facts.uid,
        gid: facts.gid,
        mtime,
        size: facts.size,
        device: facts.device,
        xattrs: facts.xattrs.clone(),
        ..Entry::default()
    }
}
