//! Sessions over a socket pair: the test is the host, a thread serves the session.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use caisson_agent_protocol::{
    ExitStatus,
    machine::{
        Decoder, Frame, Hello, MAX_DATA_BYTES, Stream, Terminal, VERSION, WINDOW_BYTES, encode,
    },
};

use super::{channel::set_nonblocking, session};

const PATIENCE: Duration = Duration::from_secs(30);
const SESSION: u64 = 0x5e55;

/// The host's side of one session.
struct Host {
    port: UnixStream,
    decoder: Decoder,
    received: VecDeque<Frame>,
    server: JoinHandle<()>,
    input_credit: usize,
}

#[derive(Debug, Default)]
struct Outcome {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    terminal: Vec<u8>,
    status: Option<ExitStatus>,
}

fn hello(argv: &[&str]) -> Hello {
    Hello {
        version: VERSION,
        argv: argv.iter().map(Into::into).collect(),
        env: vec!["PATH=/usr/bin:/bin".into(), "GREETING=hi".into()],
        cwd: "/".into(),
        shared: Vec::new(),
        umask: 0o027,
        terminal: None,
        time_ns: 0,
    }
}

fn on_terminal(argv: &[&str], [stdin, stdout, stderr]: [bool; 3]) -> Hello {
    let terminal = Terminal { stdin, stdout, stderr, columns: 91, rows: 17 };
    Hello { terminal: Some(terminal), ..hello(argv) }
}

impl Host {
    fn connect() -> Self {
        let (port, theirs) = UnixStream::pair().unwrap();
        set_nonblocking(&theirs).unwrap();
        port.set_read_timeout(Some(PATIENCE)).unwrap();
        let server = std::thread::spawn(move || {
            session::serve(theirs.as_fd(), None).unwrap();
        });
        let input_credit = WINDOW_BYTES as usize;
        Self { port, decoder: Decoder::new(), received: VecDeque::new(), server, input_credit }
    }

    /// A session that runs `hello`.
    fn run(hello: Hello) -> Self {
        let mut host = Self::connect();
        host.send(&Frame::Hello(Box::new(hello)));
        assert_eq!(host.receive(), Frame::Accepted);
        host.send(&Frame::Go);
        host
    }

    fn shell(script: &str) -> Self {
        Self::run(hello(&["sh", "-c", script]))
    }

    fn send(&mut self, frame: &Frame) {
        self.send_as(SESSION, frame);
    }

    fn send_as(&mut self, session: u64, frame: &Frame) {
        self.port.write_all(&encode(session, frame)).unwrap();
    }

