//! The wire between the host and the machine: frames, garbage and halves of frames in one
//! stream, cut anywhere. Every whole frame arrives, in order, and what is kept of an
//! unfinished one is bounded.

#![no_main]

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use caisson_agent_protocol::{
    ExitStatus,
    machine::{Decoder, Frame, Hello, MAX_DATA_BYTES, Ready, Stream, Terminal, Text, encode},
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

#[derive(Arbitrary, Debug)]
struct Input {
    pieces: Vec<Piece>,
    /// Lengths of what arrives at a time.
    cuts: Vec<u16>,
    /// Given to a decoder as it is.
    raw: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Piece {
    Whole(u64, Kind),
    /// Its sender was killed before the last bytes.
    Half(u64, Kind, u8),
    /// Bytes up to a zero.
    Garbage(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Hello {
        argv: Vec<Vec<u8>>,
        env: Vec<Vec<u8>>,
        cwd: Vec<u8>,
        numbers: (u32, u32, u64),
        size: Option<(u16, u16)>,
    },
    Go,
    Stdin(Vec<u8>, u8),
    StdinEnd,
    Signal(u8),
    Resize(u16, u16),
    OutputClosed(u8),
    Credit(u8, u32),
    Accepted,
    Refused(String),
    Output(u8, Vec<u8>, u8),
    StdinClosed,
    Exit(u8, bool),
    Query(u64),
    Ready(String, bool, [u32; 2], [u64; 3]),
    Shutdown,
    Stopping,
}

fn text(bytes: &[u8]) -> Text {
    OsString::from_vec(bytes.to_vec()).into()
}

fn stream(number: u8) -> Stream {
    [Stream::Stdin, Stream::Stdout, Stream::Stderr, Stream::Terminal][usize::from(number % 4)]
}

/// Long data has runs of all lengths without a zero.
fn data(bytes: &[u8], times: u8) -> Vec<u8> {
    let mut data = bytes.repeat(usize::from(times) + 1);
    data.truncate(MAX_DATA_BYTES);
    data
}

impl Kind {
    fn frame(&self) -> Frame {
        match self {
            Self::Hello { argv, env, cwd, numbers, size } => {
                let texts =
                    |list: &[Vec<u8>]| list.iter().map(|bytes| text(bytes)).collect::<Vec<_>>();
                let (version, umask, time_ns) = *numbers;
                let terminal = size.map(|(columns, rows)| Terminal {
                    stdin: columns % 2 == 0,
                    stdout: rows % 2 == 0,
                    stderr: false,
                    columns,
                    rows,
                });
                let (argv, env, cwd) = (texts(argv), texts(env), text(cwd));
                let shared = argv.clone();
                Frame::Hello(Box::new(Hello {
                    version,
                    argv,
                    env,
                    cwd,
                    shared,
                    umask,
                    terminal,
                    time_ns,
                }))
            }
            Self::Go => Frame::Go,
            Self::Stdin(bytes, times) => Frame::Stdin(data(bytes, *times)),
            Self::StdinEnd => Frame::StdinEnd,
            Self::Signal(signal) => Frame::Signal(signal % 64 + 1),
            Self::Resize(columns, rows) => Frame::Resize { columns: *columns, rows: *rows },
            Self::OutputClosed(number) => Frame::OutputClosed(stream(*number)),
            Self::Credit(number, bytes) => Frame::Credit { stream: stream(*number), bytes: *bytes },
            Self::Accepted => Frame::Accepted,
            Self::Refused(why) => Frame::Refused(why.clone()),
            Self::Output(number, bytes, times) => {
                Frame::Output { stream: stream(*number), bytes: data(bytes, *times) }
            }
            Self::StdinClosed => Frame::StdinClosed,
            Self::Exit(code, true) => Frame::Exit(ExitStatus::Signaled(*code)),
            Self::Exit(code, false) => Frame::Exit(ExitStatus::Exited(*code)),
            Self::Query(time_ns) => Frame::Query { time_ns: *time_ns },
            Self::Ready(kernel, kvm, numbers, sizes) => {
                let [version, sessions] = *numbers;
                let [uptime_ms, memory_kib, memory_available_kib] = *sizes;
                Frame::Ready(Ready {
                    version,
                    kernel: kernel.clone(),
                    kvm: *kvm,
                    sessions,
                    uptime_ms,
                    memory_kib,
                    memory_available_kib,
                })
            }
            Self::Shutdown => Frame::Shutdown,
            Self::Stopping => Frame::Stopping,
        }
    }
}

fuzz_target!(|input: Input| {
    let mut wire = Vec::new();
    let mut sent = Vec::new();
    for piece in input.pieces.iter().take(64) {
        match piece {
            Piece::Whole(session, kind) => {
                let frame = kind.frame();
                wire.extend(encode(*session, &frame));
                sent.push((*session, frame));
            }
            Piece::Half(session, kind, lost) => {
                let mut bytes = encode(*session, &kind.frame());
                bytes.truncate(bytes.len().saturating_sub(usize::from(*lost) + 1));
                wire.extend(bytes);
                wire.push(0);
            }
            Piece::Garbage(bytes) => {
                wire.extend(bytes);
                wire.push(0);
            }
        }
    }
    let mut decoder = Decoder::new();
    let mut expected = sent.iter().peekable();
    let mut rest = wire.as_slice();
    let mut cuts = input.cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts.next().map_or(rest.len(), |cut| usize::from(*cut).clamp(1, rest.len()));
        decoder.push(&rest[..cut], |found| {
            // Garbage may make frames too.
            if let Ok(found) = found {
                expected.next_if_eq(&&found);
            }
        });
        rest = &rest[cut..];
    }
    assert!(expected.next().is_none(), "a frame was lost");

    let mut decoder = Decoder::new();
    decoder.push(&input.raw, |_| ());
    decoder.push(&[0], |_| ());
    let mut arrived = false;
    decoder.push(&encode(1, &Frame::Go), |found| arrived |= matches!(found, Ok((1, Frame::Go))));
    assert!(arrived, "a frame behind garbage was lost");
});
