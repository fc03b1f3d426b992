//! Moves a session's bytes, signals and exit status between the port and the process.
//!
//! ```text
//!   running ──process ends──► draining ──outputs empty──► Exit sent
//!      └────host goes───────► abandoned: SIGHUP, then SIGKILL
//! ```

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use caisson_agent_protocol::{
    ExitStatus,
    machine::{Frame, MAX_DATA_BYTES, Stream, WINDOW_BYTES},
};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    channel::{Channel, ChannelError},
    child::Child,
};

/// What a process gets between SIGHUP and SIGKILL when its host side has gone.
const GRACE: Duration = Duration::from_secs(2);
/// No more output is read while this much waits for the port.
const BACKLOG_BYTES: usize = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum RelayError {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("wait for the session's files")]
    Poll(#[source] nix::Error),
    #[error("wait for the session's process")]
    Wait(#[source] nix::Error),
}

/// Relays until the process has ended and its output is delivered, or the host has gone
/// and the process is ended.
pub(super) fn run(channel: &mut Channel<'_>, session: u64, child: Child) -> Result<(), RelayError> {
    let pid = Pid::from_raw(child.pid);
    let mut relay = Relay::new(channel, session, child);
    match relay.until_exit() {
        Ok(status) => Ok(relay.channel.send(session, &Frame::Exit(status))?),
        Err(RelayError::Channel(ChannelError::Closed)) => relay.abandon(),
        Err(error) => {
            // Nobody would ever end the process otherwise.
            let _ = killpg(pid, Signal::SIGKILL);
            Err(error)
        }
    }
}

struct Relay<'a, 'port> {
    channel: &'a mut Channel<'port>,
    session: u64,
    child: Child,
    input: Input,
    outputs: Vec<Output>,
    status: Option<ExitStatus>,
}

/// Bytes on their way to the process.
#[derive(Default)]
struct Input {
    waiting: VecDeque<u8>,
    ended: bool,
}

struct Output {
    stream: Stream,
    file: File,
    credit: usize,
    /// Nothing more will come.
    done: bool,
}

/// What a poll has found ready.
struct Ready {
    port: bool,
    exited: bool,
    input: Option<PollFlags>,
    outputs: Vec<bool>,
}

impl<'a, 'port> Relay<'a, 'port> {
    fn new(channel: &'a mut Channel<'port>, session: u64, mut child: Child) -> Self {
        let outputs = std::mem::take(&mut child.outputs)
            .into_iter()
            .map(|(stream, file)| Output {
                stream,
                file,
                credit: WINDOW_BYTES as usize,
                done: false,
            })
            .collect();
        Self { channel, session, child, input: Input::default(), outputs, status: None }
    }

    fn until_exit(&mut self) -> Result<ExitStatus, RelayError> {
        // What came with the handshake makes the port ready no more.
        self.take_frames()?;
        loop {
            let ready = self.wait(PollTimeout::NONE)?;
            if ready.port {
                self.channel.flush()?;
                self.take_frames()?;
            }
            if let Some(events) = ready.input {
                self.feed_input(events)?;
            }
            if ready.exited && self.status.is_none() {
                self.status = Some(reap(self.child.pid)?);
            }
            self.forward_outputs(&ready.outputs)?;
            if let Some(status) = self.status
                && self.outputs.iter().all(|output| output.done)
            {
                return Ok(status);
            }
        }
    }

    fn wait(&self, timeout: PollTimeout) -> Result<Ready, RelayError> {
        let mut files = vec![PollFd::new(self.channel.as_fd(), self.channel.interest())];
        if self.status.is_none() {
            files.push(PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN));
        }
        let input_at = files.len();
        let input = self.input_file();
        if let Some((file, events)) = input {
            files.push(PollFd::new(file.as_fd(), events));
        }
        let outputs_at = files.len();
        let open: Vec<bool> = self.outputs.iter().map(|output| self.is_open(output)).collect();
        for (output, _) in self.outputs.iter().zip(&open).filter(|(_, open)| **open) {
            files.push(PollFd::new(output.file.as_fd(), PollFlags::POLLIN));
        }
        // With the process gone nothing new comes to an empty pipe: no waiting for it.
        let draining = self.status.is_some() && open.contains(&true);
        let timeout = if draining { PollTimeout::ZERO } else { timeout };
        match poll(&mut files, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(RelayError::Poll(error)),
        }
        let is_ready = |file: &PollFd| file.any().unwrap_or(false);
        let mut readable = files[outputs_at..].iter().map(is_ready);
        Ok(Ready {
            port: is_ready(&files[0]),
            exited: self.status.is_none() && is_ready(&files[1]),
            input: input
                .and_then(|_| files[input_at].revents())
                .filter(|events| !events.is_empty()),
            outputs: open
                .iter()
                .map(|open| *open && (readable.next() == Some(true) || draining))
                .collect(),
        })
    }

    /// Whether the output may be read now.
    fn is_open(&self, output: &Output) -> bool {
        !output.done && output.credit > 0 && self.channel.backlog() < BACKLOG_BYTES
    }

    /// Where input goes, and what to poll that for. A pipe is watched even without input,
    /// so that its closing is noticed.
    fn input_file(&self) -> Option<(&File, PollFlags)> {
        let empty = self.input.waiting.is_empty();
        let events = if empty { PollFlags::empty() } else { PollFlags::POLLOUT };
        match (&self.child.stdin, &self.child.terminal) {
            (Some(pipe), _) => Some((pipe, events)),
            (None, Some(terminal)) if !empty => Some((terminal, events)),
            _ => None,
        }
    }

    fn take_frames(&mut self) -> Result<(), RelayError> {
        while let Some((session, frame)) = self.channel.receive()? {
            if session != self.session {
                // Another host process has the port now, so ours has gone. Its greeting is
                // lost here; it repeats it.
                if matches!(frame, Frame::Hello(_)) {
                    return Err(ChannelError::Closed.into());
                }
                continue;
            }
            self.take_frame(frame)?;
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), RelayError> {
        match frame {
            Frame::Stdin(bytes) => {
                // Within the credit this is bounded; a host that exceeds it is cut off.
                if self.input.waiting.len() + bytes.len() > 2 * WINDOW_BYTES as usize {
                    return Err(ChannelError::Closed.into());
                }
                self.input.waiting.extend(bytes);
                self.write_input()?;
            }
            Frame::StdinEnd => {
                self.input.ended = true;
                self.write_input()?;
            }
            Frame::Signal(signal) => self.signal(signal),
            Frame::Resize { columns, rows } => self.resize(columns, rows),
            Frame::Credit { stream, bytes } => {
                for output in self.outputs.iter_mut().filter(|output| output.stream == stream) {
                    let most = WINDOW_BYTES as usize;
                    output.credit = output.credit.saturating_add(bytes as usize).min(most);
                }
            }
            // Closing our end is what tells the process, by SIGPIPE.
            Frame::OutputClosed(stream) => {
                self.outputs.retain(|output| output.stream != stream);
            }
            _ => {}
        }
        Ok(())
    }

    fn signal(&self, number: u8) {
        let Ok(signal) = Signal::try_from(i32::from(number)) else { return };
        // Once reaped, the number may be another process's.
        if self.status.is_some() {
            return;
        }
        let pid = Pid::from_raw(self.child.pid);
        // What a terminal sends goes to the whole group, as it would there.
        let _ = match signal {
            Signal::SIGINT | Signal::SIGQUIT | Signal::SIGHUP => killpg(pid, signal),
            other => kill(pid, other),
        };
    }

    fn resize(&self, columns: u16, rows: u16) {
        use std::os::fd::AsRawFd;
        let Some(terminal) = &self.child.terminal else { return };
        let size = libc::winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize, which lives until after the call.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    }

    fn feed_input(&mut self, events: PollFlags) -> Result<(), RelayError> {
        if self.child.stdin.is_some() && events.contains(PollFlags::POLLERR) {
            return self.close_input();
        }
        self.write_input()
    }

    fn write_input(&mut self) -> Result<(), RelayError> {
        let mut passed_on = 0;
        let mut broken = false;
        while !self.input.waiting.is_empty() {
            let target = self.child.stdin.as_mut().or(self.child.terminal.as_mut());
            let Some(target) = target else { break };
            match target.write(self.input.waiting.as_slices().0) {
                Ok(count) => {
                    passed_on += count;
                    self.input.waiting.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        if passed_on > 0 {
            let credit = Frame::Credit { stream: Stream::Stdin, bytes: passed_on as u32 };
            self.channel.send(self.session, &credit)?;
        }
        if broken {
            return self.close_input();
        }
        if self.input.ended && self.input.waiting.is_empty() {
            self.child.stdin = None;
        }
        Ok(())
    }

    fn close_input(&mut self) -> Result<(), RelayError> {
        self.input.waiting.clear();
        if self.child.stdin.take().is_some() {
            self.channel.send(self.session, &Frame::StdinClosed)?;
        }
        Ok(())
    }

    fn forward_outputs(&mut self, ready: &[bool]) -> Result<(), RelayError> {
        let mut buffer = [0; MAX_DATA_BYTES];
        let exited = self.status.is_some();
        // An output may have been closed since the poll; then the flags no longer match
        // and all are tried: none of the files blocks.
        let matching = ready.len() == self.outputs.len();
        for (index, output) in self.outputs.iter_mut().enumerate() {
            if output.done || output.credit == 0 || (matching && !ready[index]) {
                continue;
            }
            let most = output.credit.min(buffer.len());
            match output.file.read(&mut buffer[..most]) {
                Ok(0) => output.done = true,
                Ok(count) => {
                    output.credit -= count;
                    let bytes = buffer[..count].to_vec();
                    let frame = Frame::Output { stream: output.stream, bytes };
                    self.channel.send(self.session, &frame)?;
                }
                // Whatever still holds the other end, the process has written its last.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => output.done = exited,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal without users answers EIO.
                Err(_) => output.done = true,
            }
        }
        Ok(())
    }

    /// The host has gone: ends the process as a closed terminal does, and then for good.
    fn abandon(mut self) -> Result<(), RelayError> {
        let pid = Pid::from_raw(self.child.pid);
        if self.status.is_none() {
            let _ = killpg(pid, Signal::SIGHUP);
            let _ = killpg(pid, Signal::SIGCONT);
        }
        // A closed terminal hangs up whatever runs in its foreground.
        self.child.stdin = None;
        self.child.terminal = None;
        self.outputs.retain(|output| output.stream != Stream::Terminal);
        let deadline = Instant::now() + GRACE;
        while self.status.is_none()
            && let Some(left) = deadline.checked_duration_since(Instant::now())
        {
            self.discard_output(left)?;
        }
        let _ = killpg(pid, Signal::SIGKILL);
        if self.status.is_none() {
            reap(self.child.pid)?;
        }
        Ok(())
    }

    /// Reads what the process has to say in its end, so that saying it does not kill it.
    fn discard_output(&mut self, limit: Duration) -> Result<(), RelayError> {
        let mut files = vec![PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN)];
        let open = self.outputs.iter().filter(|output| !output.done);
        files.extend(open.map(|output| PollFd::new(output.file.as_fd(), PollFlags::POLLIN)));
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut files, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(RelayError::Poll(error)),
        }
        if files[0].any().unwrap_or(false) {
            self.status = Some(reap(self.child.pid)?);
        }
        let mut buffer = [0; MAX_DATA_BYTES];
        for output in self.outputs.iter_mut().filter(|output| !output.done) {
            match output.file.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => output.done = true,
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Waits for the process, which has ended or is about to.
fn reap(pid: i32) -> Result<ExitStatus, RelayError> {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(ExitStatus::Exited(code as u8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                return Ok(ExitStatus::Signaled(signal as i32 as u8));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(RelayError::Wait(error)),
        }
    }
}
