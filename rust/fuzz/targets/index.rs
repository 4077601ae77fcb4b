//! Layer indexes: the fuzzed bytes get the checksum that they would need, are read, written again and put together.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pyctrd_core::tar::index;
use pyctrd_core::tar::view::View;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    bytes.extend_from_slice(blake3::hash(data).as_bytes());
    let Ok(read) = index::decode(&bytes, "fuzzed") else { return };
    let again = index::encode(&read.records, read.pack.as_ref(), read.blocks);
    assert_eq!(index::decode(&again, "again").expect("what was written can be read").records, read.records);
    let layers = [read];
    if let Ok(view) = View::applied(&layers) {
        for (path, _) in view.walk(b"", usize::MAX).unwrap_or_default() {
            let _ = view.find(&path, true);
        }
    }
});
