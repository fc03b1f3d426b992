//! Questions to the kernel about network interfaces, one at a time (rtnetlink(7)).

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{RouteNetlinkMessage, link::LinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

pub mod filter;

/// More than the kernel puts into one datagram (`NLMSG_GOODSIZE`, at most 32 KiB).
const DATAGRAM_BYTES: usize = 64 << 10;

/// A socket to the network namespace in which it was opened, wherever its owner goes.
pub struct Netlink(Socket);

impl Netlink {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        // Nobody but the kernel is heard.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Has the kernel do something. `flags` are `NLM_F_CREATE` and the like.
    pub fn request(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(drop)
    }

    /// Everything of one kind, as the kernel tells it.
    pub fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_DUMP)
    }

    /// Every interface of the namespace.
    pub fn links(&self) -> io::Result<Vec<LinkMessage>> {
        let told = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let link = |message| match message {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        };
        Ok(told.into_iter().filter_map(link).collect())
    }

    fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut answers = Vec::new();
        let mut datagram = Vec::with_capacity(DATAGRAM_BYTES);
        loop {
            datagram.clear();
            self.0.recv(&mut datagram, 0)?;
            if read_answers(&datagram, &mut answers)? {
                return Ok(answers);
            }
        }
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Takes the messages of one datagram; true if the last is among them.
fn read_answers(mut rest: &[u8], answers: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(true),
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Error(_) => return Ok(true),
            NetlinkPayload::InnerMessage(answer) => answers.push(answer),
            _ => {}
        }
        // Each begins at a multiple of four.
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(false)
}
