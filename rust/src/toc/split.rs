//! tar-split: what of a tar is no file's content, as a line of JSON for each piece, compressed.

use std::io::{BufRead, BufReader, Read};

use zstd::stream::read::Decoder;

use super::json::Json;
use super::refuse;
use crate::error::{Error, Result};

/// A line has one entry's headers, of which a layer may have a megabyte, in base64.
const LINE_MAX_BYTES: u64 = 4 << 20;
/// What every writer's frames do with; the bound is for memory.
const WINDOW_LOG_MAX: u32 = 23;

const FILE: i64 = 1;
const SEGMENT: i64 = 2;

/// One piece of the tar.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Bytes as they stand.
    Raw(Vec<u8>),
    /// So many bytes of the next file's content.
    Content(u64),
}

/// Reads pieces, in the order of the tar.
pub(super) struct Reader<'a> {
    lines: BufReader<Decoder<'a, BufReader<&'a [u8]>>>,
    line: Vec<u8>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(compressed: &'a [u8]) -> Result<Self> {
        let wrong = |e: &std::io::Error| Error::io("zstd", "", e);
        let mut decoder = Decoder::new(compressed).map_err(|e| wrong(&e))?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(|e| wrong(&e))?;
        Ok(Self { lines: BufReader::new(decoder), line: Vec::new() })
    }

    /// The next piece; None behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Piece>> {
        self.line.clear();
        let mut limited = (&mut self.lines).take(LINE_MAX_BYTES);
        limited
            .read_until(b'\n', &mut self.line)
            .map_err(|e| refuse(format!("its tar-split is damaged: {e}")))?;
        if self.line.is_empty() {
            return Ok(None);
        }
        if self.line.len() as u64 == LINE_MAX_BYTES {
            return Err(refuse(format!("a line of its tar-split has more than {LINE_MAX_BYTES} bytes")));
        }
        parse(&self.line).map(Some)
    }
}

fn parse(line: &[u8]) -> Result<Piece> {
    let (mut kind, mut size, mut payload) = (0, 0, Vec::new());
    let mut json = Json::new(line);
    json.object(|json, key| {
        match key {
            b"type" => kind = json.integer()?,
            b"size" => size = json.unsigned()?,
            // Of a file, a checksum that nobody needs; null where there is nothing.
            b"payload" if kind == SEGMENT => payload = json.string()?,
            _ => json.skip()?,
        }
        Ok(())
    })?;
    json.end()?;
    match kind {
        FILE => Ok(Piece::Content(size)),
        SEGMENT => decode_base64(&payload).map(Piece::Raw),
        _ => Err(refuse(format!("its tar-split has an entry of type {kind}"))),
    }
}

/// RFC 4648, section 4, padded, with nothing else in it.
fn decode_base64(text: &[u8]) -> Result<Vec<u8>> {
    let wrong = || refuse("its tar-split has a payload that is no base64");
    let (quads, rest) = text.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(wrong());
    }
    let mut out = Vec::with_capacity(quads.len() * 3);
    for (at, quad) in quads.iter().enumerate() {
        let padding = quad.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 || (padding > 0 && at + 1 != quads.len()) {
            return Err(wrong());
        }
        let mut bits = 0u32;
        for byte in &quad[..4 - padding] {
            bits = bits << 6 | sextet(*byte).ok_or_else(wrong)?;
        }
        bits <<= 6 * padding;
        out.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    Ok(out)
}

fn sextet(byte: u8) -> Option<u32> {
    let value = match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[u8]) -> Result<Vec<Piece>> {
        let packed = zstd::encode_all(lines, 1).expect("memory");
        let mut reader = Reader::new(&packed)?;
        let mut found = Vec::new();
        while let Some(piece) = reader.next()? {
            found.push(piece);
        }
        Ok(found)
    }

    #[test]
    fn pieces_come_in_their_order() {
        let lines = br#"{"type":2,"payload":"YWJj","position":0}
{"type":1,"name":"a","size":5,"payload":"9GhF/w==","position":1}
{"type":1,"name":"empty","payload":null,"position":2}
{"type":2,"payload":"AAA=","position":3}
"#;
        let expected =
            [Piece::Raw(b"abc".to_vec()), Piece::Content(5), Piece::Content(0), Piece::Raw(vec![0, 0])];
        assert_eq!(read(lines).expect("good"), expected);
        assert_eq!(read(b"").expect("good"), []);
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            &b"{\"type\":3}"[..],
            b"{}",
            b"[]",
            b"{\"type\":1,\"size\":-1}",
            b"{\"type\":2,\"payload\":\"abc\"}",
            b"{\"type\":2,\"payload\":\"ab=c\"}",
            b"{\"type\":2,\"payload\":\"a===\"}",
            b"{\"type\":2,\"payload\":\"aa==aaaa\"}",
            b"{\"type\":2,\"payload\":\"a\\nbc\"}",
            b"{\"type\":2,\"payload\":7}",
            b"\n",
        ] {
            assert!(read(bad).is_err(), "{}", bad.escape_ascii());
        }
        let mut long = b"{\"type\":2,\"payload\":\"".to_vec();
        long.resize(5 << 20, b'A');
        assert!(read(&long).is_err(), "a line without end");
        let packed = zstd::encode_all(&b"{\"type\":1}\n".repeat(99)[..], 1).expect("memory");
        let mut cut = Reader::new(&packed[..packed.len() - 2]).expect("a frame");
        assert!(std::iter::from_fn(|| cut.next().transpose()).any(|found| found.is_err()), "cut off");
    }
}
