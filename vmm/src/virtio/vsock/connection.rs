//! One connection between a port in the guest and a stream socket on the host.
//!
//! ```text
//!   host connects        guest connects
//!        │                     │
//!   Handshake                  │
//!        │ CONNECT line        │
//!    Requested                 │
//!        │ guest's RESPONSE    │
//!        └──────► Open ◄───────┘
//!                  │ guest's RST, or its SHUTDOWN of both directions
//!              Draining ── all that the guest sent is delivered ──► gone
//! ```
//!
//! Data goes straight between socket and guest buffers. Only what the socket does not take
//! at once waits in the outbox, which the credit given to the guest bounds.

use std::{
    collections::VecDeque,
    io,
    net::Shutdown,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use event_manager::EventSet;

use super::{
    connect_line::{self, ConnectLine, MAX_LINE_BYTES},
    credit::{BUFFER_BYTES, Credit},
    packet::{
        HEADER_BYTES, Header, MAX_DATA_BYTES, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE,
        SHUTDOWN_SEND,
    },
    socket,
};
use crate::virtio::iovecs::IoVecs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The program on the host has not yet said which port it wants.
    Handshake,
    /// The guest was asked and has not answered.
    Requested,
    Open,
    /// Over for the guest; the socket has not taken everything yet.
    Draining,
}

/// What is to become of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    Keep,
    /// It is over, and the guest knows.
    Close,
    /// It is over, and the guest must be told.
    Reset,
    /// The same, but the socket is kept until it has taken everything.
    ResetAndDrain,
}

/// The next packet to the guest.
pub(super) enum Next {
    Packet(Header),
    /// After this one the connection is over.
    Last(Header),
    Nothing,
}

pub(super) struct Connection {
    pub ports: Ports,
    pub phase: Phase,
    /// Whether it waits in the queue of connections with output.
    pub queued: bool,
    /// Whether the event manager watches for the socket to become writable.
    pub watched_for_writing: bool,
    stream: UnixStream,
    credit: Credit,
    /// Received from the guest and not taken by the socket.
    outbox: VecDeque<u8>,
    /// REQUEST or RESPONSE, when it is to be sent.
    opening: Option<Op>,
    wants_credit_update: bool,
    wants_credit_request: bool,
    /// `SHUTDOWN_*` that the guest is to be told of, and has been told of.
    host_closed: u32,
    host_closed_told: u32,
    /// `SHUTDOWN_*` as the guest said.
    guest_closed: u32,
    /// The socket may have something to read; known false only after it said so.
    readable: bool,
    /// Both directions of the socket are shut down.
    hung_up: bool,
}

impl Connection {
    /// A connection that a program on the host has opened.
    pub(super) fn accepted(stream: UnixStream, host_port: u32) -> Self {
        Self::new(stream, Ports { host: host_port, guest: 0 }, Phase::Handshake)
    }

