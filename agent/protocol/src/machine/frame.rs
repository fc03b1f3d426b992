//! One message between host and machine, as a kind and a payload.

use serde::Serialize;

use crate::{
    ExitStatus,
    machine::{Hello, Ready},
};

/// The most bytes of a stream in one frame.
pub const MAX_DATA_BYTES: usize = 32 << 10;

/// The longest payload of any frame. Arguments and environment (2 MiB in Linux) fit.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

/// A standard stream of a session's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Stream {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// What the terminal shows, whichever of the streams are the terminal.
    Terminal = 3,
}

impl Stream {
    fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Terminal,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Host: what to run.
    Hello(Box<Hello>),
    /// Host: run it.
    Go,
    /// Host: bytes for standard input or, if that is the terminal, typed there.
    Stdin(Vec<u8>),
    /// Host: standard input has ended.
    StdinEnd,
    /// Host: send this signal (1..=64) to the process group.
    Signal(u8),
    /// Host: the terminal has another size.
    Resize { columns: u16, rows: u16 },
    /// Host: nobody reads this stream any more.
    OutputClosed(Stream),
    /// Both: so many more bytes may be sent on this stream.
    Credit { stream: Stream, bytes: u32 },
    /// Machine: a session is ready to go.
    Accepted,
    /// Machine: the session cannot be, and why.
    Refused(String),
    /// Machine: bytes that the process wrote.
    Output { stream: Stream, bytes: Vec<u8> },
    /// Machine: the process reads its standard input no more.
    StdinClosed,
    /// Machine: how the process ended. The session's last frame.
    Exit(ExitStatus),
    /// Host, control port: are you there? Carries CLOCK_REALTIME in nanoseconds.
    Query { time_ns: u64 },
    /// Machine, control port.
    Ready(Ready),
    /// Host, control port: end all sessions, flush, and power off.
    Shutdown,
    /// Machine, control port: the answer to `Shutdown`.
    Stopping,
}

/// Why bytes are no frame. The decoder goes on with the next one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame exceeds {MAX_PAYLOAD_BYTES} bytes")]
    TooLong,
    #[error("a frame was cut or damaged")]
    Damaged,
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u8),
    #[error("a frame of kind {kind} has a malformed payload of {length} bytes")]
    Payload { kind: u8, length: usize },
    #[error("a frame of kind {kind} holds no message of this protocol")]
    Message { kind: u8, source: serde_json::Error },
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const GO: u8 = 2;
    pub(super) const STDIN: u8 = 3;
    pub(super) const STDIN_END: u8 = 4;
    pub(super) const SIGNAL: u8 = 5;
    pub(super) const RESIZE: u8 = 6;
    pub(super) const OUTPUT_CLOSED: u8 = 7;
    pub(super) const CREDIT: u8 = 8;
    pub(super) const ACCEPTED: u8 = 16;
    pub(super) const REFUSED: u8 = 17;
    pub(super) const OUTPUT: u8 = 18;
    pub(super) const STDIN_CLOSED: u8 = 19;
    pub(super) const EXIT: u8 = 20;
    pub(super) const QUERY: u8 = 32;
    pub(super) const READY: u8 = 33;
    pub(super) const SHUTDOWN: u8 = 34;
    pub(super) const STOPPING: u8 = 35;
}

