//! One direction of one stream: bytes from a source to a sink, never more than
//! [`CHUNK_BYTES`] of them in between.
//!
//! ```text
//!   process ──pipe──► source [≤ 64 KiB] sink ──socket──► shim
//! ```
//!
//! Descriptors are non-blocking and registered with epoll edge-triggered, so a relay
//! keeps no record of readiness: any event means [`Relay::pump`], which moves what can be
//! moved. A sink that takes nothing holds the source back, and only that one.

use std::{
    fs::File,
    io::{self, ErrorKind as Io, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
};

use nix::sys::socket::{Shutdown, shutdown};

/// The most that is read at once and held back.
pub const CHUNK_BYTES: usize = 64 << 10;
/// Chunks moved in one turn, so that one stream cannot starve the others.
const CHUNKS_PER_TURN: usize = 8;

/// What a turn has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Some bytes moved, or an end was reached.
    pub progress: bool,
    /// There is more to do at once.
    pub again: bool,
}

/// Where bytes come from.
#[derive(Debug)]
pub enum Source {
    /// Nothing to read from yet.
    Waiting,
    Open(Rc<File>),
    /// A pty master: its end is `EIO`, and only for good when the process has exited.
    Terminal(Rc<File>),
    Ended,
}

/// Where they go.
#[derive(Debug)]
pub enum Sink {
    /// Nobody has connected yet: nothing is read meanwhile.
    Waiting,
    /// A socket, which learns of the end by a half-close.
    Socket(Rc<File>),
    /// A pipe, which learns of it by being closed.
    Pipe(Rc<File>),
    /// A pty master, which stays open.
    Terminal(Rc<File>),
    /// The other side is gone: bytes are dropped, so that the writer does not block.
    Discard,
    /// The end has been passed on.
    Finished,
}

#[derive(Debug)]
pub struct Relay {
    pub source: Source,
    pub sink: Sink,
    /// Read and not yet written.
    pending: Vec<u8>,
    written: usize,
    ending: Ending,
}

/// When a source counts as being at its end, beside when the kernel says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Never.
    AtEnd,
    /// When no process has the terminal open.
    AtHangup,
    /// When it has nothing to give.
    WhenIdle,
    /// When it has nothing to give or has given this many bytes more; it is then read on
    /// to nowhere.
    Cut { left: usize },
}

impl Relay {
    pub fn new(source: Source, sink: Sink) -> Self {
        Self { source, sink, pending: Vec::new(), written: 0, ending: Ending::AtEnd }
    }

    /// Whether everything has been passed on, the end included.
    pub fn is_finished(&self) -> bool {
        matches!(self.sink, Sink::Finished)
            || (matches!((&self.source, &self.sink), (Source::Ended, Sink::Discard)))
    }

    /// The process whose terminal this is has exited: a hang-up is the end.
    pub fn end_at_hangup(&mut self) {
        if self.ending == Ending::AtEnd {
            self.ending = Ending::AtHangup;
        }
    }

    /// Passes on what has arrived so far, and then the end.
    pub fn end_when_idle(&mut self) {
        if matches!(self.source, Source::Waiting) {
            self.source = Source::Ended;
        }
        self.ending = Ending::WhenIdle;
    }

    /// Ends the stream after what it holds now, `limit` bytes at most. The source stays
    /// open and is read to nowhere, so that a process that still writes is not killed.
    pub fn cut(&mut self, limit: usize) {
        if !self.is_finished() {
            self.ending = Ending::Cut { left: limit };
        }
    }

    /// Moves what can be moved through `scratch`.
    pub fn pump(&mut self, scratch: &mut [u8; CHUNK_BYTES]) -> Turn {
        let mut turn = Turn::default();
        for _ in 0..CHUNKS_PER_TURN {
            match self.step(scratch) {
                Step::Moved => turn.progress = true,
                Step::Blocked => return turn,
                Step::Ended => {
                    turn.progress = true;
                    return turn;
                }
            }
        }
        turn.again = true;
        turn
    }

    fn step(&mut self, scratch: &mut [u8; CHUNK_BYTES]) -> Step {
        if self.written < self.pending.len() {
            return self.flush();
        }
        match self.read(scratch) {
            Input::Bytes(count) => {
                let count = self.within_cut(count);
                self.forward(&scratch[..count]);
                match self.ending {
                    Ending::Cut { left: 0 } => self.end_after_pending(),
                    _ => Step::Moved,
                }
            }
            Input::Nothing => Step::Blocked,
            Input::End => self.end_after_pending(),
        }
    }

    /// How many of `count` bytes are still wanted, counted off.
    fn within_cut(&mut self, count: usize) -> usize {
        let Ending::Cut { left } = &mut self.ending else { return count };
        let count = count.min(*left);
        *left -= count;
        count
    }

