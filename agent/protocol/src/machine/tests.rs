//! The wire under any frames, any cuts and any garbage.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::ExitStatus;

fn text() -> impl Strategy<Value = Text> {
    vec(any::<u8>(), 0..40).prop_map(|bytes| OsString::from_vec(bytes).into())
}

fn hello() -> impl Strategy<Value = Hello> {
    let terminal = (any::<[bool; 3]>(), any::<u16>(), any::<u16>()).prop_map(
        |([stdin, stdout, stderr], columns, rows)| Terminal {
            stdin,
            stdout,
            stderr,
            columns,
            rows,
        },
    );
    let numbers = (any::<u32>(), any::<u32>(), any::<u64>());
    (vec(text(), 0..6), vec(text(), 0..6), text(), proptest::option::of(terminal), numbers)
        .prop_map(|(argv, env, cwd, terminal, (version, umask, time_ns))| Hello {
            version,
            argv,
            shared: env.iter().take(2).cloned().collect(),
            env,
            cwd,
            umask,
            terminal,
            time_ns,
        })
}

fn stream() -> impl Strategy<Value = Stream> {
    prop::sample::select(vec![Stream::Stdin, Stream::Stdout, Stream::Stderr, Stream::Terminal])
}

/// Mostly zeros and ones, so that runs of every length around 254 come up.
fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..1200),
        vec(prop::sample::select(vec![1_u8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]), 0..1200),
        (0_usize..1030).prop_map(|length| vec![7; length]),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        hello().prop_map(|hello| Frame::Hello(Box::new(hello))),
        data().prop_map(Frame::Stdin),
        (stream(), data()).prop_map(|(stream, bytes)| Frame::Output { stream, bytes }),
        (stream(), any::<u32>()).prop_map(|(stream, bytes)| Frame::Credit { stream, bytes }),
        (any::<u16>(), any::<u16>()).prop_map(|(columns, rows)| Frame::Resize { columns, rows }),
        (1_u8..=64).prop_map(Frame::Signal),
        any::<u8>().prop_map(|code| Frame::Exit(ExitStatus::Exited(code))),
        (1_u8..=64).prop_map(|signal| Frame::Exit(ExitStatus::Signaled(signal))),
        stream().prop_map(Frame::OutputClosed),
        ".{0,80}".prop_map(Frame::Refused),
        any::<u64>().prop_map(|time_ns| Frame::Query { time_ns }),
        (".{0,20}", any::<bool>(), any::<[u32; 2]>(), any::<[u64; 3]>()).prop_map(
            |(kernel, kvm, [version, sessions], [uptime_ms, memory_kib, memory_available_kib])| {
                Frame::Ready(Ready {
                    version,
                    kernel,
                    kvm,
                    sessions,
                    uptime_ms,
                    memory_kib,
                    memory_available_kib,
                })
            }
        ),
        prop::sample::select(vec![
            Frame::Go,
            Frame::StdinEnd,
            Frame::Accepted,
            Frame::StdinClosed,
            Frame::Shutdown,
            Frame::Stopping,
        ]),
    ]
}

