//! A conversation with the machine over one of its ports.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use caisson_agent_protocol::machine::{Decoder, Frame, encode};

use super::{directory::short_path, qemu::socket_name};

#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("the machine has ended; `caisson machine logs` shows its last words")]
    Ended,
    #[error("talk to the machine")]
    Io(#[source] io::Error),
}

impl From<io::Error> for ConnectionError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused => Self::Ended,
            _ => Self::Io(error),
        }
    }
}

/// The receiving half, and the way to make senders.
pub(super) struct Connection {
    stream: UnixStream,
    sender: Sender,
    decoder: Decoder,
    received: VecDeque<Frame>,
}

/// Sends whole frames, from any thread.
#[derive(Clone)]
pub(super) struct Sender {
    stream: Arc<Mutex<UnixStream>>,
    session: u64,
}

impl Connection {
    /// `ports` is the opened directory of sockets.
    pub(super) fn open(ports: &File, port: u32) -> Result<Self, ConnectionError> {
        let stream = UnixStream::connect(short_path(ports, &socket_name(port)))?;
        let sender =
            Sender { stream: Arc::new(Mutex::new(stream.try_clone()?)), session: random_number()? };
        Ok(Self { stream, sender, decoder: Decoder::new(), received: VecDeque::new() })
    }

    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    pub(super) fn send(&self, frame: &Frame) -> Result<(), ConnectionError> {
        self.sender.send(frame)
    }

    /// The next frame of this conversation; what is left of an earlier one is dropped.
    pub(super) fn receive(&mut self) -> Result<Frame, ConnectionError> {
        self.stream.set_read_timeout(None)?;
        loop {
            if let Some(frame) = self.received.pop_front() {
                return Ok(frame);
            }
            self.read_more()?;
        }
    }

    /// As [`Connection::receive`], for `limit` at most. `None`: nothing came.
    pub(super) fn receive_within(
        &mut self,
        limit: Duration,
    ) -> Result<Option<Frame>, ConnectionError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = self.received.pop_front() {
                return Ok(Some(frame));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Result<(), ConnectionError> {
        let mut buffer = [0; 64 << 10];
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => return Err(ConnectionError::Ended),
            Ok(count) => count,
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => return Ok(()),
                _ => return Err(error.into()),
            },
        };
        let (received, own) = (&mut self.received, self.sender.session);
        self.decoder.push(&buffer[..count], |result| {
            received.extend(result.ok().filter(|(session, _)| *session == own).map(|both| both.1));
        });
        Ok(())
    }
}

impl Sender {
    pub(super) fn send(&self, frame: &Frame) -> Result<(), ConnectionError> {
        let bytes = encode(self.session, frame);
        // A panic while writing would leave at most half a frame, which the other side drops.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(stream.write_all(&bytes)?)
    }
}

fn random_number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: getrandom writes at most the eight bytes that it is given.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count != bytes.len() as isize {
        return Err(io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}