    fn receive(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.received.pop_front() {
                return frame;
            }
            let mut buffer = [0; 64 << 10];
            let count = self.port.read(&mut buffer).expect("the session answers in time");
            assert!(count > 0, "the session has closed the port");
            let received = &mut self.received;
            self.decoder.push(&buffer[..count], |result| {
                let (session, frame) = result.expect("the session sends whole frames");
                assert_eq!(session, SESSION);
                received.push_back(frame);
            });
        }
    }

    /// Frames until `done` is satisfied by one, which is returned; credit is given.
    fn receive_until(&mut self, outcome: &mut Outcome, done: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.receive();
            match &frame {
                Frame::Output { stream, bytes } => {
                    match stream {
                        Stream::Stdout => outcome.stdout.extend(bytes),
                        Stream::Stderr => outcome.stderr.extend(bytes),
                        _ => outcome.terminal.extend(bytes),
                    }
                    let credit = Frame::Credit { stream: *stream, bytes: bytes.len() as u32 };
                    // After the exit nobody may take it any more.
                    let _ = self.port.write_all(&encode(SESSION, &credit));
                }
                Frame::Credit { stream: Stream::Stdin, bytes } => {
                    self.input_credit += *bytes as usize;
                }
                Frame::Exit(status) => outcome.status = Some(*status),
                _ => {}
            }
            if done(&frame) {
                return frame;
            }
        }
    }

    /// To the exit, and to the end of the serving thread.
    fn finish(mut self) -> Outcome {
        let mut outcome = Outcome::default();
        self.receive_until(&mut outcome, |frame| matches!(frame, Frame::Exit(_)));
        self.server.join().unwrap();
        outcome
    }

    fn wait_for_output(&mut self, outcome: &mut Outcome, text: &str) {
        let ends = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(text);
        while !ends(&outcome.stdout) && !ends(&outcome.terminal) {
            self.receive_until(outcome, |frame| matches!(frame, Frame::Output { .. }));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn streams_stay_apart_and_the_code_arrives() {
    let mut host = Host::shell("cat; echo err >&2; echo $GREETING $(umask) $#; exit 7");
    host.send(&Frame::Stdin(b"hello\n".to_vec()));
    host.send(&Frame::StdinEnd);
    let outcome = host.finish();
    assert_eq!(text(&outcome.stdout), "hello\nhi 0027 0\n");
    assert_eq!(text(&outcome.stderr), "err\n");
    assert_eq!(outcome.status, Some(ExitStatus::Exited(7)));
}

#[test]
fn what_comes_in_one_piece_with_the_greeting_is_not_lost() {
    let mut host = Host::connect();
    let mut wire = Vec::new();
    for frame in [
        Frame::Hello(Box::new(hello(&["cat"]))),
        Frame::Go,
        Frame::Stdin(b"early".to_vec()),
        Frame::StdinEnd,
    ] {
        wire.extend(encode(SESSION, &frame));
    }
    host.port.write_all(&wire).unwrap();
    assert_eq!(text(&host.finish().stdout), "early");
}

#[test]
fn a_death_by_signal_is_told_as_one() {
    assert_eq!(Host::shell("kill -9 $$").finish().status, Some(ExitStatus::Signaled(9)));
    let mut host = Host::shell("echo up; exec sleep 60");
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "up");
    host.send(&Frame::Signal(15));
    assert_eq!(host.finish().status, Some(ExitStatus::Signaled(15)));
}

#[test]
fn a_signal_can_be_caught() {
    let mut host =
        Host::shell("trap 'echo caught; exit 3' USR1; echo up; while :; do sleep 0.1; done");
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "up");
    host.send(&Frame::Signal(10));
    let rest = host.finish();
    assert_eq!(
        (text(&rest.stdout).as_str(), rest.status),
        ("caught\n", Some(ExitStatus::Exited(3)))
    );
}

#[test]
fn an_interrupt_reaches_the_whole_group() {
    let mut host = Host::shell("(echo up; exec sleep 60); echo not reached");
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "up");
    host.send(&Frame::Signal(2));
    let rest = host.finish();
    assert_eq!((text(&rest.stdout).as_str(), rest.status), ("", Some(ExitStatus::Signaled(2))));
}