    /// A connection that the guest has asked for with the header `request`.
    pub(super) fn requested_by_guest(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, request.guest_ports(), Phase::Open);
        connection.opening = Some(Op::Response);
        connection.readable = true;
        connection
    }

    fn new(stream: UnixStream, ports: Ports, phase: Phase) -> Self {
        Self {
            ports,
            phase,
            queued: false,
            watched_for_writing: false,
            stream,
            credit: Credit::default(),
            outbox: VecDeque::new(),
            opening: None,
            wants_credit_update: false,
            wants_credit_request: false,
            host_closed: 0,
            host_closed_told: 0,
            guest_closed: 0,
            readable: false,
            hung_up: false,
        }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether [`Self::on_socket`] needs to hear when the socket is writable.
    pub(super) fn is_blocked(&self) -> bool {
        !self.outbox.is_empty()
    }

    // --- from the socket ---

    /// Takes in (edge-triggered) events of the socket.
    pub(super) fn on_socket(&mut self, events: EventSet) -> After {
        self.readable |= events.intersects(!EventSet::OUT);
        self.hung_up |= events.intersects(EventSet::HANG_UP | EventSet::ERROR);
        if events.contains(EventSet::OUT) && self.flush() == After::Close {
            return After::Close;
        }
        match self.phase {
            Phase::Handshake => self.read_connect_line(),
            // The guest has not heard of the connection yet, if `opening` is still there.
            Phase::Requested if self.hung_up && self.opening.is_some() => After::Close,
            Phase::Requested if self.hung_up => After::Reset,
            Phase::Draining if self.hung_up => After::Close,
            Phase::Open if self.hung_up && !self.reads_socket() => {
                self.host_closed = SHUTDOWN_BOTH;
                After::Keep
            }
            _ => After::Keep,
        }
    }

    fn read_connect_line(&mut self) -> After {
        let mut start = [0; MAX_LINE_BYTES];
        let read = match socket::peek(&self.stream, &mut start) {
            Ok(0) => return After::Close,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return After::Keep,
            Err(_) => return After::Close,
        };
        match connect_line::parse(&start[..read]) {
            ConnectLine::Incomplete if self.hung_up => After::Close,
            ConnectLine::Incomplete => After::Keep,
            ConnectLine::Invalid => After::Close,
            ConnectLine::Complete { port, bytes } => {
                if socket::take(&self.stream, &mut start[..bytes]).ok() != Some(bytes) {
                    return After::Close;
                }
                self.ports.guest = port;
                self.phase = Phase::Requested;
                self.opening = Some(Op::Request);
                After::Keep
            }
        }
    }

    // --- from the guest ---

    /// Takes in a packet that the guest sent on this connection; `data` is what its header
    /// says.
    pub(super) fn on_packet(&mut self, header: &Header, data: &mut IoVecs) -> After {
        let Some(op) = Op::from_u16(header.op) else { return After::Reset };
        if op == Op::Reset {
            return self.drain();
        }
        if self.credit.update(header.buffer_bytes, header.forwarded).is_err() {
            return After::Reset;
        }
        if self.credit.available() > 0 {
            self.wants_credit_request = false;
        }
        match (self.phase, op) {
            (Phase::Requested, Op::Response) => self.on_response(),
            (Phase::Open, Op::Data) => self.on_data(data),
            (Phase::Open, Op::Shutdown) => self.on_shutdown(header.flags & SHUTDOWN_BOTH),
            (Phase::Open, Op::CreditUpdate) => After::Keep,
            (Phase::Open, Op::CreditRequest) => {
                self.wants_credit_update = true;
                After::Keep
            }
            _ => After::Reset,
        }
    }

    /// Takes in the credit of the request that opened this connection from the guest.
    pub(super) fn on_request(&mut self, request: &Header) -> After {
        match self.credit.update(request.buffer_bytes, request.forwarded) {
            Ok(()) => After::Keep,
            Err(_) => After::Reset,
        }
    }

    fn on_response(&mut self) -> After {
        if self.opening.is_some() {
            // An answer to a request that was not sent.
            return After::Reset;
        }
        let answer = format!("OK {}\n", self.ports.host);
        match socket::send_bytes(&self.stream, answer.as_bytes()) {
            Ok(sent) if sent == answer.len() => {
                self.phase = Phase::Open;
                self.readable = true;
                After::Keep
            }
            _ => After::Reset,
        }
    }

    fn on_data(&mut self, data: &mut IoVecs) -> After {
        if self.guest_closed & SHUTDOWN_SEND != 0
            || self.credit.receive(data.bytes() as u32).is_err()
        {
            return After::Reset;
        }
        while self.outbox.is_empty() && data.bytes() > 0 && self.socket_takes_data() {
            match socket::send(&self.stream, data) {
                Ok(sent) => self.credit.forward(sent as u32),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.stop_sending(),
            }
        }
        if self.socket_takes_data() {
            self.keep_in_outbox(data);
        } else {
            self.credit.forward(data.bytes() as u32);
        }
        After::Keep
    }

    fn keep_in_outbox(&mut self, data: &mut IoVecs) {
        let mut chunk = [0; 4096];
        while let read @ 1.. = data.read(&mut chunk) {
            self.outbox.extend(&chunk[..read]);
        }
        debug_assert!(self.outbox.len() <= BUFFER_BYTES as usize);
    }

    fn on_shutdown(&mut self, flags: u32) -> After {
        self.guest_closed |= flags;
        if self.guest_closed == SHUTDOWN_BOTH {
            return match self.drain() {
                After::Close => After::Reset,
                _ => After::ResetAndDrain,
            };
        }
        // Errors say that the other side is gone, which an event of the socket says too.
        if self.guest_closed & SHUTDOWN_RECEIVE != 0 {
            let _ = self.stream.shutdown(Shutdown::Read);
        } else if self.outbox.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        After::Keep
    }

    /// The guest is done with the connection; what it has sent is still delivered.
    fn drain(&mut self) -> After {
        self.phase = Phase::Draining;
        if self.outbox.is_empty() { After::Close } else { After::Keep }
    }

    // --- to the socket ---

    /// Sends from the outbox what the socket takes.
    fn flush(&mut self) -> After {
        while let (front @ [_, ..], _) = self.outbox.as_slices() {
            match socket::send_bytes(&self.stream, front) {
                Ok(sent) => {
                    self.outbox.drain(..sent);
                    self.credit.forward(sent as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return After::Keep,
                Err(_) => self.stop_sending(),
            }
        }
        self.outbox = VecDeque::new();
        if self.phase == Phase::Draining {
            return After::Close;
        }
        if self.guest_closed & SHUTDOWN_SEND != 0 {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        After::Keep
    }

    fn socket_takes_data(&self) -> bool {
        self.host_closed & SHUTDOWN_RECEIVE == 0
    }

    /// The socket takes no more data: its other end is closed.
    fn stop_sending(&mut self) {
        self.host_closed |= SHUTDOWN_RECEIVE;
        self.credit.forward(self.outbox.len() as u32);
        self.outbox = VecDeque::new();
    }

    // --- to the guest ---

    /// Whether [`Self::next_packet`] may have a packet.
    pub(super) fn has_output(&self) -> bool {
        match self.phase {
            Phase::Handshake | Phase::Draining => false,
            Phase::Requested => self.opening.is_some(),
            Phase::Open => {
                self.opening.is_some()
                    || self.can_read()
                    || self.host_closed != self.host_closed_told
                    || self.wants_credit_update
                    || self.credit.wants_update()
                    || self.wants_credit_request
            }
        }
    }

    /// Whether the guest still wants what the socket has.
    fn reads_socket(&self) -> bool {
        self.guest_closed & SHUTDOWN_RECEIVE == 0 && self.host_closed & SHUTDOWN_SEND == 0
    }

    fn can_read(&self) -> bool {
        self.readable && self.reads_socket() && self.credit.available() > 0
    }

    /// The next packet; its data is in `buffer` already, after room for the header.
    pub(super) fn next_packet(&mut self, cid: u32, buffer: &mut IoVecs) -> Next {
        if matches!(self.phase, Phase::Handshake | Phase::Draining) {
            return Next::Nothing;
        }
        if let Some(op) = self.opening.take() {
            return Next::Packet(self.header(cid, op));
        }
        if self.phase != Phase::Open {
            return Next::Nothing;
        }
        if self.can_read()
            && let Some(data_bytes) = self.read_socket(buffer)
        {
            self.credit.send(data_bytes);
            self.wants_credit_request = self.readable && self.credit.available() == 0;
            let header = self.header(cid, Op::Data);
            return Next::Packet(Header { data_bytes, ..header });
        }
        if self.host_closed != self.host_closed_told {
            self.host_closed_told = self.host_closed;
            let header = self.header(cid, Op::Shutdown);
            let header = Header { flags: self.host_closed, ..header };
            return if self.host_closed == SHUTDOWN_BOTH {
                Next::Last(header)
            } else {
                Next::Packet(header)
            };
        }
        if self.wants_credit_update || self.credit.wants_update() {
            return Next::Packet(self.header(cid, Op::CreditUpdate));
        }
        if self.wants_credit_request {
            self.wants_credit_request = false;
            return Next::Packet(self.header(cid, Op::CreditRequest));
        }
        Next::Nothing
    }

    /// Reads data for one packet. `None` if there is none now; at the end of the stream
    /// the guest is to be told so.
    fn read_socket(&mut self, buffer: &mut IoVecs) -> Option<u32> {
        let room = buffer.bytes().saturating_sub(HEADER_BYTES);
        let max_bytes = room.min(self.credit.available() as usize).min(MAX_DATA_BYTES);
        if max_bytes == 0 {
            return None;
        }
        match socket::receive(&self.stream, buffer, HEADER_BYTES, max_bytes) {
            Ok(0) => self.end_of_stream(),
            Ok(read) => return Some(read as u32),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                // The other end closed with unread data.
                self.hung_up = true;
                self.end_of_stream();
            }
        }
        None
    }

    fn end_of_stream(&mut self) {
        self.readable = false;
        self.host_closed |= if self.hung_up { SHUTDOWN_BOTH } else { SHUTDOWN_SEND };
    }

    /// A packet without data; it carries the credit, as every packet does.
    fn header(&mut self, cid: u32, op: Op) -> Header {
        self.wants_credit_update = false;
        Header {
            buffer_bytes: BUFFER_BYTES,
            forwarded: self.credit.tell(),
            ..Header::to_guest(cid, self.ports, op)
        }
    }
}
