//! The streams of one process: its three descriptors, the ports they go to, and the
//! relays in between.
//!
//! The agent listens on every port before the shim learns that the process exists. Each
//! listener takes one connection and closes. What a process writes before that stays in
//! its pipe.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    rc::Rc,
};

use caisson_agent_protocol::plan::{StdioPorts, TerminalSize};
use nix::{fcntl::OFlag, unistd::pipe2};

use crate::{
    error::{At, OsError},
    relay::{CHUNK_BYTES, Relay, Sink, Source, Turn, nonblocking},
    sys,
    transport::Transport,
};

/// The process's ends: what becomes its descriptors 0, 1 and 2. `None` is `/dev/null`,
/// or with a terminal the terminal.
#[derive(Debug, Default)]
pub struct ProcessEnds {
    pub fds: [Option<OwnedFd>; 3],
}

impl ProcessEnds {
    pub fn raw(&self) -> [Option<RawFd>; 3] {
        self.fds.each_ref().map(|fd| fd.as_ref().map(AsRawFd::as_raw_fd))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Input,
    Output,
}

/// A relay and the listener that its socket will come from.
#[derive(Debug)]
struct Stream {
    direction: Direction,
    listener: Option<OwnedFd>,
    relay: Relay,
}

/// The agent's side of a process's streams.
#[derive(Debug, Default)]
pub struct Stdio {
    stdin: Option<Stream>,
    outputs: Vec<Stream>,
    terminal: Option<Rc<File>>,
}

/// How epoll learns of a descriptor that wakes this process's relays.
pub type Register<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>;

impl Stdio {
    /// Listens on the ports of a process and makes the pipes; with a terminal the pty
    /// comes later, by [`Stdio::attach_terminal`].
    pub fn open(
        ports: &StdioPorts,
        terminal: bool,
        transport: &dyn Transport,
        register: Register<'_>,
    ) -> Result<(Self, ProcessEnds), OsError> {
        let mut stdio = Self::default();
        let mut ends = ProcessEnds::default();
        if let Some(port) = ports.stdin {
            let mut relay = Relay::new(Source::Waiting, Sink::Waiting);
            if !terminal {
                let (read, write) = pipe()?;
                ends.fds[0] = Some(read);
                relay.sink = Sink::Pipe(watched(write, register)?);
            }
            stdio.stdin =
                Some(Stream::listening(Direction::Input, port, relay, transport, register)?);
        }
        for (index, port) in [(1, ports.stdout), (2, ports.stderr)] {
            let Some(port) = port else { continue };
            let mut relay = Relay::new(Source::Waiting, Sink::Waiting);
            if !terminal {
                let (read, write) = pipe()?;
                ends.fds[index] = Some(write);
                relay.source = Source::Open(watched(read, register)?);
            }
            stdio.outputs.push(Stream::listening(
                Direction::Output,
                port,
                relay,
                transport,
                register,
            )?);
        }
        if terminal && ports.stdout.is_none() {
            // Nobody looks at it, but a full terminal would block the process.
            stdio.outputs.push(Stream {
                direction: Direction::Output,
                listener: None,
                relay: Relay::new(Source::Waiting, Sink::Discard),
            });
        }
        Ok((stdio, ends))
    }

    /// Takes the master of the process's pty.
    pub fn attach_terminal(
        &mut self,
        master: OwnedFd,
        register: Register<'_>,
    ) -> Result<(), OsError> {
        let master = watched(master, register)?;
        if let Some(stdin) = &mut self.stdin {
            stdin.relay.sink = Sink::Terminal(master.clone());
        }
        for output in &mut self.outputs {
            output.relay.source = Source::Terminal(master.clone());
        }
        self.terminal = Some(master);
        Ok(())
    }

    /// Sets the terminal's size; false without a terminal.
    pub fn resize(&self, size: TerminalSize) -> Result<bool, OsError> {
        match &self.terminal {
            Some(master) => {
                set_size(master.as_fd(), size).at(|| "set the terminal's size")?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Accepts who is waiting and moves what can be moved.
    pub fn pump(
        &mut self,
        transport: &dyn Transport,
        register: Register<'_>,
        scratch: &mut [u8; CHUNK_BYTES],
    ) -> Turn {
        let mut turn = Turn::default();
        for stream in self.stdin.iter_mut().chain(&mut self.outputs) {
            stream.accept(transport, register);
            let moved = stream.relay.pump(scratch);
            turn.progress |= moved.progress;
            turn.again |= moved.again;
        }
        turn
    }

    /// Ends the process's input once what has arrived is delivered.
    pub fn close_stdin(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.listener = None;
            stdin.relay.end_when_idle();
        }
    }

    /// The process is gone: nobody reads its input, and a terminal that hangs up stays
    /// hung up.
    pub fn process_exited(&mut self) {
        self.stdin = None;
        for output in &mut self.outputs {
            output.relay.end_at_hangup();
        }
    }

    /// Ends outputs that another process still holds open, after what is in them now.
    pub fn cut_outputs(&mut self) {
        for output in &mut self.outputs {
            // A pipe holds no more than this unless its owner enlarged it.
            output.relay.cut(CHUNK_BYTES);
        }
    }

    /// Whether every output has been passed on to its end.
    pub fn outputs_finished(&self) -> bool {
        self.outputs.iter().all(|output| output.relay.is_finished())
    }
}

impl Stream {
    fn listening(
        direction: Direction,
        port: u32,
        relay: Relay,
        transport: &dyn Transport,
        register: Register<'_>,
    ) -> Result<Self, OsError> {
        let listener = transport.listen(port).at(|| format!("listen on stream port {port}"))?;
        register(listener.as_fd()).at(|| "watch a stream port")?;
        Ok(Self { direction, listener: Some(listener), relay })
    }

    fn accept(&mut self, transport: &dyn Transport, register: Register<'_>) {
        let Some(listener) = &self.listener else { return };
        let socket = match transport.accept(listener.as_fd()) {
            Ok(Some(socket)) => watched(socket, register),
            Ok(None) => return,
            Err(error) => Err(OsError::new("accept a stream", error)),
        };
        self.listener = None;
        match (self.direction, socket) {
            (Direction::Input, Ok(socket)) => self.relay.source = Source::Open(socket),
            (Direction::Output, Ok(socket)) => self.relay.sink = Sink::Socket(socket),
            (direction, Err(error)) => {
                crate::log!("{}", crate::error::to_wire(&error));
                match direction {
                    Direction::Input => self.relay.source = Source::Ended,
                    Direction::Output => self.relay.sink = Sink::Discard,
                }
            }
        }
    }
}

fn pipe() -> Result<(OwnedFd, OwnedFd), OsError> {
    pipe2(OFlag::O_CLOEXEC).at(|| "make a pipe")
}

fn watched(fd: OwnedFd, register: Register<'_>) -> Result<Rc<File>, OsError> {
    let file = nonblocking(fd).at(|| "prepare a stream")?;
    register(file.as_fd()).at(|| "watch a stream")?;
    Ok(file)
}

/// TIOCSWINSZ.
pub fn set_size(terminal: BorrowedFd<'_>, size: TerminalSize) -> io::Result<()> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the size is a whole `winsize` that outlives the call.
    sys::check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}