    fn read(&self, scratch: &mut [u8; CHUNK_BYTES]) -> Input {
        if matches!(self.sink, Sink::Waiting | Sink::Finished) {
            return Input::Nothing;
        }
        let (file, terminal) = match &self.source {
            Source::Open(file) => (file, false),
            Source::Terminal(file) => (file, true),
            Source::Waiting => return Input::Nothing,
            // Only with the end still to be passed on.
            Source::Ended if matches!(self.sink, Sink::Discard) => return Input::Nothing,
            Source::Ended => return Input::End,
        };
        loop {
            return match file.as_ref().read(scratch) {
                Ok(0) => Input::End,
                Ok(count) => Input::Bytes(count),
                Err(error) if error.kind() == Io::Interrupted => continue,
                Err(error) if error.kind() == Io::WouldBlock => self.idle(),
                // No process has the terminal open; one may open it again.
                Err(error)
                    if terminal
                        && error.raw_os_error() == Some(libc::EIO)
                        && self.ending == Ending::AtEnd =>
                {
                    Input::Nothing
                }
                Err(_) => Input::End,
            };
        }
    }

    fn idle(&self) -> Input {
        match self.ending {
            Ending::WhenIdle | Ending::Cut { .. } => Input::End,
            Ending::AtEnd | Ending::AtHangup => Input::Nothing,
        }
    }

    /// Writes `bytes`, keeping what the sink does not take now.
    fn forward(&mut self, bytes: &[u8]) {
        match self.write(bytes) {
            Ok(count) => {
                self.pending.clear();
                self.pending.extend_from_slice(&bytes[count..]);
                self.written = 0;
            }
            Err(_) => self.break_off(),
        }
    }

    fn flush(&mut self) -> Step {
        match self.write(&self.pending[self.written..]) {
            Ok(0) => Step::Blocked,
            Ok(count) => {
                self.written += count;
                if self.written == self.pending.len() {
                    self.pending = Vec::new();
                    self.written = 0;
                }
                Step::Moved
            }
            Err(_) => {
                self.break_off();
                Step::Moved
            }
        }
    }

    /// How much the sink took of `bytes`; all of it if nobody reads any more.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let file = match &self.sink {
            Sink::Socket(file) | Sink::Pipe(file) | Sink::Terminal(file) => file,
            Sink::Waiting => return Ok(0),
            Sink::Discard | Sink::Finished => return Ok(bytes.len()),
        };
        loop {
            match file.as_ref().write(bytes) {
                Err(error) if error.kind() == Io::Interrupted => {}
                Err(error) if error.kind() == Io::WouldBlock => return Ok(0),
                other => return other,
            }
        }
    }

    /// The sink is gone. Input ends with it; output goes on to nowhere.
    fn break_off(&mut self) {
        self.pending = Vec::new();
        self.written = 0;
        if matches!(self.sink, Sink::Pipe(_)) {
            self.source = Source::Ended;
            self.sink = Sink::Finished;
        } else {
            self.sink = Sink::Discard;
        }
    }

    fn end_after_pending(&mut self) -> Step {
        let cut = matches!(self.ending, Ending::Cut { .. });
        if !cut {
            self.source = Source::Ended;
        }
        if self.written < self.pending.len() {
            // The next step writes it and comes back here.
            return Step::Moved;
        }
        if let Sink::Socket(socket) = &self.sink {
            // A peer that is gone needs no end of stream.
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        }
        if cut {
            self.ending = Ending::AtHangup;
            self.sink = Sink::Discard;
            return Step::Moved;
        }
        self.sink = Sink::Finished;
        Step::Ended
    }
}

enum Step {
    Moved,
    Blocked,
    Ended,
}

enum Input {
    Bytes(usize),
    Nothing,
    End,
}

