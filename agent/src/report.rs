//! What a forked child and the agent say to each other until the child executes its
//! program: one packet a message over a socket pair.
//!
//! ```text
//!   child ── Ready (and the pty's master) ──► agent
//!   child ◄── one byte: start ───────────────  agent
//!   child ── Failed ──► agent,  or execve closes the socket: success
//! ```

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use caisson_agent_protocol::AgentError;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
        sendmsg, socketpair,
    },
    unistd::{read, write},
};
use serde::{Deserialize, Serialize};

/// An error's message is bounded; this holds it with every character escaped.
const MAX_PACKET_BYTES: usize = 32 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// Everything is prepared; waits for the start.
    Ready,
    Failed(AgentError),
}

/// What the agent finds on its end.
#[derive(Debug)]
pub enum Received {
    Report(Report, Option<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The child has executed its program, or is dead.
    Closed,
}

/// The agent's end and the child's.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends `report`, with `terminal` if there is one.
pub fn send(
    to: BorrowedFd<'_>,
    report: &Report,
    terminal: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(report)?;
    let Some(terminal) = terminal else {
        // write(2), as a seccomp filter may already hold.
        write(to, &bytes)?;
        return Ok(());
    };
    let fds = [terminal.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(&bytes)], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// Takes the next report without waiting.
pub fn receive(from: BorrowedFd<'_>) -> io::Result<Received> {
    let mut bytes = vec![0; MAX_PACKET_BYTES];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let (length, terminal) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(from.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Received::Nothing),
            Err(Errno::ECONNRESET) => return Ok(Received::Closed),
            other => other?,
        };
        let fds = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        // SAFETY: the kernel has just installed this descriptor for this process.
        (message.bytes, fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
    };
    if length == 0 {
        return Ok(Received::Closed);
    }
    Ok(Received::Report(serde_json::from_slice(&bytes[..length])?, terminal))
}

/// Lets the child execute its program.
pub fn start(to: BorrowedFd<'_>) -> io::Result<()> {
    write(to, b"s")?;
    Ok(())
}

/// Waits for [`start`]; false if the agent has closed its end instead.
pub fn wait_for_start(from: BorrowedFd<'_>) -> io::Result<bool> {
    loop {
        match read(from, &mut [0; 1]) {
            Err(Errno::EINTR) => {}
            other => return Ok(other? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use caisson_agent_protocol::ErrorKind;

    use super::*;
    use crate::error::wire;

    #[test]
    fn reports_and_descriptors_arrive() {
        let (agent, child) = channel().unwrap();
        assert!(matches!(receive(agent.as_fd()).unwrap(), Received::Nothing));
        send(child.as_fd(), &Report::Ready, Some(agent.as_fd())).unwrap();
        let received = receive(agent.as_fd()).unwrap();
        assert!(matches!(received, Received::Report(Report::Ready, Some(_))));
    }

    #[test]
    fn the_longest_error_fits_a_packet() {
        let (agent, child) = channel().unwrap();
        let error = wire(ErrorKind::Internal, "\u{1}".repeat(100_000));
        send(child.as_fd(), &Report::Failed(error.clone()), None).unwrap();
        match receive(agent.as_fd()).unwrap() {
            Received::Report(Report::Failed(back), None) => assert_eq!(back, error),
            other => panic!("{other:?}"),
        }
        drop(child);
        assert!(matches!(receive(agent.as_fd()).unwrap(), Received::Closed));
    }
}
