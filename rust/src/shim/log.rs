//! The container's log: a line for each line of output, in one of two forms.

use std::io;
use std::path::Path;

use crate::record;
use crate::rotate::{Bounds, Files};

/// A longer line is written in parts, each without its newline, as Docker does.
const LINE_MAX_BYTES: usize = 16 << 10;

/// How a line is written.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// One JSON object a line, as Docker's json-file driver writes it.
    #[default]
    JsonFile,
    /// Time, stream, "F" for a whole line or "P" for a part of one, and the text, as the kubelet reads it.
    Cri,
    /// Nothing is written.
    None,
}

impl Form {
    /// Reads the name that a user gives.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "json-file" => Some(Self::JsonFile),
            "cri" => Some(Self::Cri),
            "none" => Some(Self::None),
            _ => None,
        }
    }
}

/// Where bytes came from.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The log's files, and the beginnings of lines that have not ended yet.
pub(crate) struct Log {
    files: Option<Files>,
    form: Form,
    partial: [Vec<u8>; 2],
    failure: Option<io::Error>,
}

impl Log {
    /// Opens for appending.
    pub(crate) fn open(path: &Path, form: Form, bounds: Bounds) -> io::Result<Self> {
        let files = if form == Form::None { None } else { Some(Files::open(path, bounds)?) };
        Ok(Self { files, form, partial: [Vec::new(), Vec::new()], failure: None })
    }

    /// Takes output; whether a line was written.
    pub(crate) fn write(&mut self, source: Source, mut bytes: &[u8]) -> bool {
        if self.files.is_none() {
            return false;
        }
        let mut text = Vec::new();
        let now = record::now_ns();
        while !bytes.is_empty() {
            let held = &mut self.partial[source as usize];
            let room = LINE_MAX_BYTES - held.len();
            let window = &bytes[..bytes.len().min(room)];
            let newline = window.iter().position(|&byte| byte == b'\n');
            let taken = newline.map_or(window.len(), |at| at + 1);
            held.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if newline.is_some() {
                write_line(&mut text, self.form, held, source, now);
                held.clear();
            } else if held.len() == LINE_MAX_BYTES {
                let cut = character_boundary(held);
                write_line(&mut text, self.form, &held[..cut], source, now);
                held.drain(..cut);
            }
        }
        self.append(&text)
    }

    /// Ends the lines that have no newline; what went wrong, or "".
    pub(crate) fn close(&mut self) -> String {
        let mut text = Vec::new();
        for source in [Source::Stdout, Source::Stderr] {
            let held = std::mem::take(&mut self.partial[source as usize]);
            if !held.is_empty() {
                write_line(&mut text, self.form, &held, source, record::now_ns());
            }
        }
        self.append(&text);
        self.failure.take().map_or_else(String::new, |error| format!("log incomplete: {error}"))
    }

    fn append(&mut self, text: &[u8]) -> bool {
        if text.is_empty() {
            return false;
        }
        // A full disk must not stop the container; the exit record says that lines are missing.
        if let Some(Err(error)) = self.files.as_mut().map(|files| files.append(text)) {
            self.failure.get_or_insert(error);
        }
        true
    }
}

/// Where to cut so that a character of several bytes stays whole.
fn character_boundary(bytes: &[u8]) -> usize {
    let lead = bytes.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0);
    let length = match bytes[lead] {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    };
    if lead > 0 && lead + length > bytes.len() { lead } else { bytes.len() }
}

fn write_line(to: &mut Vec<u8>, form: Form, line: &[u8], source: Source, now_ns: u64) {
    match form {
        Form::JsonFile => write_json(to, line, source, now_ns),
        Form::Cri => write_cri(to, line, source, now_ns),
        Form::None => {}
    }
}

fn write_json(to: &mut Vec<u8>, line: &[u8], source: Source, now_ns: u64) {
    to.reserve(line.len() + 80);
    to.extend_from_slice(b"{\"log\":\"");
    escape(to, line);
    to.extend_from_slice(b"\",\"stream\":\"");
    to.extend_from_slice(source.name().as_bytes());
    to.extend_from_slice(b"\",\"time\":\"");
    to.extend_from_slice(record::rfc3339(now_ns).as_bytes());
    to.extend_from_slice(b"\"}\n");
}

/// A part of a line is told apart by its tag, since every line of the file ends with a newline.
fn write_cri(to: &mut Vec<u8>, line: &[u8], source: Source, now_ns: u64) {
    let (text, tag) = line.strip_suffix(b"\n").map_or((line, " P "), |text| (text, " F "));
    to.reserve(line.len() + 48);
    to.extend_from_slice(record::rfc3339(now_ns).as_bytes());
    to.push(b' ');
    to.extend_from_slice(source.name().as_bytes());
    to.extend_from_slice(tag.as_bytes());
    to.extend_from_slice(text);
    to.push(b'\n');
}

/// Appends the inside of a JSON string; what is not UTF-8 becomes U+FFFD.
pub(crate) fn escape(to: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for &byte in chunk.valid().as_bytes() {
            match byte {
                b'"' => to.extend_from_slice(b"\\\""),
                b'\\' => to.extend_from_slice(b"\\\\"),
                b'\n' => to.extend_from_slice(b"\\n"),
                b'\r' => to.extend_from_slice(b"\\r"),
                b'\t' => to.extend_from_slice(b"\\t"),
                0..=0x1f => to.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => to.push(byte),
            }
        }
        if !chunk.invalid().is_empty() {
            to.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(form: Form, chunks: &[&[u8]]) -> String {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        let mut log = Log::open(&path, form, Bounds::default()).expect("it opens");
        for chunk in chunks {
            log.write(Source::Stdout, chunk);
        }
        assert_eq!(log.close(), "");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn cri_lines_say_whether_they_are_whole() {
        let text = written(Form::Cri, &[b"whole\nbe", b"gun\nleft \"open\""]);
        let lines: Vec<&str> = text.lines().map(|line| &line[30..]).collect();
        assert_eq!(lines, [" stdout F whole", " stdout F begun", " stdout P left \"open\""]);
        assert_eq!(&text[4..5], "-");
        assert_eq!(&text[29..30], "Z");
    }

    #[test]
    fn a_long_line_is_parted_in_both_forms() {
        let long = [b"x".repeat(LINE_MAX_BYTES + 3), b"\n".to_vec()].concat();
        let cri = written(Form::Cri, &[&long]);
        let tags: Vec<&str> = cri.lines().map(|line| &line[38..39]).collect();
        assert_eq!(tags, ["P", "F"]);
        assert_eq!(written(Form::JsonFile, &[&long]).lines().count(), 2);
    }

    #[test]
    fn none_writes_nothing() {
        assert_eq!(written(Form::None, &[b"lost\n"]), "");
    }

    #[test]
    fn forms_are_read_by_name() {
        assert!(Form::parse("cri") == Some(Form::Cri) && Form::parse("none") == Some(Form::None));
        assert!(Form::parse("syslog").is_none());
    }
}
