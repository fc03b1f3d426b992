//! The control channel between shim and agent: messages, bytes that are none, and lengths
//! that lie, read in pieces of any size. What was written is read back, and what follows
//! the first fault is not.

#![no_main]

use std::io::{self, Read};

use caisson_agent_protocol::{
    AgentError, Call, ErrorKind, Event, ExitStatus, FrameError, FromAgent, MAX_FRAME_BYTES,
    Outcome, Ready, Request, Stats, frame, read_frame,
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
enum Piece {
    Reply(u64, Answer),
    Exited {
        container: String,
        exec: Option<String>,
        code: u8,
        signaled: bool,
        oom: bool,
    },
    OutOfMemory(String),
    Ready {
        protocol: u32,
        agent: String,
        kernel: String,
    },
    /// JSON, or what may look like it, in a frame of the right length.
    Payload(Vec<u8>),
    /// A length, and less than that.
    Lie(u32, Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Answer {
    Done,
    Created(u32),
    Started(u32),
    Pids(Vec<u32>),
    Stats([u64; 4], Option<u64>),
    Error(u8, String),
}

#[derive(Arbitrary, Debug)]
struct Input {
    pieces: Vec<Piece>,
    /// How many bytes each read gives at most.
    cuts: Vec<u8>,
    payload: Vec<u8>,
}

impl Piece {
    /// The message that this is, if it is one for sure.
    fn message(&self) -> Option<FromAgent> {
        Some(match self {
            Self::Reply(id, answer) => FromAgent::Reply { id: *id, result: answer.result() },
            Self::Exited { container, exec, code, signaled, oom } => {
                FromAgent::Event(Event::ProcessExited {
                    container: container.clone(),
                    exec: exec.clone(),
                    status: match signaled {
                        true => ExitStatus::Signaled(*code),
                        false => ExitStatus::Exited(*code),
                    },
                    oom_killed: *oom,
                })
            }
            Self::OutOfMemory(container) => {
                FromAgent::Event(Event::OutOfMemory { container: container.clone() })
            }
            Self::Ready { protocol, agent, kernel } => FromAgent::Event(Event::Ready(Ready {
                protocol: *protocol,
                agent: agent.clone(),
                kernel: kernel.clone(),
            })),
            Self::Payload(_) | Self::Lie(..) => return None,
        })
    }

    fn bytes(&self) -> Vec<u8> {
        let (length, rest) = match self {
            Self::Payload(bytes) => (bytes.len() as u32, bytes),
            Self::Lie(length, bytes) => (*length, bytes),
            _ => {
                let message = self.message().expect("the other pieces are messages");
                return frame::encode(&message).expect("a message of this size fits");
            }
        };
        [&length.to_le_bytes(), rest.as_slice()].concat()
    }
}

impl Answer {
    fn result(&self) -> Result<Outcome, AgentError> {
        Ok(match self {
            Self::Done => Outcome::Done,
            Self::Created(pid) => Outcome::Created { pid: *pid },
            Self::Started(pid) => Outcome::Started { pid: *pid },
            Self::Pids(pids) => Outcome::Pids(pids.clone()),
            Self::Stats([cpu_usage_usec, memory_bytes, pids, io_reads], memory_limit_bytes) => {
                Outcome::Stats(Box::new(Stats {
                    cpu_usage_usec: *cpu_usage_usec,
                    memory_bytes: *memory_bytes,
                    pids: *pids,
                    io_reads: *io_reads,
                    memory_limit_bytes: *memory_limit_bytes,
                    ..Default::default()
                }))
            }
            Self::Error(kind, message) => {
                let kind = match kind % 3 {
                    0 => ErrorKind::NotFound,
                    1 => ErrorKind::NoSpace,
                    _ => ErrorKind::Internal,
                };
                return Err(AgentError { kind, message: message.clone() });
            }
        })
    }
}

/// Gives its bytes in pieces.
struct InPieces<'a> {
    rest: &'a [u8],
    cuts: &'a [u8],
    reads: usize,
}

impl Read for InPieces<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let cut = self.cuts.get(self.reads % self.cuts.len().max(1)).copied().unwrap_or(255);
        self.reads += 1;
        let count = to.len().min(usize::from(cut).max(1)).min(self.rest.len());
        to[..count].copy_from_slice(&self.rest[..count]);
        self.rest = &self.rest[count..];
        Ok(count)
    }
}

/// A payload that is a message is the same one after another trip.
fn round_trip<T>(payload: &[u8])
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    if let Ok(message) = frame::decode::<T>(payload) {
        let again = frame::encode(&message).expect("it is no longer than it was as JSON");
        assert_eq!(frame::decode::<T>(&again[4..]).expect("it was just encoded"), message);
    }
}

fuzz_target!(|input: Input| {
    let bytes: Vec<u8> = input.pieces.iter().flat_map(Piece::bytes).collect();
    let mut channel = InPieces { rest: &bytes, cuts: &input.cuts, reads: 0 };
    let mut pieces = input.pieces.iter();
    loop {
        match read_frame::<FromAgent>(&mut channel) {
            Ok(Some(message)) => {
                let piece = pieces.next();
                if let Some(expected) = piece.and_then(Piece::message) {
                    assert_eq!(message, expected);
                } else if matches!(piece, Some(Piece::Lie(..)) | None) {
                    // What follows was read as part of the lie, or the other way round.
                    break;
                }
            }
            Ok(None) => {
                assert!(pieces.all(|piece| matches!(piece, Piece::Lie(..))), "frames were lost");
                break;
            }
            Err(error) => {
                let piece = pieces.next();
                let message = piece.and_then(Piece::message);
                assert!(message.is_none(), "{error} instead of {message:?}");
                if let FrameError::TooLong { length } = error {
                    assert!(length > MAX_FRAME_BYTES);
                }
                break;
            }
        }
    }
    round_trip::<FromAgent>(&input.payload);
    round_trip::<Request>(&input.payload);
    round_trip::<Call>(&input.payload);
});
