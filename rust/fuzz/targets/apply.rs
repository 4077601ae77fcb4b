//! Both writers, each in a directory beside one that nothing may touch.
#![no_main]

#[allow(dead_code, reason = "each target uses a part of it")]
mod tars;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pyctrd_core::root::Root;
use pyctrd_core::tar::merge::Merger;
use pyctrd_core::tar::{LayerWriter, Limits, Ownership, layers};

/// What the watcher compares: name, type and mode, owner, size, links, times of change, content.
type Facts = Vec<(OsString, u32, u32, u64, u64, i64, i64, Vec<u8>)>;

fn facts(directory: &Path) -> Facts {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("the canary is there") {
        let entry = entry.expect("the canary can be read");
        let meta = entry.metadata().expect("the canary can be looked at");
        let content =
            if meta.is_file() { fs::read(entry.path()).expect("the canary can be read") } else { Vec::new() };
        found.push((
            entry.file_name(),
            meta.mode(),
            meta.uid(),
            meta.size(),
            meta.nlink(),
            meta.ctime(),
            meta.ctime_nsec(),
            content,
        ));
    }
    found.sort();
    found
}

fuzz_target!(|data: &[u8]| {
    let Some((&mode, data)) = data.split_first() else { return };
    let archive = if mode & 1 == 0 { tars::repaired(data) } else { data.to_vec() };
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let outside = scratch.path().join("outside");
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("victim"), b"untouched").expect("write");
    fs::set_permissions(outside.join("victim"), fs::Permissions::from_mode(0o640)).expect("chmod");
    fs::create_dir(outside.join("dir")).expect("mkdir");
    let before = facts(&outside);
    let limits = Limits { entries: 200, bytes: 1 << 20, ..Limits::default() };

    let layer = scratch.path().join("layer");
    fs::create_dir(&layer).expect("mkdir");
    let directory = Root::open(&layer).expect("open").directory(".").expect("open");
    let written = LayerWriter::new(directory, limits).and_then(|mut writer| {
        writer.write(&archive)?;
        writer.finish()
    });
    if written.is_ok() {
        let index = layers::read_index(&layer).expect("an index that was just written can be read");
        for record in &index.records {
            assert!(!record.path.split(|&b| b == b'/').any(|part| part == b".."), "{:?}", record.path);
        }
    }

    let merged = scratch.path().join("merged");
    fs::create_dir_all(merged.join("a/b")).expect("mkdir");
    fs::write(merged.join("f"), b"lower").expect("write");
    symlink(&outside, merged.join("l")).expect("symlink");
    symlink("../outside", merged.join("a/l")).expect("symlink");
    let merging = Root::open(&merged).and_then(|root| {
        let ownership = if mode & 2 == 0 { Ownership::Keep } else { Ownership::Recorded };
        let mut merger = Merger::new(root, limits, ownership)?;
        merger.write(&archive)?;
        merger.finish()
    });
    drop(merging);
    assert_eq!(before, facts(&outside), "something outside was touched");
});
