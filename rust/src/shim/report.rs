//! What the engine that started the shim hears of it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::process::Pid;

/// The pipe to the engine; says nothing more once the container runs.
pub(crate) struct Report {
    pipe: Option<File>,
}

impl Report {
    /// Takes standard output for itself. Panics still go to standard error, which is the same pipe.
    pub(crate) fn take_stdout() -> io::Result<Self> {
        let pipe = io::stdout().as_fd().try_clone_to_owned()?;
        silence(&[Stream::Out])?;
        Ok(Self { pipe: Some(pipe.into()) })
    }

    /// The socket can be connected to.
    pub(crate) fn ready(&mut self) {
        self.say(&format!("ready {}\n", std::process::id()));
    }

    /// The container runs. The engine reads the end of the pipe after this line.
    pub(crate) fn started(&mut self, init: Pid) -> io::Result<()> {
        self.say(&format!("started {}\n", init.as_raw_pid()));
        self.pipe = None;
        silence(&[Stream::Err])
    }

    /// There will be no container.
    pub(crate) fn failed(&mut self, status: i32, message: &str) {
        self.say(&format!("failed {status}\n{message}"));
        self.pipe = None;
    }

    /// The engine's end: `POLLERR` on it says that nobody reads any more.
    pub(crate) fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    fn say(&mut self, text: &str) {
        if let Some(pipe) = &mut self.pipe {
            // A reader that is gone is noticed by poll, where there is something to undo.
            let _ = pipe.write_all(text.as_bytes());
        }
    }
}

/// Standard output or standard error.
enum Stream {
    Out,
    Err,
}

fn silence(streams: &[Stream]) -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for stream in streams {
        match stream {
            Stream::Out => rustix::stdio::dup2_stdout(&null)?,
            Stream::Err => rustix::stdio::dup2_stderr(&null)?,
        }
    }
    Ok(())
}
