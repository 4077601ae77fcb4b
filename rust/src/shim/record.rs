//! What outlives the shim: which process runs, and how it ended.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, WaitStatus};

use crate::log::escape;

/// How the container's init ended.
pub(crate) struct Exit {
    /// As the kernel gave it; None where it could not be had.
    pub(crate) status: Option<WaitStatus>,
    /// Nanoseconds since the epoch.
    pub(crate) started_ns: u64,
    /// Nanoseconds since the epoch.
    pub(crate) exited_ns: u64,
    /// The kernel killed one of its processes for want of memory.
    pub(crate) oom: bool,
    /// What else went wrong, or "".
    pub(crate) error: String,
}

impl Exit {
    /// Whether it ended otherwise than with status 0.
    pub(crate) fn has_failed(&self) -> bool {
        self.status.and_then(WaitStatus::exit_status) != Some(0)
    }

    /// The text of `exit.json`.
    pub(crate) fn to_json(&self) -> String {
        let signal = self.status.and_then(WaitStatus::terminating_signal).unwrap_or(0);
        let code = self.status.and_then(WaitStatus::exit_status);
        let code = code.unwrap_or(if signal > 0 { 128 + signal } else { 255 });
        let mut error = Vec::new();
        escape(&mut error, self.error.as_bytes());
        format!(
            "{{\"exit_status\":{code},\"signal\":{signal},\"started_ns\":{},\"exited_ns\":{},\"oom\":{},\"error\":\"{}\"}}\n",
            self.started_ns,
            self.exited_ns,
            self.oom,
            String::from_utf8_lossy(&error)
        )
    }
}

/// Writes `shim.json` into the state directory, which is lost at reboot: so need not be durable.
pub(crate) fn write_running(init: Pid, started_ns: u64, restarts: u32) -> io::Result<()> {
    // A pid may be used again; a pid with its start time is not, within one boot.
    write_state(init.as_raw_pid(), start_ticks(init).unwrap_or(0), started_ns, restarts, false)
}

/// The same while nothing runs and the next start is awaited; `started_ns` is of the run that has ended.
pub(crate) fn write_restarting(started_ns: u64, restarts: u32) -> io::Result<()> {
    write_state(0, 0, started_ns, restarts, true)
}

fn write_state(pid: i32, ticks: u64, started_ns: u64, restarts: u32, waits: bool) -> io::Result<()> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let text = format!(
        "{{\"shim_pid\":{},\"pid\":{pid},\"start_ticks\":{ticks},\"boot_id\":\"{}\",\"started_ns\":{started_ns},\
         \"restart_count\":{restarts},\"restarting\":{waits}}}\n",
        std::process::id(),
        boot.trim()
    );
    write_whole(Path::new("."), "shim.json", text.as_bytes())
}

/// Field 22 of `/proc/PID/stat`, counted after the command's name, which may hold anything.
pub(crate) fn start_ticks(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Replaces `directory/name`: after a power cut there is the old file or the whole new one.
pub(crate) fn write_durably(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let staged = directory.join(format!("{name}.tmp"));
    let write = || {
        let mut file = create(&staged)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&staged, directory.join(name))?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| named(&directory.join(name), &error))
}

/// Replaces `directory/name`: whoever looks sees the old file or the whole new one, while the machine is up.
pub(crate) fn write_whole(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let staged = directory.join(format!("{name}.tmp"));
    create(&staged)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&staged, directory.join(name)))
        .map_err(|error| named(&directory.join(name), &error))
}

/// The error with the file that it is about: this is all that the user will be told.
pub(crate) fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// A file that nobody else reads, whatever the umask.
fn create(path: &Path) -> io::Result<File> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Nanoseconds since the epoch, by the wall clock.
pub(crate) fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A time as RFC 3339 in UTC, with nine digits, so that texts order as times do.
pub(crate) fn rfc3339(ns: u64) -> String {
    let (seconds, nanos) = (ns / 1_000_000_000, ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Civil date from days since 1970-01-01, in eras of 400 years that begin on 1 March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}
