//! The control channel: whole frames in, whole frames out, both bounded.

use std::{
    fs::File,
    io::{self, ErrorKind as Io, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use caisson_agent_protocol::{
    FrameError, FromAgent, Request,
    frame::{decode, encode, payload_length},
};

/// Replies that wait for the shim to read; above it no further request is taken.
const BACKLOG_BYTES: usize = 1 << 20;
const READ_BYTES: usize = 64 << 10;

/// Why a channel is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the shim closed the control channel")]
    Closed,
    #[error("the shim does not read its control channel")]
    Stuck,
    #[error("read the control channel")]
    Frame(#[from] FrameError),
    #[error("use the control channel")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub struct Channel {
    socket: File,
    /// Received and not yet a whole frame.
    input: Vec<u8>,
    /// Encoded and not yet sent; bytes before `sent` are gone.
    output: Vec<u8>,
    sent: usize,
    closed: bool,
}

impl Channel {
    /// `socket` must be non-blocking.
    pub fn new(socket: OwnedFd) -> Self {
        let socket = File::from(socket);
        Self { socket, input: Vec::new(), output: Vec::new(), sent: 0, closed: false }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads once what has arrived; false when there is nothing more to read now. Nothing
    /// is read while too many replies wait, which holds the shim back.
    pub fn receive(&mut self) -> Result<bool, ChannelError> {
        if self.closed || self.is_backlogged() {
            return Ok(false);
        }
        let start = self.input.len();
        self.input.resize(start + READ_BYTES, 0);
        let result = self.socket.read(&mut self.input[start..]);
        self.input.truncate(start + result.as_ref().copied().unwrap_or(0));
        match result {
            Ok(0) => self.closed = true,
            // A length beyond the limit ends the channel before its bytes come.
            Ok(_) => drop(self.next_length()?),
            Err(error) if error.kind() == Io::Interrupted => {}
            Err(error) if error.kind() == Io::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// The next whole request, unless too many replies wait.
    pub fn next_request(&mut self) -> Result<Option<Request>, ChannelError> {
        if self.is_backlogged() {
            return Ok(None);
        }
        let Some(length) = self.next_length()? else { return self.at_end() };
        if self.input.len() < 4 + length {
            return self.at_end();
        }
        let request = decode(&self.input[4..4 + length])?;
        self.input.drain(..4 + length);
        if self.input.is_empty() {
            // One large plan must not keep its memory.
            self.input = Vec::new();
        }
        Ok(Some(request))
    }

    /// No whole frame is there: an error if none can come any more.
    fn at_end(&self) -> Result<Option<Request>, ChannelError> {
        match (self.closed, self.input.is_empty()) {
            (false, _) => Ok(None),
            (true, true) => Err(ChannelError::Closed),
            (true, false) => Err(FrameError::Truncated.into()),
        }
    }

    fn next_length(&self) -> Result<Option<usize>, FrameError> {
        self.input.first_chunk().map(|header| payload_length(*header)).transpose()
    }

    /// Queues `message` and sends what the socket takes.
    pub fn send(&mut self, message: &FromAgent) -> Result<(), ChannelError> {
        // What is queued beyond the backlog are events, which containers cause.
        if self.output.len() - self.sent > 2 * BACKLOG_BYTES {
            return Err(ChannelError::Stuck);
        }
        self.output.extend(encode(message)?);
        self.flush()
    }

    /// Sends what the socket takes.
    pub fn flush(&mut self) -> Result<(), ChannelError> {
        while self.sent < self.output.len() {
            match self.socket.write(&self.output[self.sent..]) {
                Ok(0) => return Err(ChannelError::Closed),
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == Io::Interrupted => {}
                Err(error) if error.kind() == Io::WouldBlock => {
                    self.output.drain(..self.sent);
                    self.sent = 0;
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Whether everything queued has been handed to the socket.
    pub fn is_flushed(&self) -> bool {
        self.output.is_empty()
    }

    fn is_backlogged(&self) -> bool {
        self.output.len() - self.sent > BACKLOG_BYTES
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use caisson_agent_protocol::{Call, Outcome};
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (UnixStream, Channel) {
        let (shim, agent) = UnixStream::pair().unwrap();
        agent.set_nonblocking(true).unwrap();
        (shim, Channel::new(agent.into()))
    }

    fn request(id: u64) -> Request {
        Request { id, call: Call::Stats { container: "c".into() } }
    }

    #[test]
    fn requests_arrive_whole_whatever_the_pieces() {
        let (mut shim, mut channel) = pair();
        let mut wire = encode(&request(1)).unwrap();
        wire.extend(encode(&request(2)).unwrap());
        let mut seen = Vec::new();
        for byte in wire {
            shim.write_all(&[byte]).unwrap();
            channel.receive().unwrap();
            seen.extend(channel.next_request().unwrap());
        }
        assert_eq!(seen, [request(1), request(2)]);
    }

    #[test]
    fn a_huge_length_ends_the_channel_at_once() {
        let (mut shim, mut channel) = pair();
        shim.write_all(&[0xff; 4]).unwrap();
        let error = channel.receive().unwrap_err();
        assert!(matches!(error, ChannelError::Frame(FrameError::TooLong { .. })), "{error}");
    }

    #[test]
    fn closing_between_and_inside_frames_are_told_apart() {
        let (shim, mut channel) = pair();
        drop(shim);
        while channel.receive().unwrap() {}
        assert!(matches!(channel.next_request(), Err(ChannelError::Closed)));
        let (mut shim, mut channel) = pair();
        shim.write_all(&[9, 0]).unwrap();
        drop(shim);
        while channel.receive().unwrap() {}
        let error = channel.next_request().unwrap_err();
        assert!(matches!(error, ChannelError::Frame(FrameError::Truncated)));
    }

    #[test]
    fn a_shim_that_does_not_read_is_held_back_and_then_given_up() {
        let (mut shim, mut channel) = pair();
        let pids = Outcome::Pids(vec![u32::MAX; 10_000]);
        let reply = FromAgent::Reply { id: 1, result: Ok(pids) };
        while !channel.is_backlogged() {
            channel.send(&reply).unwrap();
        }
        shim.write_all(&encode(&request(1)).unwrap()).unwrap();
        channel.receive().unwrap();
        assert!(channel.next_request().unwrap().is_none(), "no work for who does not read");
        let error = (0..100).find_map(|_| channel.send(&reply).err()).unwrap();
        assert!(matches!(error, ChannelError::Stuck));
    }

    proptest! {
        #[test]
        fn random_bytes_are_an_error_or_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (mut shim, mut channel) = pair();
            shim.write_all(&bytes).unwrap();
            drop(shim);
            let result = (|| { while channel.receive()? {} while channel.next_request()?.is_some() {} Ok::<_, ChannelError>(()) })();
            prop_assert!(result.is_err());
        }
    }
}