fn decode_all(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Result<(u64, Frame), FrameError>> {
    let mut all = Vec::new();
    decoder.push(bytes, |result| all.push(result));
    all
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(
        frames in vec((any::<u64>(), frame()), 1..8),
        cuts in vec(1_usize..400, 1..40),
    ) {
        let wire: Vec<u8> =
            frames.iter().flat_map(|(session, frame)| encode(*session, frame)).collect();
        let mut decoder = Decoder::new();
        let mut received = Vec::new();
        let (mut rest, mut cuts) = (wire.as_slice(), cuts.iter().cycle());
        while !rest.is_empty() {
            let length = rest.len().min(*cuts.next().unwrap());
            received.extend(decode_all(&mut decoder, &rest[..length]));
            rest = &rest[length..];
        }
        let received: Vec<_> = received.into_iter().map(Result::unwrap).collect();
        prop_assert_eq!(received, frames);
    }

    #[test]
    fn a_frame_holds_no_zero_but_at_its_ends(session in any::<u64>(), frame in frame()) {
        let wire = encode(session, &frame);
        let inner = wire.strip_prefix(&[0]).unwrap_or(&wire).strip_suffix(&[0]).unwrap();
        prop_assert!(!inner.contains(&0));
    }

    #[test]
    fn a_greeting_is_understood_after_any_garbage(
        garbage in vec(any::<u8>(), 0..2000),
        session in any::<u64>(),
        hello in hello(),
    ) {
        let hello = Frame::Hello(Box::new(hello));
        let mut decoder = Decoder::new();
        decode_all(&mut decoder, &garbage);
        let mut received = decode_all(&mut decoder, &encode(session, &hello));
        prop_assert_eq!(received.pop().unwrap().unwrap(), (session, hello));
    }

    #[test]
    fn a_cut_frame_costs_no_other(
        first in (any::<u64>(), frame()),
        keep in any::<prop::sample::Index>(),
        second in (any::<u64>(), frame()),
    ) {
        let cut = encode(first.0, &first.1);
        let cut = &cut[..keep.index(cut.len())];
        let mut decoder = Decoder::new();
        decode_all(&mut decoder, cut);
        // What the next host process sends first starts with a zero; any other frame
        // comes after such a one.
        let mut wire = encode(second.0, &Frame::Go);
        wire.extend(encode(second.0, &second.1));
        let received: Vec<_> =
            decode_all(&mut decoder, &wire).into_iter().filter_map(Result::ok).collect();
        let tail = &received[received.len() - 2..];
        prop_assert_eq!(tail, &[(second.0, Frame::Go), second][..]);
    }

    #[test]
    fn any_bytes_are_frames_or_errors(bytes in vec(any::<u8>(), 0..4000)) {
        let results = decode_all(&mut Decoder::new(), &bytes);
        let ends = bytes.iter().filter(|byte| **byte == 0).count();
        prop_assert!(results.len() <= ends);
    }
}

#[test]
fn an_endless_frame_is_dropped_without_being_kept() {
    let mut decoder = Decoder::new();
    for _ in 0..200 {
        assert!(decode_all(&mut decoder, &[1; 64 << 10]).is_empty());
        assert!(decoder.waiting_bytes() <= 6 << 20, "{} bytes", decoder.waiting_bytes());
    }
    let mut end = vec![0];
    end.extend(encode(9, &Frame::Go));
    let results = decode_all(&mut decoder, &end);
    assert!(matches!(results[0], Err(FrameError::TooLong)));
    assert!(matches!(results[1], Ok((9, Frame::Go))));
}

#[test]
fn data_beyond_the_limit_of_a_frame_is_refused() {
    let wire = encode(1, &Frame::Stdin(vec![5; MAX_DATA_BYTES + 1]));
    let results = decode_all(&mut Decoder::new(), &wire);
    assert!(matches!(results[0], Err(FrameError::Payload { .. })));
}

#[test]
fn a_payload_of_the_wrong_length_or_value_is_refused() {
    let good = encode(1, &Frame::Signal(9));
    // The signal is the last byte before the end mark.
    for bad in [65, 255] {
        let mut wire = good.clone();
        let at = wire.len() - 2;
        wire[at] = bad;
        let results = decode_all(&mut Decoder::new(), &wire);
        assert!(matches!(results[0], Err(FrameError::Payload { .. })), "{bad}");
    }
}

#[test]
fn arguments_of_the_longest_kind_fit() {
    let hello = Hello {
        version: VERSION,
        argv: vec![OsString::from("x".repeat(128 << 10)).into(); 16],
        env: Vec::new(),
        cwd: OsString::from("/").into(),
        shared: Vec::new(),
        umask: 0o022,
        terminal: None,
        time_ns: 0,
    };
    let frame = Frame::Hello(Box::new(hello));
    let results = decode_all(&mut Decoder::new(), &encode(3, &frame));
    assert_eq!(results.into_iter().next().unwrap().unwrap(), (3, frame));
}
