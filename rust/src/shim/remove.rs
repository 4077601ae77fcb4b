//! Giving back what runc holds of a container that has ended, without runc: to start that takes longer than `true` runs.
//!
//! Only what is plain: its record, alone in the container's directory, names the control groups, and nothing else has to
//! be done at the end (no hook, no systemd, no resource group). Everything else, and each doubt, is left to
//! `runc delete --force`, which bears that a part is gone already.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, unlinkat};
use rustix::io::Errno;
use rustix::process::Pid;

/// The record's name, libcontainer's.
const RECORD: &str = "state.json";

/// No record of a container is longer; what would be is not read.
const RECORD_MAX_BYTES: u64 = 1 << 20;

/// A group whose last process is just going answers EBUSY for a moment.
const TRIES: u32 = 5;

/// Takes the control groups and the record away; false where the runtime has to.
pub(crate) fn remove(directory: &Path, init: Pid) -> bool {
    let record = directory.join(RECORD);
    let is_plain_file =
        fs::symlink_metadata(&record).is_ok_and(|found| found.is_file() && found.len() <= RECORD_MAX_BYTES);
    if !is_plain_file || !is_alone(directory) {
        return false;
    }
    let groups = fs::read_to_string(&record).ok().and_then(|text| groups_of(&text, init.as_raw_pid()));
    groups.is_some_and(|groups| groups.iter().all(|group| remove_group(group)))
        && fs::remove_file(&record).is_ok()
        && fs::remove_dir(directory).is_ok()
}

fn is_alone(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|entries| entries.flatten().map(|entry| entry.file_name()).eq([RECORD]))
}

/// The groups that the record names, if they are all that has to be given back of this process.
fn groups_of(text: &str, init: i32) -> Option<BTreeSet<PathBuf>> {
    let is_plain = member(text, "init_process_pid")? == init.to_string()
        && member(text, "intel_rdt_path")? == "\"\""
        && matches!(member(text, "poststop")?, "null" | "[]")
        && !["\"Systemd\":true", "\"systemd\":true"].iter().any(|found| text.contains(found));
    if !is_plain {
        return None;
    }
    let groups = member(text, "cgroup_paths")?.strip_prefix('{')?.strip_suffix('}')?;
    // Controllers may be joined by commas: a pair is told by its quotation marks.
    let words: Vec<&str> = groups.split('"').collect();
    let (pairs, rest) = words.as_chunks::<4>();
    let is_whole =
        rest == [""] && pairs.iter().all(|[gap, _, colon, _]| matches!(*gap, "" | ",") && *colon == ":");
    let paths: BTreeSet<PathBuf> = pairs.iter().map(|[.., path]| PathBuf::from(path)).collect();
    let are_groups =
        paths.iter().all(|path| path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&b'\\'));
    (is_whole && are_groups).then_some(paths)
}

/// The value of a member that the text has once, where it is a number, a word, a string, or a flat list or object.
///
/// In a string there is no such name: its second quotation mark would be written with a backslash before it.
fn member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("\"{name}\":"))?;
    if rest.contains(&format!("\"{name}\":")) {
        return None;
    }
    let end = match rest.as_bytes().first()? {
        b'{' => rest.find('}')? + 1,
        b'[' => rest.find(']')? + 1,
        b'"' => rest[1..].find('"')? + 2,
        _ => rest.find([',', '}'])?,
    };
    Some(&rest[..end])
}

fn remove_group(group: &Path) -> bool {
    for attempt in 0..TRIES {
        match unlinkat(CWD, group, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return true,
            Err(Errno::BUSY) => thread::sleep(Duration::from_millis(1 << attempt)),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"id":"c","init_process_pid":12,"config":{"env":["x=\"systemd\":true"],
        "Hooks":{"poststop":null}},"cgroup_paths":{"":"/sys/fs/cgroup/unified/a","cpu,cpuacct":"/sys/fs/cgroup/cpu/a",
        "cpu":"/sys/fs/cgroup/cpu/a"},"intel_rdt_path":""}"#;

    fn state() -> String {
        STATE.replace("\n        ", "")
    }

    #[test]
    fn groups_are_those_of_the_record() {
        let found = groups_of(&state(), 12).expect("plain");
        let expected = ["/sys/fs/cgroup/cpu/a", "/sys/fs/cgroup/unified/a"].map(PathBuf::from);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected);
        let none = state().replace(r#"{"":"/sys/fs/cgroup/unified/a","cpu,cpuacct":"/sys/fs/cgroup/cpu/a","cpu":"/sys/fs/cgroup/cpu/a"}"#, "{}");
        assert_eq!(groups_of(&none, 12), Some(BTreeSet::new()));
    }

    #[test]
    fn what_is_not_plain_is_left_to_the_runtime() {
        assert_eq!(groups_of(&state(), 13), None, "another start's");
        for (plain, other) in [
            (r#""poststop":null"#, r#""poststop":[{"path":"/bin/x"}]"#),
            (r#""intel_rdt_path":"""#, r#""intel_rdt_path":"/sys/fs/resctrl/a""#),
            (r#""intel_rdt_path":"""#, r#""intel_rdt_path":"","Systemd":true"#),
            (r#""intel_rdt_path":"""#, r#""intel_rdt_path":"","cgroup_paths":{}"#),
            ("/sys/fs/cgroup/unified/a", "sys/fs/cgroup"),
            ("/sys/fs/cgroup/unified/a", r"/sys/fs/\u0041"),
            (r#"{"":"/sys"#, r#"{1:"/sys"#),
        ] {
            let text = state().replace(plain, other);
            assert_ne!(text, state());
            assert_eq!(groups_of(&text, 12), None, "{other}");
        }
        assert_eq!(groups_of("", 12), None);
    }
}
