//! The command line: written by the engine, never by a person.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use crate::health::Settings;
use crate::log::Form;
use crate::rotate::Bounds;

/// What to run and how to hold it.
#[derive(Default)]
#[allow(clippy::struct_excessive_bools, reason = "one for each flag of the command line")]
pub(crate) struct Args {
    /// The container's name for the runtime.
    pub(crate) id: OsString,
    /// Holds `config.json`; receives the log and the exit record.
    pub(crate) bundle: PathBuf,
    /// This container's own directory for sockets and locks.
    pub(crate) state: PathBuf,
    /// The runtime's executable.
    pub(crate) runtime: PathBuf,
    /// The runtime's state directory.
    pub(crate) root: PathBuf,
    /// Words of the runtime's that stand before all others: `--systemd-cgroup`.
    pub(crate) runtime_words: Vec<OsString>,
    /// Where the container's processes were written to, from which they go on; None begins anew.
    pub(crate) restore: Option<PathBuf>,
    /// What the runtime is told beside that, as `--tcp-established`.
    pub(crate) restore_words: Vec<OsString>,
    /// The container gets a pseudo-terminal.
    pub(crate) terminal: bool,
    /// The container's standard input stays open for clients.
    pub(crate) stdin: bool,
    /// Start the container only when a client has attached.
    pub(crate) attached: bool,
    /// The container is deleted at its end: its exit record need not survive a power cut.
    pub(crate) transient: bool,
    /// The process to run in a container that runs already; None is a container's init.
    pub(crate) process: Option<PathBuf>,
    /// How long that process, and what it starts, may run.
    pub(crate) timeout: Option<Duration>,
    /// How the log is written.
    pub(crate) log_form: Form,
    /// How large it may become.
    pub(crate) log_bounds: Bounds,
    /// How the container's health is asked for; None is not at all.
    pub(crate) health: Option<Settings>,
    /// A command to run when all is over.
    pub(crate) on_exit: Vec<OsString>,
}

impl Args {
    /// Reads the arguments after the program's name.
    pub(crate) fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let mut args = Self::default();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{}: needs a value", word.display()));
            match word.to_str().unwrap_or_default() {
                "--id" => args.id = value()?,
                "--bundle" => args.bundle = value()?.into(),
                "--state" => args.state = value()?.into(),
                "--runtime" => args.runtime = value()?.into(),
                "--root" => args.root = value()?.into(),
                "--runtime-arg" => args.runtime_words.push(value()?),
                "--restore" => args.restore = Some(value()?.into()),
                "--restore-arg" => args.restore_words.push(value()?),
                "--process" => args.process = Some(value()?.into()),
                "--timeout-ms" => args.timeout = Some(milliseconds(&value()?)?),
                "--terminal" => args.terminal = true,
                "--stdin" => args.stdin = true,
                "--attached" => args.attached = true,
                "--transient" => args.transient = true,
                "--log-driver" => args.log_form = read(&word, &value()?, Form::parse)?,
                "--log-max-bytes" => args.log_bounds.max_bytes = number(&word, &value()?)?,
                "--log-max-files" => args.log_bounds.max_files = number(&word, &value()?)?,
                "--health" => args.health = Some(read(&word, &value()?, Settings::parse)?),
                "--" => {
                    args.on_exit = words.collect();
                    break;
                }
                _ => return Err(format!("{}: no such option", word.display())),
            }
        }
        for (name, path) in [
            ("--bundle", &args.bundle),
            ("--state", &args.state),
            ("--runtime", &args.runtime),
            ("--root", &args.root),
        ] {
            if !path.is_absolute() {
                return Err(format!("{name}: must be an absolute path"));
            }
        }
        if args.id.is_empty() { Err("--id: must not be empty".to_owned()) } else { Ok(args) }
    }

    /// The runtime with the options that stand before its verb; `log` is a name in the state directory.
    pub(crate) fn runtime_command(&self, log: &str) -> Command {
        let mut command = Command::new(&self.runtime);
        command.args(&self.runtime_words).arg("--root").arg(&self.root);
        // A warning on standard error would look like the container's own words.
        command.arg("--log").arg(self.state.join(log)).args(["--log-format", "json"]);
        command
    }
}

fn milliseconds(text: &OsStr) -> Result<Duration, String> {
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Duration::from_millis).ok_or_else(|| format!("{}: expected milliseconds", text.display()))
}

fn number<T: FromStr>(name: &OsStr, value: &OsStr) -> Result<T, String> {
    read(name, value, |text| text.parse().ok())
}

fn read<T>(name: &OsStr, value: &OsStr, parse: impl Fn(&str) -> Option<T>) -> Result<T, String> {
    let found = value.to_str().and_then(parse);
    found.ok_or_else(|| format!("{}: cannot be {}", name.display(), value.display()))
}