/// `fd` as the file that relays read and write, non-blocking.
pub fn nonblocking(fd: OwnedFd) -> io::Result<Rc<File>> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(Rc::new(File::from(fd)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::{fcntl::OFlag, unistd::pipe2};
    use proptest::prelude::*;

    use super::*;

    struct Output {
        process: Option<File>,
        relay: Relay,
        shim: UnixStream,
        scratch: Box<[u8; CHUNK_BYTES]>,
    }

    /// A process's output pipe relayed to a socket.
    fn output() -> Output {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (agent, shim) = UnixStream::pair().unwrap();
        shim.set_nonblocking(true).unwrap();
        let source = Source::Open(nonblocking(read).unwrap());
        let sink = Sink::Socket(nonblocking(agent.into()).unwrap());
        Output {
            process: Some(File::from(write)),
            relay: Relay::new(source, sink),
            shim,
            scratch: Box::new([0; CHUNK_BYTES]),
        }
    }

    impl Output {
        fn say(&mut self, bytes: &[u8]) {
            self.process.as_mut().unwrap().write_all(bytes).unwrap();
        }

        fn pump(&mut self) -> Turn {
            self.relay.pump(&mut self.scratch)
        }

        fn heard(&mut self) -> Vec<u8> {
            let mut bytes = Vec::new();
            match self.shim.read_to_end(&mut bytes) {
                Err(error) if error.kind() != Io::WouldBlock => panic!("{error}"),
                _ => bytes,
            }
        }
    }

    #[test]
    fn bytes_and_the_end_arrive() {
        let mut output = output();
        output.say(b"hello");
        assert!(output.pump().progress);
        assert_eq!(output.heard(), b"hello");
        output.process = None;
        output.pump();
        assert!(output.relay.is_finished());
        assert_eq!(output.shim.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn nothing_is_read_before_somebody_listens() {
        let mut output = output();
        let sink = std::mem::replace(&mut output.relay.sink, Sink::Waiting);
        output.say(b"early");
        output.process = None;
        assert_eq!(output.pump(), Turn::default());
        output.relay.sink = sink;
        output.pump();
        assert_eq!(output.heard(), b"early");
        assert!(output.relay.is_finished());
    }

    #[test]
    fn a_reader_that_never_drains_holds_one_chunk_and_a_socket_buffer() {
        let mut output = output();
        nix::fcntl::fcntl(
            output.process.as_ref().unwrap(),
            nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK),
        )
        .unwrap();
        let chunk = [7; CHUNK_BYTES];
        let mut blocked = 0;
        for _ in 0..1000 {
            blocked += i32::from(output.process.as_mut().unwrap().write(&chunk).is_err());
            output.pump();
            assert!(output.relay.pending.len() <= CHUNK_BYTES);
        }
        assert!(blocked > 900, "the process was held back {blocked} times");
    }

    #[test]
    fn a_reader_that_is_gone_does_not_block_the_process() {
        let mut output = output();
        output.shim.shutdown(std::net::Shutdown::Both).unwrap();
        for _ in 0..100 {
            output.say(&[7; 4096]);
            output.pump();
        }
        assert!(matches!(output.relay.sink, Sink::Discard));
        output.process = None;
        output.pump();
        assert!(output.relay.is_finished());
    }

    #[test]
    fn a_cut_stream_ends_although_a_writer_is_left() {
        let mut output = output();
        output.say(b"last words");
        output.relay.cut(CHUNK_BYTES);
        output.pump();
        assert_eq!(output.heard(), b"last words");
        assert_eq!(output.shim.read(&mut [0; 1]).unwrap(), 0, "end of stream");
        for _ in 0..100 {
            output.say(&[7; 4096]);
            output.pump();
        }
    }

    #[test]
    fn a_cut_stream_is_bounded() {
        let mut output = output();
        output.relay.cut(10);
        output.say(b"0123456789abc");
        output.pump();
        assert_eq!(output.heard(), b"0123456789");
    }

    #[test]
    fn input_closes_the_pipe_at_the_end() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (agent, mut shim) = UnixStream::pair().unwrap();
        let source = Source::Open(nonblocking(agent.into()).unwrap());
        let mut relay = Relay::new(source, Sink::Pipe(nonblocking(write).unwrap()));
        shim.write_all(b"data").unwrap();
        shim.shutdown(std::net::Shutdown::Write).unwrap();
        relay.pump(&mut [0; CHUNK_BYTES]);
        assert!(relay.is_finished());
        let mut heard = Vec::new();
        File::from(read).read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"data");
    }

    #[test]
    fn closing_input_delivers_what_has_arrived() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (agent, mut shim) = UnixStream::pair().unwrap();
        let source = Source::Open(nonblocking(agent.into()).unwrap());
        let mut relay = Relay::new(source, Sink::Pipe(nonblocking(write).unwrap()));
        shim.write_all(b"data").unwrap();
        relay.end_when_idle();
        relay.pump(&mut [0; CHUNK_BYTES]);
        let mut heard = Vec::new();
        File::from(read).read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"data");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever the sizes of writes and reads, the bytes arrive whole and in order.
        #[test]
        fn no_byte_is_lost_or_reordered(
            steps in proptest::collection::vec((0..60_000_usize, 0..200_000_usize), 1..30),
        ) {
            let mut output = output();
            let (mut sent, mut heard) = (Vec::new(), Vec::new());
            for (write, read) in steps {
                let bytes: Vec<u8> = (0..write).map(|n| (sent.len() + n) as u8).collect();
                let process = output.process.as_mut().unwrap();
                nix::fcntl::fcntl(&*process, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
                let taken = process.write(&bytes).unwrap_or(0);
                sent.extend_from_slice(&bytes[..taken]);
                output.pump();
                let mut buffer = vec![0; read];
                let count = output.shim.read(&mut buffer).unwrap_or(0);
                heard.extend_from_slice(&buffer[..count]);
            }
            output.process = None;
            while !output.relay.is_finished() {
                output.pump();
                heard.extend(output.heard());
            }
            heard.extend(output.heard());
            prop_assert_eq!(sent, heard);
        }
    }
}
