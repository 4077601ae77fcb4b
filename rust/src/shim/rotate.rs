//! The log's files: `log` is written, `log.1` is what was written before it, and so on to the oldest.
//!
//! A file that is full is renamed, never copied, and its name given to a new one. Who follows has the old one open, reads
//! it to its end and goes on with the next newer: no line is lost to it, and none is seen twice.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::record::named;

/// How large a log may become.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bounds {
    /// Of one file; 0 is any size. A longer line has a file of its own.
    pub(crate) max_bytes: u64,
    /// Files in all, the written one among them; 0 counts as 1.
    pub(crate) max_files: u32,
}

/// The file that is written, and where the older ones are.
pub(crate) struct Files {
    path: PathBuf,
    bounds: Bounds,
    file: File,
    bytes: u64,
}

impl Files {
    /// Opens for appending. A line that a crash cut off is ended, so that the next one is whole.
    pub(crate) fn open(path: &Path, bounds: Bounds) -> io::Result<Self> {
        Self::open_file(path, bounds).map_err(|error| named(path, &error))
    }

    fn open_file(path: &Path, bounds: Bounds) -> io::Result<Self> {
        let mut file = open(path)?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self { path: path.to_owned(), bounds, file, bytes })
    }

    /// Appends whole lines. After an error none of them is there in part.
    pub(crate) fn append(&mut self, mut lines: &[u8]) -> io::Result<()> {
        while !lines.is_empty() {
            let fits = self.fitting(lines);
            if fits == 0 {
                self.rotate()?;
            }
            let (now, later) =
                lines.split_at(if fits == 0 { self.fitting(lines).max(first_line(lines)) } else { fits });
            if let Err(error) = self.file.write_all(now) {
                // A disk that is full took a part: what follows must not stand on the same line.
                self.file.set_len(self.bytes)?;
                return Err(error);
            }
            self.bytes += now.len() as u64;
            lines = later;
        }
        Ok(())
    }

    /// How many bytes of whole lines this file still takes; 0 where it has something and the first line is too much.
    fn fitting(&self, lines: &[u8]) -> usize {
        if self.bounds.max_bytes == 0 {
            return lines.len();
        }
        let room = usize::try_from(self.bounds.max_bytes.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
        if lines.len() <= room {
            return lines.len();
        }
        let whole = lines[..room].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if whole == 0 && self.bytes == 0 { first_line(lines) } else { whole }
    }

    /// Makes room: the written file becomes `log.1`, and the oldest goes.
    fn rotate(&mut self) -> io::Result<()> {
        let kept = self.bounds.max_files.saturating_sub(1);
        for number in (1..kept).rev() {
            rename(&self.older(number), &self.older(number + 1))?;
        }
        if kept == 0 {
            fs::remove_file(&self.path)?;
        } else {
            rename(&self.path, &self.older(1))?;
        }
        match open(&self.path) {
            Ok(file) => (self.file, self.bytes) = (file, 0),
            Err(error) => {
                // Better one file that is too large than lines that are nowhere.
                if kept > 0 {
                    rename(&self.older(1), &self.path)?;
                }
                return Err(error);
            }
        }
        Ok(())
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|&byte| byte == b'\n').map_or(lines.len(), |at| at + 1)
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).append(true).create(true).mode(0o600).open(path)
}

/// As `rename`, where there is such a file.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut found: Vec<String> = fs::read_dir(directory)
            .expect("it is there")
            .map(|entry| entry.expect("it can be read").file_name().to_string_lossy().into_owned())
            .collect();
        found.sort();
        found
    }

    fn read(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).expect("it is there")
    }

    #[test]
    fn a_full_file_becomes_the_next_older_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { max_bytes: 8, max_files: 3 };
        let mut files = Files::open(&directory.path().join("log"), bounds).expect("it opens");
        for number in 0..9 {
            files.append(format!("a{number}\n").as_bytes()).expect("it is written");
        }
        assert_eq!(names(directory.path()), ["log", "log.1", "log.2"]);
        assert_eq!(read(directory.path(), "log"), "a8\n");
        assert_eq!(read(directory.path(), "log.1"), "a6\na7\n");
        assert_eq!(read(directory.path(), "log.2"), "a4\na5\n");
    }

    #[test]
    fn many_lines_at_once_are_parted_between_lines() {
        let directory = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { max_bytes: 8, max_files: 9 };
        let mut files = Files::open(&directory.path().join("log"), bounds).expect("it opens");
        files.append(b"one\ntwo\nthree\na line that is longer\nx\n").expect("it is written");
        let found: Vec<String> =
            ["log.3", "log.2", "log.1", "log"].iter().map(|name| read(directory.path(), name)).collect();
        assert_eq!(found, ["one\ntwo\n", "three\n", "a line that is longer\n", "x\n"]);
    }

    #[test]
    fn one_file_alone_begins_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let bounds = Bounds { max_bytes: 4, max_files: 1 };
        let mut files = Files::open(&directory.path().join("log"), bounds).expect("it opens");
        files.append(b"one\ntwo\n").expect("it is written");
        assert_eq!(
            (names(directory.path()), read(directory.path(), "log")),
            (vec!["log".into()], "two\n".into())
        );
    }

    #[test]
    fn a_line_that_a_crash_cut_off_is_ended_and_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        fs::write(&path, "cut").expect("it is written");
        let mut files = Files::open(&path, Bounds { max_bytes: 6, max_files: 2 }).expect("it opens");
        files.append(b"new\n").expect("it is written");
        assert_eq!(
            (read(directory.path(), "log.1"), read(directory.path(), "log")),
            ("cut\n".into(), "new\n".into())
        );
    }

    #[test]
    fn where_no_new_file_can_be_made_the_old_one_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut files = Files::open(&path, Bounds { max_bytes: 4, max_files: 2 }).expect("it opens");
        files.append(b"one\n").expect("it is written");
        fs::create_dir_all(directory.path().join("log.1").join("full")).expect("it is made");
        assert!(files.append(b"two\n").is_err());
        assert_eq!(read(directory.path(), "log"), "one\n");
    }
}
