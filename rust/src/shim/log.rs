//! The container's log: one JSON object a line, as Docker's json-file driver writes it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::record;

/// A longer line is written in parts, each without its newline, as Docker does.
const LINE_MAX_BYTES: usize = 16 << 10;

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

/// The log file, and the beginnings of lines that have not ended yet.
pub(crate) struct Log {
    file: File,
    partial: [Vec<u8>; 2],
    failure: Option<io::Error>,
}

impl Log {
    /// Opens for appending. A line that a crash cut off is ended, so that the next one is whole.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut file = File::options().read(true).append(true).create(true).mode(0o600).open(path)?;
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(Self { file, partial: [Vec::new(), Vec::new()], failure: None })
    }

    /// Takes output; whether a line was written.
    pub(crate) fn write(&mut self, source: Source, mut bytes: &[u8]) -> bool {
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
                write_line(&mut text, held, source, now);
                held.clear();
            } else if held.len() == LINE_MAX_BYTES {
                let cut = character_boundary(held);
                write_line(&mut text, &held[..cut], source, now);
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
                write_line(&mut text, &held, source, record::now_ns());
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
        if let Err(error) = self.file.write_all(text) {
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

fn write_line(to: &mut Vec<u8>, line: &[u8], source: Source, now_ns: u64) {
    to.reserve(line.len() + 80);
    to.extend_from_slice(b"{\"log\":\"");
    escape(to, line);
    to.extend_from_slice(b"\",\"stream\":\"");
    to.extend_from_slice(source.name().as_bytes());
    to.extend_from_slice(b"\",\"time\":\"");
    to.extend_from_slice(record::rfc3339(now_ns).as_bytes());
    to.extend_from_slice(b"\"}\n");
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
