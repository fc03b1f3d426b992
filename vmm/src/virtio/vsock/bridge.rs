//! All connections of a guest, and what makes and ends them.
//!
//! Everything here is bounded: connections, their outboxes, replies that wait for the
//! guest's buffers. A program on the host that connects before there is room waits in the
//! listener's backlog.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::{
        fd::AsRawFd,
        unix::net::{UnixListener, UnixStream},
    },
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use event_manager::{EventOps, EventSet, Events};
use vmm_sys_util::timerfd::TimerFd;

use super::{
    connection::{After, Connection, Next, Phase},
    packet::{Header, Op, Ports},
};
use crate::virtio::iovecs::IoVecs;

/// Most connections at a time, those that are being made included.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Most RST packets that wait for the guest's buffers. More are dropped: a guest that
/// still believes in such a connection is told again when it next sends on it.
pub(super) const MAX_RESETS: usize = 1024;
/// Connections accepted in one wake-up.
const MAX_ACCEPTS: usize = 16;
/// How long a program on the host may take to say which port it wants.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// When to try again after the host had no file descriptor or memory for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// Ports of the host that are given to connections from the host.
const FIRST_HOST_PORT: u32 = 1 << 30;
const LAST_HOST_PORT: u32 = (1 << 31) - 1;

/// What the device keeps when the guest resets it: the ways to the host.
pub(super) struct HostEnds {
    pub listener: UnixListener,
    /// Ports that the guest may still connect to. Only the one live worker takes the lock.
    pub ports: Mutex<BTreeMap<u32, UnixStream>>,
}

pub(super) struct Bridge {
    cid: u32,
    host: Arc<HostEnds>,
    /// By the host's port. A tree, as a hash map would draw a random seed, and a vCPU's
    /// thread, which makes the bridge, may not.
    connections: BTreeMap<u32, Connection>,
    /// Host ports of the connections that have packets for the guest, in turn.
    ready: VecDeque<u32>,
    resets: VecDeque<Ports>,
    /// Connections in [`Phase::Handshake`] and when they have to be over, oldest first.
    handshakes: VecDeque<(Instant, u32)>,
    next_host_port: u32,
    timer: TimerFd,
    timer_armed: bool,
    listening: bool,
}

impl Bridge {
    pub(super) fn new(cid: u32, host: Arc<HostEnds>) -> io::Result<Self> {
        Ok(Self {
            cid,
            host,
            connections: BTreeMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            handshakes: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
            timer: TimerFd::new()?,
            timer_armed: false,
            listening: true,
        })
    }

    pub(super) fn register(&self, ops: &mut EventOps) {
        // Edge-triggered, so that the timer need not be read.
        ops.add(Events::new(&self.timer, EventSet::IN | EventSet::EDGE_TRIGGERED))
            .expect("the timer is new");
        ops.add(Events::new(&self.host.listener, EventSet::IN))
            .expect("the listener is registered by the only worker");
    }

    /// Takes in an event of one of the bridge's own file descriptors.
    pub(super) fn on_event(&mut self, events: Events, ops: &mut EventOps) {
        let fd = events.fd();
        if fd == self.host.listener.as_raw_fd() {
            self.accept(ops);
        } else if fd == self.timer.as_raw_fd() {
            self.on_timer(ops);
        } else if let Some(connection) = self.connections.get_mut(&events.data()) {
            let after = connection.on_socket(events.event_set());
            self.settle(events.data(), after, ops);
        }
    }

    // --- connections from the host ---

    fn accept(&mut self, ops: &mut EventOps) {
        for _ in 0..MAX_ACCEPTS {
            if self.connections.len() >= MAX_CONNECTIONS {
                return self.listen(false, ops);
            }
            match self.host.listener.accept() {
                Ok((stream, _)) => self.add_accepted(stream, ops),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => (),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(_) => {
                    self.listen(false, ops);
                    return self.arm_timer(ACCEPT_PAUSE);
                }
            }
        }
    }

    fn add_accepted(&mut self, stream: UnixStream, ops: &mut EventOps) {
        let port = self.free_host_port();
        while let Some((_, oldest)) = self.handshakes.front()
            && !self.is_handshake(*oldest)
        {
            self.handshakes.pop_front();
        }
        self.handshakes.push_back((Instant::now() + CONNECT_TIMEOUT, port));
        self.arm_timer(CONNECT_TIMEOUT);
        if self.insert(Connection::accepted(stream, port), ops) {
            // The line is often there already.
            let after = self.connections.get_mut(&port).map(|c| c.on_socket(EventSet::IN));
            self.settle(port, after.unwrap_or(After::Close), ops);
        }
    }