#[test]
fn ten_megabytes_come_back_as_they_went() {
    let sent: Vec<u8> =
        (0..10_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut host = Host::run(hello(&["cat"]));
    let mut outcome = Outcome::default();
    let mut rest = sent.as_slice();
    while !rest.is_empty() {
        let most = host.input_credit.min(MAX_DATA_BYTES).min(rest.len());
        if most == 0 {
            host.receive_until(&mut outcome, |frame| matches!(frame, Frame::Credit { .. }));
            continue;
        }
        host.send(&Frame::Stdin(rest[..most].to_vec()));
        host.input_credit -= most;
        rest = &rest[most..];
    }
    host.send(&Frame::StdinEnd);
    host.receive_until(&mut outcome, |frame| matches!(frame, Frame::Exit(_)));
    assert!(outcome.stdout == sent, "{} of {} bytes", outcome.stdout.len(), sent.len());
    assert_eq!(outcome.status, Some(ExitStatus::Exited(0)));
}

#[test]
fn a_reader_that_stands_still_holds_up_its_stream_only() {
    let script = "head -c 3000000 /dev/zero & echo free >&2; wait; echo end >&2";
    let mut host = Host::shell(script);
    let (mut zeros, mut other) = (0, Vec::new());
    // Without credit for stdout: no more of it than the window, but all of stderr.
    host.port.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
    let mut buffer = [0; 64 << 10];
    while let Ok(count) = host.port.read(&mut buffer) {
        host.decoder.push(&buffer[..count], |result| match result.unwrap().1 {
            Frame::Output { stream: Stream::Stdout, bytes } => zeros += bytes.len(),
            Frame::Output { bytes, .. } => other.extend(bytes),
            frame => panic!("{frame:?}"),
        });
    }
    assert_eq!(zeros, WINDOW_BYTES as usize);
    assert_eq!(text(&other), "free\n");
    host.port.set_read_timeout(Some(PATIENCE)).unwrap();
    host.send(&Frame::Credit { stream: Stream::Stdout, bytes: WINDOW_BYTES });
    let outcome = host.finish();
    assert_eq!(zeros + outcome.stdout.len(), 3_000_000);
    assert_eq!(text(&outcome.stderr), "end\n");
}

#[test]
fn input_beyond_the_credit_ends_the_session() {
    let mut host = Host::shell("sleep 60");
    let block = vec![0; MAX_DATA_BYTES];
    // The port takes it all; the session must not keep it all.
    for _ in 0..64 {
        if host.port.write_all(&encode(SESSION, &Frame::Stdin(block.clone()))).is_err() {
            break;
        }
    }
    let began = Instant::now();
    host.server.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_process_that_closes_its_input_is_reported() {
    let mut host = Host::shell("exec <&-; sleep 0.2; echo on; sleep 0.5");
    host.send(&Frame::Stdin(vec![1; 1000]));
    let mut outcome = Outcome::default();
    host.receive_until(&mut outcome, |frame| *frame == Frame::StdinClosed);
    assert_eq!(host.finish().status, Some(ExitStatus::Exited(0)));
}

#[test]
fn a_writer_without_a_reader_gets_sigpipe() {
    let mut host = Host::run(hello(&["yes"]));
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "y\ny\n");
    host.send(&Frame::OutputClosed(Stream::Stdout));
    assert_eq!(host.finish().status, Some(ExitStatus::Signaled(13)));
}

#[test]
fn a_descendant_that_keeps_the_output_does_not_keep_the_session() {
    let began = Instant::now();
    let outcome = Host::shell("sleep 20 & echo first; exit 4").finish();
    assert_eq!(
        (text(&outcome.stdout).as_str(), outcome.status),
        ("first\n", Some(ExitStatus::Exited(4)))
    );
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_command_that_cannot_be_executed_has_the_shell_s_codes() {
    for (program, code) in [("/nowhere/x", 127), ("no-such-program", 127), ("/etc", 126)] {
        let outcome = Host::run(hello(&[program])).finish();
        assert_eq!(outcome.status, Some(ExitStatus::Exited(code)), "{program}");
        let message = text(&outcome.stderr);
        assert!(message.contains(program) && message.ends_with(")\n"), "{message}");
    }
}

/// A script that leaves a line in the file when it gets SIGHUP and then `goes on`.
fn hang_up_script(file: &Path, then: &str) -> String {
    let file = file.display();
    // What it writes to its lost output is no reason to die either.
    format!(
        "trap 'echo bye; echo bye >&2; echo hup >>{file}; {then}' HUP; echo up; while :; do sleep 0.1; done"
    )
}

#[test]
fn a_killed_host_hangs_up_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let mut host = Host::shell(&hang_up_script(&file, "exit"));
    host.wait_for_output(&mut Outcome::default(), "up");
    drop(host.port);
    host.server.join().unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "hup\n");
}

