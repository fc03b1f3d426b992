//! JSON objects, one a line, on a Unix stream socket.

use std::{
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use crate::control::{ControlEvent, ControlRequest};

/// The longest line that is accepted, its end included.
const LINE_BYTES: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the control socket brought a line of more than {LINE_BYTES} bytes")]
    LineTooLong,
    #[error("the control socket brought a line that is no request")]
    Malformed(#[source] serde_json::Error),
    #[error("read the control socket")]
    Read(#[source] io::Error),
    #[error("the parent does not read the control socket, {bytes} bytes did not fit")]
    Full { bytes: usize },
    #[error("write the control socket")]
    Write(#[source] io::Error),
    #[error("write an event as JSON")]
    Encode(#[source] serde_json::Error),
}

/// What has arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Requests(Vec<ControlRequest>),
    /// The parent has closed its end.
    End,
}

/// The vmm's end of the control socket. It never blocks.
pub struct Channel {
    socket: UnixStream,
    /// The beginning of a line whose end has not arrived.
    pending: Vec<u8>,
}

impl Channel {
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, pending: Vec::new() }
    }

    /// Takes what has arrived, which may be nothing.
    pub fn receive(&mut self) -> Result<Received, ChannelError> {
        let mut buffer = [0; LINE_BYTES];
        match recv(&self.socket, &mut buffer) {
            Ok(0) => Ok(Received::End),
            Ok(bytes) => self.take(&buffer[..bytes]).map(Received::Requests),
            Err(error) if is_not_now(&error) => Ok(Received::Requests(Vec::new())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Received::End),
            Err(error) => Err(ChannelError::Read(error)),
        }
    }

    /// The requests that `bytes` complete.
    fn take(&mut self, bytes: &[u8]) -> Result<Vec<ControlRequest>, ChannelError> {
        self.pending.extend_from_slice(bytes);
        let mut requests = Vec::new();
        let mut rest = &self.pending[..];
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line = &rest[..end];
            if end >= LINE_BYTES {
                return Err(ChannelError::LineTooLong);
            }
            requests.push(serde_json::from_slice(line).map_err(ChannelError::Malformed)?);
            rest = &rest[end + 1..];
        }
        if rest.len() >= LINE_BYTES {
            return Err(ChannelError::LineTooLong);
        }
        let taken = self.pending.len() - rest.len();
        self.pending.drain(..taken);
        Ok(requests)
    }

    /// Sends `event` whole, or fails.
    pub fn send(&mut self, event: &ControlEvent) -> Result<(), ChannelError> {
        let mut line = serde_json::to_vec(event).map_err(ChannelError::Encode)?;
        line.push(b'\n');
        let mut rest = &line[..];
        while !rest.is_empty() {
            match send(&self.socket, rest) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(ChannelError::Full { bytes: rest.len() });
                }
                Err(error) => return Err(ChannelError::Write(error)),
            }
        }
        Ok(())
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn is_not_now(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// The flag is for this call only: the parent may share the socket's own flags.
fn recv(socket: &UnixStream, to: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: `to` outlives the call and has the length that is passed.
    let result = unsafe { libc::recv(socket.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn send(socket: &UnixStream, from: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `from` outlives the call and has the length that is passed.
    let result = unsafe { libc::send(socket.as_raw_fd(), from.as_ptr().cast(), from.len(), flags) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn channel() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours), theirs)
    }

    fn requests(received: Received) -> Vec<ControlRequest> {
        match received {
            Received::Requests(requests) => requests,
            Received::End => panic!("the channel has ended"),
        }
    }

    #[test]
    fn lines_are_put_together_and_taken_apart() {
        let (mut channel, mut parent) = channel();
        assert!(requests(channel.receive().unwrap()).is_empty());
        parent.write_all(b"{\"request\":\"pause\"}\n{\"requ").unwrap();
        assert_eq!(requests(channel.receive().unwrap()), [ControlRequest::Pause]);
        parent.write_all(b"est\":\"stop\"}\n").unwrap();
        assert_eq!(requests(channel.receive().unwrap()), [ControlRequest::Stop]);
        drop(parent);
        assert_eq!(channel.receive().unwrap(), Received::End);
    }

    #[test]
    fn a_line_is_bounded() {
        let (mut channel, mut parent) = channel();
        parent.write_all(&[b' '; LINE_BYTES - 1]).unwrap();
        assert!(channel.receive().is_ok());
        parent.write_all(b" ").unwrap();
        assert!(matches!(channel.receive(), Err(ChannelError::LineTooLong)));
    }

    #[test]
    fn what_is_no_request_is_an_error() {
        for line in [&b"\n"[..], b"{}\n", b"{\"request\":\"explode\"}\n", b"\xff\n"] {
            let (mut channel, mut parent) = channel();
            parent.write_all(line).unwrap();
            assert!(matches!(channel.receive(), Err(ChannelError::Malformed(_))));
        }
    }

    #[test]
    fn a_parent_that_never_reads_is_noticed_and_not_waited_for() {
        let (mut channel, parent) = channel();
        let error = (0..100_000).find_map(|_| channel.send(&ControlEvent::Running).err());
        assert!(matches!(error, Some(ChannelError::Full { .. })), "{error:?}");
        drop(parent);
        assert!(matches!(channel.send(&ControlEvent::Running), Err(ChannelError::Write(_))));
    }

    #[test]
    fn an_event_is_a_line() {
        let (mut channel, mut parent) = channel();
        channel.send(&ControlEvent::Paused).unwrap();
        drop(channel);
        let mut text = String::new();
        parent.read_to_string(&mut text).unwrap();
        assert_eq!(text, "{\"event\":\"paused\"}\n");
    }
}