    /// There are far more ports than connections.
    fn free_host_port(&mut self) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = if port == LAST_HOST_PORT { FIRST_HOST_PORT } else { port + 1 };
            if !self.connections.contains_key(&port) && !self.lock_ports().contains_key(&port) {
                return port;
            }
        }
    }

    fn lock_ports(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, UnixStream>> {
        self.host.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops or resumes accepting; a listener that is watched but not served would wake
    /// the thread for ever.
    fn listen(&mut self, listening: bool, ops: &mut EventOps) {
        if self.listening != listening {
            let events = if listening { EventSet::IN } else { EventSet::empty() };
            ops.modify(Events::new(&self.host.listener, events))
                .expect("the listener is registered");
            self.listening = listening;
        }
    }

    fn arm_timer(&mut self, after: Duration) {
        if !self.timer_armed {
            // With a timer that was made and a duration above zero it cannot fail.
            self.timer_armed = self.timer.reset(after, None).is_ok();
        }
    }

    fn on_timer(&mut self, ops: &mut EventOps) {
        self.timer_armed = false;
        self.listen(true, ops);
        self.expire_handshakes(Instant::now(), ops);
    }

    fn expire_handshakes(&mut self, now: Instant, ops: &mut EventOps) {
        while let Some((deadline, port)) = self.handshakes.front().copied() {
            if deadline > now {
                return self.arm_timer(deadline - now);
            }
            self.handshakes.pop_front();
            if self.is_handshake(port) {
                self.settle(port, After::Close, ops);
            }
        }
    }

    fn is_handshake(&self, port: u32) -> bool {
        self.connections.get(&port).is_some_and(|it| it.phase == Phase::Handshake)
    }

    // --- packets from the guest ---

    /// Takes in a packet. Returns whether it has a whole header.
    pub(super) fn on_packet(&mut self, packet: &mut IoVecs, ops: &mut EventOps) -> bool {
        let Some(header) = Header::read(packet) else { return false };
        let ports = header.guest_ports();
        let is_valid = header.is_from_guest(self.cid, packet.bytes());
        let known = self.connections.get_mut(&ports.host).filter(|connection| {
            connection.ports == ports && matches!(connection.phase, Phase::Requested | Phase::Open)
        });
        match known {
            Some(connection) => {
                packet.truncate(header.data_bytes as usize);
                let after =
                    if is_valid { connection.on_packet(&header, packet) } else { After::Reset };
                self.settle(ports.host, after, ops);
            }
            None if header.op == Op::Reset as u16 => (),
            None if header.op == Op::Request as u16 && is_valid => self.open(&header, ops),
            None => self.push_reset(ports),
        }
        true
    }

    /// The guest asks for a connection to the host.
    fn open(&mut self, request: &Header, ops: &mut EventOps) {
        let ports = request.guest_ports();
        let is_free =
            self.connections.len() < MAX_CONNECTIONS && !self.connections.contains_key(&ports.host);
        let stream = if is_free { self.lock_ports().remove(&ports.host) } else { None };
        let Some(stream) = stream else { return self.push_reset(ports) };
        let mut connection = Connection::requested_by_guest(stream, request);
        let after = connection.on_request(request);
        if self.insert(connection, ops) {
            self.settle(ports.host, after, ops);
        } else {
            self.push_reset(ports);
        }
    }

    // --- the table ---

    /// Watches the connection's socket and puts it into the table. Returns whether that
    /// worked; if not, the host's end sees the connection closed.
    fn insert(&mut self, connection: Connection, ops: &mut EventOps) -> bool {
        let events = socket_events(&connection);
        if ops.add(events).is_err() {
            // The host is out of memory for epoll entries.
            return false;
        }
        self.connections.insert(connection.ports.host, connection);
        true
    }

    /// Brings the table in line with what has become of a connection.
    fn settle(&mut self, host_port: u32, after: After, ops: &mut EventOps) {
        let Some(connection) = self.connections.get_mut(&host_port) else { return };
        let ports = connection.ports;
        if matches!(after, After::Reset | After::ResetAndDrain) {
            self.push_reset(ports);
        }
        if matches!(after, After::Reset | After::Close) {
            return self.remove(host_port, ops);
        }
        let Some(connection) = self.connections.get_mut(&host_port) else { return };
        if connection.is_blocked() != connection.watched_for_writing {
            connection.watched_for_writing = connection.is_blocked();
            ops.modify(socket_events(connection)).expect("the socket is registered");
        }
        if connection.has_output() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(host_port);
        }
    }

    fn remove(&mut self, host_port: u32, ops: &mut EventOps) {
        let Some(connection) = self.connections.remove(&host_port) else { return };
        ops.remove(Events::empty_raw(connection.fd())).expect("the socket is registered");
        if connection.queued {
            self.ready.retain(|port| *port != host_port);
        }
        self.listen(true, ops);
    }

    fn push_reset(&mut self, ports: Ports) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(ports);
        }
    }

    // --- packets to the guest ---

    pub(super) fn has_output(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Fills `buffer` with the next packet, and returns its size; `None` if it turns out
    /// that there is none.
    pub(super) fn next_packet(&mut self, buffer: &mut IoVecs, ops: &mut EventOps) -> Option<u32> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(write_packet(&Header::to_guest(self.cid, ports, Op::Reset), buffer));
        }
        while let Some(host_port) = self.ready.pop_front() {
            let Some(connection) = self.connections.get_mut(&host_port) else { continue };
            connection.queued = false;
            match connection.next_packet(self.cid, buffer) {
                Next::Packet(header) => {
                    self.settle(host_port, After::Keep, ops);
                    return Some(write_packet(&header, buffer));
                }
                Next::Last(header) => {
                    self.remove(host_port, ops);
                    return Some(write_packet(&header, buffer));
                }
                Next::Nothing => (),
            }
        }
        None
    }
}

/// The events of a connection's socket: reading is edge-triggered, so that a guest without
/// buffers costs nothing, and writing is watched only while the outbox waits.
fn socket_events(connection: &Connection) -> Events {
    let mut events = EventSet::IN | EventSet::EDGE_TRIGGERED;
    events.set(EventSet::OUT, connection.is_blocked());
    Events::with_data_raw(connection.fd(), connection.ports.host, events)
}

/// Writes the header before the data, if any, and returns the size of both.
fn write_packet(header: &Header, buffer: &mut IoVecs) -> u32 {
    buffer.write(&header.to_bytes()) as u32 + header.data_bytes
}