#[test]
fn a_process_that_ignores_the_hang_up_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let mut host = Host::shell(&format!("echo $$; {}", hang_up_script(&file, ":")));
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "up");
    let pid: i32 = text(&outcome.stdout).lines().next().unwrap().parse().unwrap();
    let began = Instant::now();
    drop(host.port);
    host.server.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn another_greeting_on_the_port_ends_the_session_whose_host_must_be_gone() {
    let mut host = Host::shell("echo up; exec sleep 60");
    host.wait_for_output(&mut Outcome::default(), "up");
    host.send_as(77, &Frame::Hello(Box::new(hello(&["true"]))));
    let began = Instant::now();
    host.server.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn nothing_runs_before_go_and_a_repeated_greeting_is_one() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let script = format!("echo ran >>{}", file.display());
    let greeting = Frame::Hello(Box::new(hello(&["sh", "-c", &script])));
    let mut host = Host::connect();
    host.send(&greeting);
    assert_eq!(host.receive(), Frame::Accepted);
    host.send(&greeting);
    // Another session's leave does not count.
    host.send_as(78, &Frame::Go);
    std::thread::sleep(Duration::from_millis(200));
    assert!(!file.exists());
    drop(host.port);
    host.server.join().unwrap();
    assert!(!file.exists());

    let mut host = Host::connect();
    host.send(&greeting);
    host.send(&greeting);
    assert_eq!(host.receive(), Frame::Accepted);
    host.send(&Frame::Go);
    host.finish();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "ran\n");
}

#[test]
fn what_an_earlier_host_left_is_passed_over() {
    let mut host = Host::connect();
    let mut left = encode(79, &Frame::Stdin(vec![1; 500]));
    left.truncate(300);
    host.port.write_all(&left).unwrap();
    host.send(&Frame::Hello(Box::new(hello(&["echo", "fine"]))));
    assert_eq!(host.receive(), Frame::Accepted);
    host.send_as(79, &Frame::Signal(9));
    host.send(&Frame::Go);
    assert_eq!(text(&host.finish().stdout), "fine\n");
}

#[test]
fn another_version_is_refused_with_the_way_out() {
    let mut host = Host::connect();
    host.send(&Frame::Hello(Box::new(Hello { version: VERSION + 1, ..hello(&["true"]) })));
    assert_eq!(host.receive(), Frame::Accepted);
    host.send(&Frame::Go);
    let Frame::Refused(why) = host.receive() else { panic!("not refused") };
    assert!(why.contains("caisson machine stop"), "{why}");
    host.server.join().unwrap();
}

#[test]
fn a_terminal_is_one_and_has_the_host_s_size() {
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size && read line && echo got $line";
    let mut host = Host::run(on_terminal(&["sh", "-c", script], [true; 3]));
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "17 91");
    host.send(&Frame::Stdin(b"word\r".to_vec()));
    host.wait_for_output(&mut outcome, "got word\r\n");
    assert_eq!(host.finish().status, Some(ExitStatus::Exited(0)));
}

#[test]
fn a_key_on_the_terminal_interrupts_and_a_resize_is_noticed() {
    let script = "trap 'stty size; exit 9' WINCH; echo up; while :; do sleep 0.1; done";
    let mut host = Host::run(on_terminal(&["sh", "-c", script], [true; 3]));
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "up");
    host.send(&Frame::Resize { columns: 100, rows: 40 });
    host.wait_for_output(&mut outcome, "40 100");
    assert_eq!(host.finish().status, Some(ExitStatus::Exited(9)));

    let mut host = Host::run(on_terminal(&["sh", "-c", "(echo up; exec sleep 60)"], [true; 3]));
    let mut outcome = Outcome::default();
    host.wait_for_output(&mut outcome, "up");
    host.send(&Frame::Stdin(vec![3]));
    assert_eq!(host.finish().status, Some(ExitStatus::Signaled(2)));
}

#[test]
fn only_the_streams_that_are_terminals_become_one() {
    let script = "test -t 0 && echo tty >&2; test -t 1 || echo pipe; test -t 2 && echo tty >&2";
    let mut host = Host::run(on_terminal(&["sh", "-c", script], [false, false, true]));
    host.send(&Frame::StdinEnd);
    let outcome = host.finish();
    assert_eq!(text(&outcome.stdout), "pipe\n");
    // The host's terminal turns the newline, as it is not raw without its input.
    assert_eq!(text(&outcome.terminal), "tty\n");
    assert_eq!(text(&outcome.stderr), "");
}

#[test]
fn the_last_words_on_a_terminal_arrive() {
    for _ in 0..20 {
        let outcome = Host::run(on_terminal(&["seq", "1", "3000"], [true; 3])).finish();
        assert!(text(&outcome.terminal).ends_with("2999\r\n3000\r\n"));
    }
}
