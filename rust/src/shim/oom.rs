//! Whether the kernel killed for want of memory in the container's control group.
//!
//! The counter goes with the group, which the runtime's `delete` removes: so it is read before.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

/// Where the group is made unless its process says otherwise: `PARENT` of `runtime/cgroup.py`.
const PARENT: &str = "pyctrd";

/// The file that counts, found when the container starts. None where no memory controller is mounted.
pub(crate) struct Counter {
    file: Option<PathBuf>,
}

impl Counter {
    /// Finds it by the control groups of the container's init and the host's mounts.
    pub(crate) fn find(init: Pid, id: &str) -> Self {
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", init.as_raw_pid())).unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self { file: locate(&groups, &mounts, id).into_iter().find(|file| file.exists()) }
    }

    /// Whether anything was killed so far.
    pub(crate) fn has_killed(&self) -> bool {
        let text = self.file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        text.is_some_and(|text| kills(&text) > 0)
    }
}

/// `oom_kill` of version 2's `memory.events`, and of version 1's `memory.oom_control` since Linux 4.13.
fn kills(text: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// The files that may be it, the likeliest first.
fn locate(groups: &str, mounts: &str, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (kind, file) in [("cgroup", "memory.oom_control"), ("cgroup2", "memory.events")] {
        for (root, target) in mounts.lines().filter_map(|line| mount_of(line, kind)) {
            let path = groups.lines().find_map(|line| group_of(line, kind));
            if let Some(group) = path.and_then(|path| own(path, id)) {
                found.extend(beneath(root, target, group).map(|directory| directory.join(file)));
            }
            // Of a process that has ended already version 1 says that it is in the root group.
            found.push(Path::new(target).join(PARENT).join(id).join(file));
        }
    }
    found
}

/// A line of `/proc/PID/cgroup`: the path, if it is of version 2, or of version 1's memory controller.
fn group_of<'a>(line: &'a str, kind: &str) -> Option<&'a str> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let wanted = match kind {
        "cgroup2" => controllers.is_empty(),
        _ => controllers.split(',').any(|name| name == "memory"),
    };
    wanted.then_some(path)
}

/// A line of `/proc/self/mountinfo`: root and target, if it is version 2's, or version 1's memory controller's.
fn mount_of<'a>(line: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let (head, tail) = line.split_once(" - ")?;
    let mut head = head.split(' ').skip(3);
    let (root, target) = (head.next()?, head.next()?);
    let mut tail = tail.split(' ');
    let of_kind = tail.next()? == kind;
    let has_memory = kind == "cgroup2" || tail.nth(1)?.split(',').any(|option| option == "memory");
    (of_kind && has_memory).then_some((root, target))
}

/// The container's own group: its init may have moved into one beneath it, as systemd does.
fn own<'a>(path: &'a str, id: &str) -> Option<&'a str> {
    let from = path.find(id)?;
    let length = path[from..].find('/').unwrap_or(path.len() - from);
    Some(&path[..from + length])
}

/// A group's directory, where a mount shows all of the hierarchy, or a part in which the group is.
fn beneath(root: &str, target: &str, group: &str) -> Option<PathBuf> {
    let rest = group.strip_prefix(root.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then(|| Path::new(target).join(rest.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::{kills, locate};

    const V1: &str = "33 25 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      35 25 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      42 25 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_files_are_found_under_each_version() {
        let first = |groups, mounts| locate(groups, mounts, "abc").into_iter().next().unwrap_or_default();
        assert_eq!(
            first("5:cpu:/pyctrd/abc\n4:memory:/pyctrd/abc\n0::/\n", V1).to_str(),
            Some("/sys/fs/cgroup/memory/pyctrd/abc/memory.oom_control")
        );
        assert_eq!(
            first("0::/pyctrd/abc/init.scope\n", V2).to_str(),
            Some("/sys/fs/cgroup/pyctrd/abc/memory.events")
        );
        // It has ended already.
        assert_eq!(
            first("4:memory:/\n0::/\n", V1).to_str(),
            Some("/sys/fs/cgroup/memory/pyctrd/abc/memory.oom_control")
        );
    }

    #[test]
    fn a_mount_of_a_part_shows_what_is_in_it() {
        let part = "30 23 0:26 /outer /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let files = locate("0::/outer/pyctrd/abc\n", part, "abc");
        assert_eq!(files[0].to_str(), Some("/sys/fs/cgroup/pyctrd/abc/memory.events"));
        assert_eq!(locate("0::/other/abc\n", part, "abc").len(), 1);
    }

    #[test]
    fn kills_are_counted() {
        assert_eq!(kills("low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(kills("oom_kill_disable 0\nunder_oom 0\n"), 0);
    }
}
