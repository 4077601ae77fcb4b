//! Tables of contents: the fuzzed bytes are a table's JSON and the lines of a tar-split, each put into a frame and digested as
//! its reader wants it. What it says is carried out on a file that is none of its blobs.
#![no_main]

use std::fs::File;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pyctrd_core::digest::{Algorithm, Hasher};
use pyctrd_core::tar::Limits;
use pyctrd_core::tar::digests::KnownFiles;
use pyctrd_core::toc;

/// More comes of no input: each of its bytes is read once, or refused by the ratio.
const OUT_MAX: usize = 256 << 20;
const BLOCK_BYTES: usize = 1 << 17;

fn frame(content: &[u8]) -> Vec<u8> {
    let mut made = b"\x28\xb5\x2f\xfd\x00\x58".to_vec();
    let content = &content[..content.len().min(BLOCK_BYTES)];
    made.extend_from_slice(&(content.len() << 3 | 1).to_le_bytes()[..3]);
    made.extend_from_slice(content);
    made
}

fuzz_target!(|data: &[u8]| {
    static BLOB: OnceLock<File> = OnceLock::new();
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let (text, lines) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
    let table = frame(text);
    let mut hasher = Hasher::new(Algorithm::Sha256);
    hasher.update(&table);
    let split = (!lines.is_empty()).then(|| frame(lines));
    let blob = BLOB.get_or_init(|| File::open("/proc/self/exe").expect("this program"));
    let end = blob.metadata().expect("open").len();
    let limits = Limits { entries: 1000, ..Limits::default() };
    let Ok(table) = toc::zstd_chunked(&table, &hasher.finish(), split.as_deref(), end, limits) else {
        return;
    };
    let plan = table.plan(KnownFiles::default(), 512);
    let mut at = 0;
    for range in plan.ranges() {
        assert!(
            at <= range.start && range.start < range.end && range.end <= end,
            "{range:?} behind {at} of {end}"
        );
        at = range.end;
    }
    let mut total = 0;
    let _ = plan.rebuild(blob, end, limits, |bytes| {
        total += bytes.len();
        assert!(total <= OUT_MAX, "more comes out than there is");
        Ok(())
    });
});
