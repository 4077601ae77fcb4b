//! zstd framing: frames, skippable ones, sums; the fuzzed bytes follow the magic of either.
#![no_main]

mod decoders;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else { return };
    let mut input = if mode & 1 == 0 { vec![0x28, 0xb5, 0x2f, 0xfd] } else { vec![0x50, 0x2a, 0x4d, 0x18] };
    input.extend_from_slice(data);
    decoders::check(&input, mode >> 1);
});
