//! Non-blocking system calls on the host's stream sockets, from and to guest memory.

use std::{io, mem, os::fd::AsRawFd, os::unix::net::UnixStream};

use crate::{interrupted::retry, virtio::iovecs::IoVecs};

/// Sends from the front of `source` what the socket takes, and consumes it. An empty
/// `source` is not sent.
pub(super) fn send(stream: &UnixStream, source: &mut IoVecs) -> io::Result<usize> {
    let sent = source.with_front(usize::MAX, |vecs| {
        let message = message(vecs);
        // SAFETY: the kernel only reads `message` and the guest memory that it points to,
        // which is mapped.
        retry(|| unsafe {
            libc::sendmsg(stream.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        })
    })?;
    source.advance(sent);
    Ok(sent)
}

/// The same from the host's memory.
pub(super) fn send_bytes(stream: &UnixStream, source: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads `source`, which is as long as it is told.
    retry(|| unsafe { libc::send(stream.as_raw_fd(), source.as_ptr().cast(), source.len(), flags) })
}

/// Receives at most `max_bytes` into `target` after its first `skip` bytes, and consumes
/// nothing. 0 is the end of the stream.
pub(super) fn receive(
    stream: &UnixStream,
    target: &mut IoVecs,
    skip: usize,
    max_bytes: usize,
) -> io::Result<usize> {
    target.with_part(skip, max_bytes, |vecs| {
        let mut message = message(vecs);
        // SAFETY: the kernel writes to `message` and to guest memory that is mapped and
        // that no reference points to. Without a control buffer it drops file descriptors
        // that the peer may have sent.
        retry(|| unsafe { libc::recvmsg(stream.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
    })
}

/// Copies the next bytes of the stream and leaves them there. 0 is the end of the stream.
pub(super) fn peek(stream: &UnixStream, target: &mut [u8]) -> io::Result<usize> {
    receive_bytes(stream, target, libc::MSG_PEEK)
}

/// Takes bytes that [`peek`] has seen.
pub(super) fn take(stream: &UnixStream, target: &mut [u8]) -> io::Result<usize> {
    receive_bytes(stream, target, 0)
}

fn receive_bytes(stream: &UnixStream, target: &mut [u8], flags: i32) -> io::Result<usize> {
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes to `target`, which is as long as it is told.
    retry(|| unsafe {
        libc::recv(stream.as_raw_fd(), target.as_mut_ptr().cast(), target.len(), flags)
    })
}

fn message(vecs: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr, with null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = vecs.as_ptr().cast_mut();
    message.msg_iovlen = vecs.len();
    message
}
