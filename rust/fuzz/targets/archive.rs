//! The reader: any bytes, whole and in pieces, must be heard the same way, and never as something impossible.
#![no_main]

#[allow(dead_code, reason = "each target uses a part of it")]
mod tars;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else { return };
    let archive = if mode & 1 == 0 { tars::repaired(data) } else { data.to_vec() };
    let whole = tars::read(&archive, archive.len().max(1));
    let pieces = tars::read(&archive, usize::from(mode >> 1) + 1);
    assert_eq!(whole, pieces, "the length of the pieces changes what is read");
});
