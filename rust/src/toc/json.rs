//! JSON read front to back (RFC 8259): what a table of contents needs, with no tree made of it.
//!
//! Whatever comes is held to the grammar; nesting is bounded, and no number is a float.

use super::refuse;
use crate::error::Result;

/// Deeper nesting is no table's: they have four levels.
const DEPTH_MAX: usize = 16;

/// A reader at some place of a document.
#[derive(Debug)]
pub(super) struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

impl<'a> Json<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }

    /// An object: `each` is called at every value, with its key, and reads or skips it.
    pub(super) fn object(&mut self, mut each: impl FnMut(&mut Self, &[u8]) -> Result<()>) -> Result<()> {
        self.list(b'{', b'}', |json| {
            let key = json.string()?;
            json.expect(b':')?;
            each(json, &key)
        })
    }

    /// An array: `each` is called at every value, and reads or skips it.
    pub(super) fn array(&mut self, each: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.list(b'[', b']', each)
    }

    /// A string; escapes are resolved, other bytes are left as they stand.
    pub(super) fn string(&mut self) -> Result<Vec<u8>> {
        self.expect(b'"')?;
        let mut out = Vec::new();
        loop {
            let rest = &self.bytes[self.at..];
            let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..=0x1f));
            let plain = plain.ok_or_else(|| wrong(self.bytes.len(), "a string has no end"))?;
            out.extend_from_slice(&rest[..plain]);
            self.at += plain + 1;
            match rest[plain] {
                b'"' => return Ok(out),
                b'\\' => self.escape(&mut out)?,
                _ => return Err(wrong(self.at, "a string has a control character")),
            }
        }
    }

    /// A whole number.
    pub(super) fn integer(&mut self) -> Result<i64> {
        let number = self.number()?;
        std::str::from_utf8(number)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| wrong(self.at, "a number is not whole, or too large"))
    }

    /// A whole number that is not negative.
    pub(super) fn unsigned(&mut self) -> Result<u64> {
        let at = self.at;
        u64::try_from(self.integer()?).map_err(|_| wrong(at, "a number is negative"))
    }

    /// Any value.
    pub(super) fn skip(&mut self) -> Result<()> {
        match self.peek()? {
            b'{' => self.object(|json, _| json.skip()),
            b'[' => self.array(Self::skip),
            b'"' => self.string().map(|_| ()),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number().map(|_| ()),
        }
    }

    /// The end of the document.
    pub(super) fn end(mut self) -> Result<()> {
        self.space();
        if self.at == self.bytes.len() { Ok(()) } else { Err(wrong(self.at, "something follows its end")) }
    }

    fn list(&mut self, open: u8, close: u8, mut each: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(wrong(self.at, "it is nested too deeply"));
        }
        if self.peek()? != close {
            loop {
                each(self)?;
                if self.peek()? != b',' {
                    break;
                }
                self.at += 1;
            }
        }
        self.depth -= 1;
        self.expect(close)
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<()> {
        let escaped = *self.bytes.get(self.at).ok_or_else(|| wrong(self.at, "a string has no end"))?;
        self.at += 1;
        let byte = match escaped {
            b'"' | b'\\' | b'/' => escaped,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut code = self.hex()?;
                if (0xd800..0xdc00).contains(&code) && self.bytes[self.at..].starts_with(b"\\u") {
                    self.at += 2;
                    let low = self.hex()?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return Err(wrong(self.at, "half a character"));
                    }
                    code = 0x1_0000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                }
                let found = char::from_u32(code).ok_or_else(|| wrong(self.at, "half a character"))?;
                out.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(wrong(self.at, "an escape that there is not")),
        };
        out.push(byte);
        Ok(())
    }

    fn hex(&mut self) -> Result<u32> {
        let digits =
            self.bytes.get(self.at..self.at + 4).filter(|four| four.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|four| std::str::from_utf8(four).ok());
        let code = code.and_then(|text| u32::from_str_radix(text, 16).ok());
        self.at += 4;
        code.ok_or_else(|| wrong(self.at, "an escape that there is not"))
    }

    fn number(&mut self) -> Result<&'a [u8]> {
        self.space();
        let rest = &self.bytes[self.at..];
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        let number = &rest[..length];
        let digits = number.strip_prefix(b"-").unwrap_or(number);
        let leads = digits.first().is_some_and(u8::is_ascii_digit);
        if !leads || (digits.len() > 1 && digits[0] == b'0' && digits[1].is_ascii_digit()) {
            return Err(wrong(self.at, "expected a value"));
        }
        self.at += length;
        Ok(number)
    }

    fn word(&mut self, word: &[u8]) -> Result<()> {
        if !self.bytes[self.at..].starts_with(word) {
            return Err(wrong(self.at, "expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn space(&mut self) {
        let rest = &self.bytes[self.at..];
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        self.at += rest.iter().position(|byte| !is_space(byte)).unwrap_or(rest.len());
    }

    fn peek(&mut self) -> Result<u8> {
        self.space();
        self.bytes.get(self.at).copied().ok_or_else(|| wrong(self.at, "it is cut off"))
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek()? != byte {
            return Err(wrong(self.at, &format!("expected {:?}", char::from(byte))));
        }
        self.at += 1;
        Ok(())
    }
}

fn wrong(at: usize, reason: &str) -> crate::error::Error {
    refuse(format!("no JSON at byte {at}: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(text: &[u8]) -> Result<()> {
        let mut json = Json::new(text);
        json.skip()?;
        json.end()
    }

    #[test]
    fn what_the_grammar_has_is_passed_over() {
        for good in [
            &b"{}"[..],
            b" [ ] ",
            br#"{"a": [1, -2, 3.5e+7, 0], "b": {"c": null, "d": [true, false]}, "e": "\"\\\/\b\f\n\r\t\u00e4"}"#,
            b"[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]",
        ] {
            skipped(good).expect("JSON");
        }
    }

    #[test]
    fn what_it_has_not_is_refused() {
        for bad in [
            &b""[..],
            b"{",
            b"[1,]",
            b"{\"a\"}",
            b"{a: 1}",
            b"{\"a\": 1,}",
            b"[1 2]",
            b"[01]",
            b"[-]",
            b"[+1]",
            b"nul",
            b"\"a",
            b"\"\\",
            b"\"\\x\"",
            b"\"\\u12\"",
            b"\"\\ud800\"",
            b"\"\\ud800\\u0041\"",
            b"\"a\nb\"",
            b"{} {}",
            b"[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]",
        ] {
            assert!(skipped(bad).is_err(), "{}", bad.escape_ascii());
        }
        assert!(skipped(&b"[".repeat(100_000)).is_err(), "deep nesting ends early");
    }

    #[test]
    fn strings_and_numbers_are_what_they_stand_for() {
        let string = |text: &[u8]| Json::new(text).string().expect("a string");
        assert_eq!(string(br#""a\u00e4\ud83d\ude00\n\/""#), "a\u{e4}\u{1f600}\n/".as_bytes());
        assert_eq!(string(b"\"\xff\""), b"\xff");
        assert_eq!(Json::new(b" -12 ").integer().expect("a number"), -12);
        assert_eq!(Json::new(b"12").unsigned().expect("a number"), 12);
        for bad in [&b"-1"[..], b"1.0", b"9223372036854775808", b"1e3", b"\"1\""] {
            assert!(Json::new(bad).unsigned().is_err(), "{}", bad.escape_ascii());
        }
    }
}
