//! A port of the machine, as frames.

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use caisson_agent_protocol::machine::{Decoder, Frame, encode};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};

/// The host's side has gone.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    #[error("the host has closed the port")]
    Closed,
    #[error("read or write the port")]
    Io(#[source] nix::Error),
}

/// Frames over a non-blocking file. What cannot be written yet waits in memory: callers
/// produce more only while [`Channel::backlog`] is small.
pub(super) struct Channel<'a> {
    port: BorrowedFd<'a>,
    decoder: Decoder,
    received: VecDeque<(u64, Frame)>,
    outgoing: VecDeque<u8>,
}

impl<'a> Channel<'a> {
    pub(super) fn new(port: BorrowedFd<'a>) -> Self {
        let (received, outgoing) = (VecDeque::new(), VecDeque::new());
        Self { port, decoder: Decoder::new(), received, outgoing }
    }

    /// Bytes that wait to be written.
    pub(super) fn backlog(&self) -> usize {
        self.outgoing.len()
    }

    /// What to poll the port for.
    pub(super) fn interest(&self) -> PollFlags {
        match self.outgoing.is_empty() {
            true => PollFlags::POLLIN,
            false => PollFlags::POLLIN | PollFlags::POLLOUT,
        }
    }

    /// Queues a frame and writes what the port takes.
    pub(super) fn send(&mut self, session: u64, frame: &Frame) -> Result<(), ChannelError> {
        self.outgoing.extend(encode(session, frame));
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<(), ChannelError> {
        while !self.outgoing.is_empty() {
            match write(self.port, self.outgoing.as_slices().0) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(error) => return Err(ChannelError::Io(error)),
            }
        }
        Ok(())
    }

    /// The next frame that has arrived. What is no frame, a predecessor's rest, is dropped.
    pub(super) fn receive(&mut self) -> Result<Option<(u64, Frame)>, ChannelError> {
        let mut buffer = [0; 16 << 10];
        while self.received.is_empty() {
            match read(self.port, &mut buffer) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(count) => {
                    let received = &mut self.received;
                    self.decoder.push(&buffer[..count], |frame| received.extend(frame.ok()));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(Errno::ECONNRESET) => return Err(ChannelError::Closed),
                Err(error) => return Err(ChannelError::Io(error)),
            }
        }
        Ok(self.received.pop_front())
    }

    /// As [`Channel::receive`], waiting up to `timeout_ms` for something to arrive.
    pub(super) fn receive_within(
        &mut self,
        timeout_ms: u16,
    ) -> Result<Option<(u64, Frame)>, ChannelError> {
        if let Some(frame) = self.receive()? {
            return Ok(Some(frame));
        }
        self.flush()?;
        let mut ready = [PollFd::new(self.port, self.interest())];
        match poll(&mut ready, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(Errno::EINTR) => self.receive(),
            Err(error) => Err(ChannelError::Io(error)),
        }
    }

    /// Writes all that is queued, waiting up to `timeout_ms` for each step.
    pub(super) fn drain(&mut self, timeout_ms: u16) -> Result<(), ChannelError> {
        while !self.outgoing.is_empty() {
            let mut ready = [PollFd::new(self.port, PollFlags::POLLOUT)];
            match poll(&mut ready, PollTimeout::from(timeout_ms)) {
                Ok(0) => return Err(ChannelError::Io(Errno::ETIMEDOUT)),
                Ok(_) if hung_up(&ready[0]) => return Err(ChannelError::Closed),
                Ok(_) | Err(Errno::EINTR) => self.flush()?,
                Err(error) => return Err(ChannelError::Io(error)),
            }
        }
        Ok(())
    }
}

impl AsFd for Channel<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port
    }
}

pub(super) fn hung_up(ready: &PollFd) -> bool {
    ready.revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
}

/// Makes reads and writes of `file` return instead of waiting.
pub(super) fn set_nonblocking(file: impl AsFd) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: fcntl with F_GETFL and F_SETFL touches no memory; the descriptor is open.
    let result = unsafe {
        match libc::fcntl(fd, libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK),
        }
    };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
