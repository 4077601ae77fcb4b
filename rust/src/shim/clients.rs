//! Who is attached: their queues, and who may hold the container up.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::frame::{self, Decoded, Kind, Mode};
use crate::report::Report;

/// Queued for the foreground client before the container has to wait, as it would on a terminal.
const FOREGROUND_HIGH_WATER_BYTES: usize = 64 << 10;

/// Queued for any other client before it is dropped: a slow onlooker never holds the container up.
const QUEUE_MAX_BYTES: usize = 512 << 10;

/// Read from a client at once.
const READ_BYTES: usize = 32 << 10;

/// More clients than this are refused, so that a loop that connects cannot exhaust descriptors.
const CLIENTS_MAX: usize = 64;

/// One connection.
pub(crate) struct Client {
    socket: UnixStream,
    mode: Option<Mode>,
    foreground: bool,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    gone: bool,
    /// It has said that no more input comes.
    ended: bool,
}

/// What a client asks for.
pub(crate) enum Request {
    /// Bytes for standard input.
    Stdin(Vec<u8>),
    /// The end of standard input.
    StdinEof,
    /// Rows, columns.
    Resize(u16, u16),
    /// A signal's number.
    Signal(u8),
    /// A probe of the health check, now.
    Probe,
}

/// All connections, and the socket that new ones come from.
pub(crate) struct Clients {
    listener: Option<UnixListener>,
    list: Vec<Client>,
    foreground_wanted: bool,
    input_over: bool,
    foreground_left: bool,
}

impl Clients {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self {
            listener: Some(listener),
            list: Vec::new(),
            foreground_wanted: false,
            input_over: false,
            foreground_left: false,
        }
    }

    /// Waits for the first client that wants the streams; false where the engine is gone instead.
    pub(crate) fn wait_for_foreground(&mut self, report: &Report) -> io::Result<bool> {
        self.foreground_wanted = true;
        while self.foreground_wanted {
            let mut fds = Vec::new();
            self.poll_for(&mut fds, true);
            let of_clients = fds.len();
            let pipe = report.as_fd();
            if let Some(pipe) = &pipe {
                fds.push(PollFd::new(pipe, PollFlags::empty()));
            }
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let events: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            if events.get(of_clients).is_some_and(|event| !event.is_empty()) {
                return Ok(false);
            }
            // What the client sends after its hello waits in its inbox.
            self.accept_and_hello(&events[..of_clients]);
        }
        Ok(true)
    }

    fn accept_and_hello(&mut self, events: &[PollFlags]) {
        for (client, event) in self.list.iter_mut().zip(&events[1..]) {
            if !event.is_empty() {
                client.receive();
                self.foreground_wanted = client.hello(self.foreground_wanted);
            }
        }
        if !events[0].is_empty() {
            self.accept();
        }
        self.sweep();
    }

    /// Adds the listener and every client, in this order; `read` where their bytes are wanted.
    pub(crate) fn poll_for<'a>(&'a self, fds: &mut Vec<PollFd<'a>>, read: bool) {
        if let Some(listener) = &self.listener {
            fds.push(PollFd::new(listener, PollFlags::IN));
        }
        for client in &self.list {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, read || client.mode != Some(Mode::Streams));
            flags.set(PollFlags::OUT, !client.outbox.is_empty());
            fds.push(PollFd::new(&client.socket, flags));
        }
    }

    /// Serves what `poll_for` asked about; what the clients want is added to `requests`.
    pub(crate) fn serve(&mut self, events: &[PollFlags], read: bool, requests: &mut Vec<Request>) {
        let listening = usize::from(self.listener.is_some());
        for (client, event) in self.list.iter_mut().zip(&events[listening..]) {
            if event.contains(PollFlags::OUT) {
                client.send();
            }
            if event.contains(PollFlags::IN) || (read && event.intersects(PollFlags::HUP | PollFlags::ERR)) {
                client.receive();
            } else if event.intersects(PollFlags::HUP | PollFlags::ERR) {
                // It left while the container was not reading: what it still had to say is dropped.
                client.gone = true;
            }
            client.hello(false);
            client.requests(requests);
        }
        if listening == 1 && !events[0].is_empty() {
            self.accept();
        }
    }

    /// Serves what already lies in the inboxes.
    pub(crate) fn take_requests(&mut self, requests: &mut Vec<Request>) {
        for client in &mut self.list {
            client.requests(requests);
        }
    }

    /// Queues output for those who want it.
    pub(crate) fn output(&mut self, kind: Kind, bytes: &[u8]) {
        for client in self.list.iter_mut().filter(|client| client.mode == Some(Mode::Streams)) {
            frame::encode(&mut client.outbox, kind, bytes);
            client.send();
            if !client.foreground && client.outbox.len() > QUEUE_MAX_BYTES {
                client.gone = true;
            }
        }
    }

    /// Tells those who follow the log; once is enough until they have heard it.
    pub(crate) fn log_grew(&mut self) {
        for client in self.list.iter_mut().filter(|client| client.mode == Some(Mode::Log)) {
            if client.outbox.is_empty() {
                frame::encode(&mut client.outbox, Kind::LogGrew, &[]);
                client.send();
            }
        }
    }

    /// Queues the exit record for everyone, and takes no more requests.
    pub(crate) fn exit(&mut self, record: &[u8]) {
        self.accept();
        for client in &mut self.list {
            client.inbox.clear();
            frame::encode(&mut client.outbox, Kind::Exit, record);
        }
    }

    /// Whether the container's output may be read: the foreground client keeps up, or there is none.
    pub(crate) fn keep_up(&self) -> bool {
        self.list.iter().all(|c| !c.foreground || c.outbox.len() < FOREGROUND_HIGH_WATER_BYTES)
    }

    /// Forgets those who left; whether the foreground client has left, or ended its input, be it in an earlier run.
    pub(crate) fn sweep(&mut self) -> bool {
        self.foreground_left |= self.list.iter().any(|client| client.foreground && client.gone);
        self.input_over |=
            self.foreground_left || self.list.iter().any(|client| client.foreground && client.ended);
        self.list.retain(|client| !client.gone);
        self.input_over
    }

    /// Whether the client that the container was started for is gone.
    pub(crate) fn foreground_left(&self) -> bool {
        self.foreground_left
    }

    /// Sends what fits, waiting for nobody.
    pub(crate) fn flush(&mut self) {
        for client in &mut self.list {
            client.send();
        }
        self.sweep();
    }

    /// New connections are refused from here on.
    pub(crate) fn stop_listening(&mut self) {
        self.listener = None;
    }

    /// Waits until each client has what is queued for it, or is gone.
    pub(crate) fn flush_all(&mut self) -> io::Result<()> {
        loop {
            self.list.retain(|client| !client.gone && !client.outbox.is_empty());
            if self.list.is_empty() {
                return Ok(());
            }
            let mut fds: Vec<_> =
                self.list.iter().map(|client| PollFd::new(&client.socket, PollFlags::OUT)).collect();
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            drop(fds);
            self.flush();
        }
    }

    fn accept(&mut self) {
        while let Some(Ok((socket, _))) = self.listener.as_ref().map(UnixListener::accept) {
            if !is_ours(&socket) {
                continue;
            }
            if self.list.len() == CLIENTS_MAX {
                // Whoever has not even said what it wants makes room, the oldest first.
                if let Some(silent) = self.list.iter().position(|client| client.mode.is_none()) {
                    self.list.remove(silent);
                }
            }
            if self.list.len() < CLIENTS_MAX && socket.set_nonblocking(true).is_ok() {
                self.list.push(Client {
                    socket,
                    mode: None,
                    foreground: false,
                    inbox: Vec::new(),
                    outbox: Vec::new(),
                    gone: false,
                    ended: false,
                });
            }
        }
    }
}

