//! Extended headers: the fuzzed bytes are the body of an `x`, an `L` or a `K`, and a file follows.
#![no_main]

#[allow(dead_code, reason = "each target uses a part of it")]
mod tars;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, body)) = data.split_first() else { return };
    let kind = [b'x', b'L', b'K', b'g'][usize::from(mode & 3)];
    let mut archive = tars::header(b"extension", kind, body.len());
    archive.extend_from_slice(body);
    archive.resize(archive.len().next_multiple_of(tars::BLOCK), 0);
    archive.extend(tars::header(b"file", [b'0', b'2', b'1', b'5'][usize::from(mode >> 2 & 3)], 5));
    archive.extend_from_slice(b"bytes");
    archive.resize(archive.len().next_multiple_of(tars::BLOCK) + 2 * tars::BLOCK, 0);
    let whole = tars::read(&archive, archive.len());
    assert_eq!(whole, tars::read(&archive, 7), "the length of the pieces changes what is read");
});
