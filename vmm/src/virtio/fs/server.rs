//! The socket to the file server: whole messages, never waited for.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
};

use super::message::{MAX_BYTES, Reply};
use crate::interrupted::retry;

pub(super) enum Sent {
    Whole,
    /// The socket is full for now.
    Blocked,
    Gone,
}

pub(super) enum Received {
    Message,
    Nothing,
    Gone,
}

pub(super) struct Server {
    socket: Arc<OwnedFd>,
    /// The message received last; what does not fit is cut off, and then not whole.
    buffer: Box<[u8]>,
    received: usize,
    is_gone: bool,
}

impl Server {
    pub(super) fn new(socket: Arc<OwnedFd>) -> Self {
        let buffer = vec![0; MAX_BYTES].into_boxed_slice();
        Self { socket, buffer, received: 0, is_gone: false }
    }

    pub(super) fn send(&mut self, message: &[u8]) -> Sent {
        if self.is_gone {
            return Sent::Gone;
        }
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the kernel reads `message`, which is as long as it is told. The socket keeps
        // messages whole, so that all of it is sent or nothing.
        let sent = retry(|| unsafe {
            libc::send(self.as_raw_fd(), message.as_ptr().cast(), message.len(), flags)
        });
        match sent {
            Ok(_) => Sent::Whole,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked,
            Err(_) => Sent::Gone,
        }
    }

    pub(super) fn receive(&mut self) -> Received {
        let socket = self.as_raw_fd();
        let buffer = &mut self.buffer;
        // SAFETY: the kernel writes to `buffer`, which is as long as it is told.
        let received = retry(|| unsafe {
            libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT)
        });
        match received {
            Ok(bytes @ 1..) => {
                self.received = bytes;
                Received::Message
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
            // No reply is empty.
            Ok(0) | Err(_) => {
                self.is_gone = true;
                Received::Gone
            }
        }
    }

    /// The message received last, if it is one.
    pub(super) fn reply(&mut self) -> Option<Reply<'_>> {
        Reply::new(&mut self.buffer[..self.received])
    }

    /// Whether the server's end was seen.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone
    }
}

impl AsRawFd for Server {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