/// Whether the same user is at the other end, or root. The directory lets nobody else in; a descriptor may be passed on.
fn is_ours(socket: &UnixStream) -> bool {
    let own = rustix::process::geteuid();
    rustix::net::sockopt::socket_peercred(socket).is_ok_and(|peer| peer.uid == own || peer.uid.is_root())
}

impl Client {
    /// Reads what has come.
    fn receive(&mut self) {
        let from = self.inbox.len();
        self.inbox.resize(from + READ_BYTES, 0);
        let received = rustix::net::recv(&self.socket, &mut self.inbox[from..], RecvFlags::DONTWAIT);
        let n = match received {
            Ok((n, _)) => n,
            Err(Errno::AGAIN | Errno::INTR) => {
                self.inbox.truncate(from);
                return;
            }
            Err(_) => 0,
        };
        self.inbox.truncate(from + n);
        self.gone |= n == 0;
    }

    /// Takes the hello, if it has come; whether a foreground client is still wanted.
    fn hello(&mut self, foreground_wanted: bool) -> bool {
        if self.mode.is_some() {
            return foreground_wanted;
        }
        match frame::decode(&self.inbox) {
            Decoded::Partial => foreground_wanted,
            Decoded::Frame(Kind::Hello, payload, taken) => {
                self.inbox.drain(..taken);
                self.mode = Mode::parse(&payload);
                self.gone |= self.mode.is_none();
                if self.mode == Some(Mode::Log) {
                    // The log may have grown between the client's first look and its hello.
                    frame::encode(&mut self.outbox, Kind::LogGrew, &[]);
                }
                self.foreground = foreground_wanted && self.mode == Some(Mode::Streams);
                foreground_wanted && !self.foreground
            }
            Decoded::Frame(..) | Decoded::Wrong => {
                self.gone = true;
                foreground_wanted
            }
        }
    }

    /// Takes every whole frame out of the inbox.
    fn requests(&mut self, to: &mut Vec<Request>) {
        if self.mode.is_none() {
            return;
        }
        loop {
            match frame::decode(&self.inbox) {
                Decoded::Partial => break,
                Decoded::Frame(kind, payload, taken) => {
                    self.inbox.drain(..taken);
                    match (kind, payload.as_slice()) {
                        (Kind::Stdin, _) if self.mode == Some(Mode::Streams) => {
                            to.push(Request::Stdin(payload));
                        }
                        // An onlooker's end is not the container's: only who started it may end its input.
                        (Kind::StdinEof, _) if self.foreground => {
                            self.ended = true;
                            to.push(Request::StdinEof);
                        }
                        (Kind::StdinEof, _) => {}
                        (Kind::Detach, _) => self.foreground = false,
                        (Kind::Resize, &[a, b, c, d]) => {
                            to.push(Request::Resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])));
                        }
                        (Kind::Probe, &[]) => to.push(Request::Probe),
                        (Kind::Signal, &[number]) => to.push(Request::Signal(number)),
                        _ => self.gone = true,
                    }
                }
                Decoded::Wrong => {
                    self.gone = true;
                    break;
                }
            }
        }
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
    }

    /// Sends what fits.
    fn send(&mut self) {
        let mut sent = 0;
        while sent < self.outbox.len() && !self.gone {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(self.as_fd(), &self.outbox[sent..], flags) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.gone = true,
            }
        }
        self.outbox.drain(..sent);
        if self.outbox.is_empty() {
            self.outbox = Vec::new();
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
