//! gzip framing: members, header fields, trailers; the fuzzed bytes follow the magic.
#![no_main]

mod decoders;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else { return };
    let mut input = vec![0x1f, 0x8b, 8];
    input.extend_from_slice(data);
    decoders::check(&input, mode);
});