impl Frame {
    /// The frame's kind; its payload is appended to `payload`.
    pub(super) fn write(&self, payload: &mut Vec<u8>) -> u8 {
        match self {
            Self::Hello(hello) => {
                json(payload, hello.as_ref());
                kind::HELLO
            }
            Self::Go => kind::GO,
            Self::Stdin(bytes) => {
                payload.extend(bytes);
                kind::STDIN
            }
            Self::StdinEnd => kind::STDIN_END,
            Self::Signal(signal) => {
                payload.push(*signal);
                kind::SIGNAL
            }
            Self::Resize { columns, rows } => {
                payload.extend(columns.to_le_bytes());
                payload.extend(rows.to_le_bytes());
                kind::RESIZE
            }
            Self::OutputClosed(stream) => {
                payload.push(*stream as u8);
                kind::OUTPUT_CLOSED
            }
            Self::Credit { stream, bytes } => {
                payload.push(*stream as u8);
                payload.extend(bytes.to_le_bytes());
                kind::CREDIT
            }
            Self::Accepted => kind::ACCEPTED,
            Self::Refused(why) => {
                payload.extend(why.as_bytes());
                kind::REFUSED
            }
            Self::Output { stream, bytes } => {
                payload.push(*stream as u8);
                payload.extend(bytes);
                kind::OUTPUT
            }
            Self::StdinClosed => kind::STDIN_CLOSED,
            Self::Exit(status) => {
                json(payload, status);
                kind::EXIT
            }
            Self::Query { time_ns } => {
                payload.extend(time_ns.to_le_bytes());
                kind::QUERY
            }
            Self::Ready(ready) => {
                json(payload, ready);
                kind::READY
            }
            Self::Shutdown => kind::SHUTDOWN,
            Self::Stopping => kind::STOPPING,
        }
    }

    pub(super) fn read(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let malformed = || FrameError::Payload { kind, length: payload.len() };
        let no_message = |source| FrameError::Message { kind, source };
        let empty = |frame: Self| if payload.is_empty() { Ok(frame) } else { Err(malformed()) };
        let stream = || payload.first().copied().and_then(Stream::from_u8).ok_or_else(malformed);
        match kind {
            kind::HELLO => serde_json::from_slice(payload).map(Self::Hello).map_err(no_message),
            kind::GO => empty(Self::Go),
            kind::STDIN => Ok(Self::Stdin(data(payload).ok_or_else(malformed)?)),
            kind::STDIN_END => empty(Self::StdinEnd),
            kind::SIGNAL => match payload {
                [signal @ 1..=64] => Ok(Self::Signal(*signal)),
                _ => Err(malformed()),
            },
            kind::RESIZE => match *payload {
                [c0, c1, r0, r1] => Ok(Self::Resize {
                    columns: u16::from_le_bytes([c0, c1]),
                    rows: u16::from_le_bytes([r0, r1]),
                }),
                _ => Err(malformed()),
            },
            kind::OUTPUT_CLOSED if payload.len() == 1 => Ok(Self::OutputClosed(stream()?)),
            kind::CREDIT => match *payload {
                [_, a, b, c, d] => {
                    Ok(Self::Credit { stream: stream()?, bytes: u32::from_le_bytes([a, b, c, d]) })
                }
                _ => Err(malformed()),
            },
            kind::ACCEPTED => empty(Self::Accepted),
            kind::REFUSED => Ok(Self::Refused(String::from_utf8_lossy(payload).into_owned())),
            kind::OUTPUT => {
                let stream = stream()?;
                Ok(Self::Output { stream, bytes: data(&payload[1..]).ok_or_else(malformed)? })
            }
            kind::STDIN_CLOSED => empty(Self::StdinClosed),
            kind::EXIT => serde_json::from_slice(payload).map(Self::Exit).map_err(no_message),
            kind::QUERY => {
                let time = payload.try_into().map_err(|_| malformed())?;
                Ok(Self::Query { time_ns: u64::from_le_bytes(time) })
            }
            kind::READY => serde_json::from_slice(payload).map(Self::Ready).map_err(no_message),
            kind::SHUTDOWN => empty(Self::Shutdown),
            kind::STOPPING => empty(Self::Stopping),
            kind::OUTPUT_CLOSED => Err(malformed()),
            other => Err(FrameError::UnknownKind(other)),
        }
    }
}

fn data(bytes: &[u8]) -> Option<Vec<u8>> {
    (bytes.len() <= MAX_DATA_BYTES).then(|| bytes.to_vec())
}

fn json(to: &mut Vec<u8>, message: &impl Serialize) {
    serde_json::to_writer(to, message).expect("these messages have no map with odd keys");
}
