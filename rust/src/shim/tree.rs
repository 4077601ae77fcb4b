//! A process and what it started, found in `/proc` and ended.
//!
//! The kernel keeps no list of what a process has started. Found are its descendants, the processes of the session that
//! it leads, whoever their parent is by now, and what was left to this process, as in a container without a pid namespace
//! of its own. Not found is a process that has lost its parent and has made a session
//! of its own, as daemons do: it belongs to the container's init then, and ends with the container.

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

/// How often it is looked for more before what was found is killed: each look finds what was started during the last.
const LOOKS_MAX: usize = 1_000;

/// A process, with what tells it from a later one of the same number.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    session: i32,
    start_ticks: u64,
}

/// Kills a process that leads a session, and all that it started. Nothing is done where it has been reaped.
pub(crate) fn end_process(root: Pid, start_ticks: u64) {
    let root = root.as_raw_pid();
    let own = rustix::process::getpid().as_raw_pid();
    end(|all| {
        let led = |process: &Process| process.pid == root && process.start_ticks == start_ticks;
        if !all.iter().any(led) {
            return Vec::new();
        }
        let leads = all.iter().any(|process| led(process) && process.session == root);
        let is_ours = |process: &Process| process.parent == own || (leads && process.session == root);
        members(all, |process| process.pid == root || is_ours(process))
    });
}

/// Kills a process, what it has started, what is of its process group and of the session that it leads, and waits for it;
/// what else this process has for children, above all the container's init, is let alone.
pub(crate) fn end_tree(root: Pid, start_ticks: u64) {
    let root = root.as_raw_pid();
    let own_group = rustix::process::getpgrp().as_raw_pid();
    let killed = end(|all| {
        let is_root = |process: &&Process| process.pid == root && process.start_ticks == start_ticks;
        let Some(found) = all.iter().find(is_root) else { return Vec::new() };
        // One that is in this process' own group would take the container with it.
        let is_near = |process: &Process| {
            (process.group == found.group && found.group != own_group)
                || (process.session == root && found.session == root)
        };
        members(all, |process| process.pid == root || is_near(process))
    });
    for pidfd in killed {
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        while matches!(rustix::event::poll(&mut fds, None), Err(Errno::INTR)) {}
    }
}

/// Whether a process is this one's child.
pub(crate) fn is_child(pid: Pid) -> bool {
    let own = rustix::process::getpid().as_raw_pid();
    read(pid.as_raw_pid()).is_some_and(|process| process.parent == own)
}

/// Kills all that this process has started, and waits for it.
pub(crate) fn end_children() {
    let own = rustix::process::getpid().as_raw_pid();
    end(|all| members(all, |process| process.parent == own));
    while rustix::process::waitpid(None, WaitOptions::empty()).is_ok_and(|ended| ended.is_some()) {}
}

/// Stops what is chosen until nothing new is there, so that nothing can start more, and kills it then; what was killed.
fn end(choose: impl Fn(&[Process]) -> Vec<Process>) -> Vec<OwnedFd> {
    let mut stopped: HashMap<i32, Process> = HashMap::new();
    for _ in 0..LOOKS_MAX {
        let mut found = choose(&list());
        found.retain(|process| !stopped.get(&process.pid).is_some_and(|known| is_same(*known, *process)));
        if found.is_empty() {
            break;
        }
        for process in found {
            send(process, Signal::STOP);
            stopped.insert(process.pid, process);
        }
    }
    stopped.into_values().filter_map(|process| send(process, Signal::KILL)).collect()
}

/// Those that `is_first` picks, and their descendants.
fn members(all: &[Process], is_first: impl Fn(&Process) -> bool) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(*process);
    }
    let mut left: Vec<Process> = all.iter().copied().filter(is_first).collect();
    let mut found: HashMap<i32, Process> = HashMap::new();
    while let Some(process) = left.pop() {
        if found.insert(process.pid, process).is_none() {
            left.extend(children.get(&process.pid).into_iter().flatten());
        }
    }
    found.into_values().collect()
}

fn list() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// Fields 4, 5, 6 and 22 of `/proc/PID/stat`, counted after the command's name, which may hold anything.
fn read(pid: i32) -> Option<Process> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Its parent may be another one by now.
fn is_same(one: Process, other: Process) -> bool {
    one.pid == other.pid && one.start_ticks == other.start_ticks
}

/// Its descriptor, where it is there still.
fn send(process: Process, signal: Signal) -> Option<OwnedFd> {
    let pidfd = rustix::process::pidfd_open(Pid::from_raw(process.pid)?, PidfdFlags::empty()).ok()?;
    // Looked at again now that the descriptor holds it: the number may have become another one's.
    if !read(process.pid).is_some_and(|now| is_same(now, process)) {
        return None;
    }
    let _ = rustix::process::pidfd_send_signal(&pidfd, signal);
    Some(pidfd)
}
