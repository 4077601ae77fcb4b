//! The attach protocol: one byte of kind, four bytes of length (big-endian), the payload.

/// Longest payload that a client may send: more is a client that speaks something else.
pub(crate) const PAYLOAD_MAX_BYTES: usize = 64 << 10;

/// Bytes before the payload.
const HEADER_BYTES: usize = 5;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Client: bytes for the container's standard input.
    Stdin = 0,
    /// Client: standard input is at its end.
    StdinEof = 1,
    /// Shim: bytes of the container's standard output, or of its terminal.
    Stdout = 2,
    /// Shim: bytes of its standard error.
    Stderr = 3,
    /// Client: rows and columns, two bytes each, of the terminal.
    Resize = 4,
    /// Client: a signal's number, one byte, for the container's init.
    Signal = 5,
    /// Shim: the exit record, the text of `exit.json`.
    Exit = 6,
    /// Client, first of all: what it wants, one byte of [`Mode`].
    Hello = 7,
    /// Shim: the log has grown.
    LogGrew = 8,
    /// Client that the start was for: it leaves, and what was started runs on as if nobody had waited for it.
    Detach = 9,
    /// Client: the health check's next probe is due now.
    Probe = 10,
}

/// What a client wants.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// To be told the exit, and to send signals and resizes.
    Control,
    /// The streams as well.
    Streams,
    /// To be told when the log has grown.
    Log,
}

impl Mode {
    /// Reads the payload of a hello.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        match payload {
            [0] => Some(Self::Control),
            [1] => Some(Self::Streams),
            [2] => Some(Self::Log),
            _ => None,
        }
    }
}

/// Appends a frame.
pub(crate) fn encode(to: &mut Vec<u8>, kind: Kind, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    to.reserve(HEADER_BYTES + payload.len());
    to.push(kind as u8);
    to.extend_from_slice(&length.to_be_bytes());
    to.extend_from_slice(payload);
}

/// A frame that a client sent, or why there is none.
pub(crate) enum Decoded {
    /// Kind, payload, and how many bytes both took.
    Frame(Kind, Vec<u8>, usize),
    /// More bytes are needed.
    Partial,
    /// This is not the protocol.
    Wrong,
}

/// Reads the first frame of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Decoded {
    let [kind, a, b, c, d, rest @ ..] = bytes else { return Decoded::Partial };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    let kind = match kind {
        0 => Kind::Stdin,
        1 => Kind::StdinEof,
        4 => Kind::Resize,
        5 => Kind::Signal,
        7 => Kind::Hello,
        9 => Kind::Detach,
        10 => Kind::Probe,
        _ => return Decoded::Wrong,
    };
    if length > PAYLOAD_MAX_BYTES {
        return Decoded::Wrong;
    }
    match rest.get(..length) {
        Some(payload) => Decoded::Frame(kind, payload.to_vec(), HEADER_BYTES + length),
        None => Decoded::Partial,
    }
}
