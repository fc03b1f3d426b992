use std::{
    io::{ErrorKind, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    time::Duration,
};

use proptest::prelude::*;

use super::{
    bridge::{CONNECT_TIMEOUT, MAX_CONNECTIONS, MAX_RESETS},
    credit::BUFFER_BYTES,
    packet::{
        HOST_CID, Header, MAX_DATA_BYTES, Op, Ports, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
    },
    *,
};
use crate::{
    spec::HostPortSpec,
    virtio::testing::{
        Buffer::{Readable, Writable},
        DATA, Driver,
    },
};

const CID: u32 = 42;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Where receive buffers lie, one for each descriptor.
const RX_AREA: u64 = DATA + 0x10_0000;
const RX_BYTES: u32 = 4096;
const TX_AREA: u64 = DATA;

const CONTROL_PORT: u32 = 1024;
const GUEST_BUFFER: u32 = 256 << 10;

/// A guest with a vsock device, and the host around it.
struct Guest {
    driver: Driver,
    device: Vsock,
    socket_path: PathBuf,
    /// The host's end of [`CONTROL_PORT`].
    control: UnixStream,
    _directory: tempfile::TempDir,
}

type Packet = (Header, Vec<u8>);

impl Guest {
    /// All receive buffers are there.
    fn new() -> Self {
        let mut guest = Self::without_buffers();
        guest.give_buffers(64);
        guest
    }

    fn without_buffers() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket_path = directory.path().join("vsock");
        let listener = UnixListener::bind(&socket_path).unwrap();
        let (control, socket) = UnixStream::pair().unwrap();
        control.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut device = Vsock::new(VsockSpec {
            cid: CID,
            listener,
            host_ports: vec![HostPortSpec { port: CONTROL_PORT, socket }],
        })
        .unwrap();
        let driver = Driver::new(&mut device);
        Self { driver, device, socket_path, control, _directory: directory }
    }

    fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let head = self.driver.queues[RECEIVE].next_free();
            let address = RX_AREA + u64::from(head) * u64::from(RX_BYTES);
            self.driver.queues[RECEIVE].add(&[Writable(address, RX_BYTES)]);
        }
        self.driver.kick(RECEIVE);
    }

    /// Sends a packet as it is.
    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        self.driver.write(TX_AREA, &header.to_bytes());
        let mut buffers = vec![Readable(TX_AREA, HEADER_BYTES as u32)];
        if !data.is_empty() {
            self.driver.write(TX_AREA + 0x1000, data);
            buffers.push(Readable(TX_AREA + 0x1000, data.len() as u32));
        }
        self.driver.submit(TRANSMIT, &buffers);
    }

    fn header(ports: Ports, op: Op) -> Header {
        Header {
            source_cid: CID.into(),
            target_cid: HOST_CID,
            source_port: ports.guest,
            target_port: ports.host,
            buffer_bytes: GUEST_BUFFER,
            ..Header::to_guest(0, ports, op)
        }
    }

    fn send(&mut self, ports: Ports, op: Op) {
        self.send_raw(&Self::header(ports, op), &[]);
    }

    fn send_data(&mut self, ports: Ports, data: &[u8]) {
        let header = Header { data_bytes: data.len() as u32, ..Self::header(ports, Op::Data) };
        self.send_raw(&header, data);
    }

    fn send_shutdown(&mut self, ports: Ports, flags: u32) {
        self.send_raw(&Header { flags, ..Self::header(ports, Op::Shutdown) }, &[]);
    }

    fn send_credit(&mut self, ports: Ports, buffer_bytes: u32, forwarded: u32) {
        let header = Self::header(ports, Op::CreditUpdate);
        self.send_raw(&Header { buffer_bytes, forwarded, ..header }, &[]);
    }

    /// What the device has sent so far. The buffers are given back.
    fn received(&mut self) -> Vec<Packet> {
        self.driver.run();
        let packets = self.take_received();
        self.give_buffers(packets.len());
        packets
    }

    fn take_received(&mut self) -> Vec<Packet> {
        let used = self.driver.queues[RECEIVE].take_used();
        used.iter()
            .map(|used| {
                let address = RX_AREA + u64::from(used.head) * u64::from(RX_BYTES);
                let bytes = self.driver.read(address, used.written as usize);
                let (header, data) = bytes.split_first_chunk().expect("a whole header");
                let header = Header::from_bytes(header);
                assert_eq!(header.data_bytes as usize, data.len());
                (header, data.to_vec())
            })
            .collect()
    }

    /// The operations that the device has sent so far on `ports`.
    fn received_ops(&mut self, ports: Ports) -> Vec<Op> {
        let packets = self.received();
        packets
            .iter()
            .filter(|(header, _)| {
                (header.source_port, header.target_port) == (ports.host, ports.guest)
            })
            .map(|(header, _)| Op::from_u16(header.op).unwrap())
            .collect()
    }

    fn received_data(&mut self) -> Vec<u8> {
        self.received().into_iter().flat_map(|(_, data)| data).collect()
    }

    fn dial(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket_path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    /// A program on the host asks for a port; returns its stream and the ports in the
    /// REQUEST that the guest gets.
    fn dial_port(&mut self, port: u32) -> (UnixStream, Ports) {
        let mut stream = self.dial();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let packets = self.received();
        let [(header, _)] = packets.as_slice() else { panic!("one packet: {packets:?}") };
        assert_eq!(header.op, Op::Request as u16);
        assert_eq!((header.source_cid, header.target_cid), (HOST_CID, CID.into()));
        assert_eq!((header.target_port, header.buffer_bytes), (port, BUFFER_BYTES));
        (stream, Ports { host: header.source_port, guest: port })
    }

    /// The same, accepted by the guest.
    fn connected(&mut self, port: u32) -> (UnixStream, Ports) {
        let (mut stream, ports) = self.dial_port(port);
        self.send(ports, Op::Response);
        let expected = format!("OK {}\n", ports.host);
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, expected.as_bytes());
        (stream, ports)
    }

    /// The guest connects to the control port.
    fn connect_control(&mut self) -> Ports {
        let ports = Ports { host: CONTROL_PORT, guest: 5000 };
        self.send(ports, Op::Request);
        assert_eq!(self.received_ops(ports), [Op::Response]);
        ports
    }
}

fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What can be read at once.
fn drain(stream: &mut UnixStream) -> usize {
    stream.set_nonblocking(true).unwrap();
    let mut total = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => total += read,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                break;
            }
        }
    }
    stream.set_nonblocking(false).unwrap();
    total
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn the_config_space_holds_the_cid() {
    let guest = Guest::new();
    let mut config = [0xff; 12];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_host_connects_and_both_talk() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    stream.write_all(b"from the host").unwrap();
    assert_eq!(guest.received_data(), b"from the host");
    guest.send_data(ports, b"from the guest");
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"from the guest");
}

#[test]
fn bytes_right_behind_the_connect_line_belong_to_the_stream() {
    let mut guest = Guest::new();
    let mut stream = guest.dial();
    stream.write_all(b"CONNECT 7\nCONNECT 8\n").unwrap();
    let request = guest.received()[0].0;
    let ports = Ports { host: request.source_port, guest: 7 };
    guest.send(ports, Op::Response);
    assert_eq!(guest.received_data(), b"CONNECT 8\n");
}

#[test]
fn a_connect_line_may_come_in_pieces() {
    let mut guest = Guest::new();
    let mut stream = guest.dial();
    for piece in [&b"CONN"[..], b"ECT 1", b"2"] {
        stream.write_all(piece).unwrap();
        assert!(guest.received().is_empty());
    }
    stream.write_all(b"\n").unwrap();
    assert_eq!(guest.received()[0].0.target_port, 12);
}

#[test]
fn a_wrong_connect_line_is_closed_without_a_word_to_the_guest() {
    let mut guest = Guest::new();
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 1234567890123456789012345"] {
        let mut stream = guest.dial();
        stream.write_all(line.as_bytes()).unwrap();
        assert!(guest.received().is_empty());
        assert!(!matches!(stream.read(&mut [0]), Ok(1)));
    }
}

#[test]
fn a_silent_program_is_closed_after_the_timeout() {
    let mut guest = Guest::new();
    let mut stream = guest.dial();
    stream.write_all(b"CONNECT 1").unwrap();
    guest.driver.run();
    assert_eq!(guest.driver.run_for(CONNECT_TIMEOUT.as_millis() as i32 + 1000), 1);
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    // Closed with its bytes unread.
    assert!(!matches!(stream.read(&mut [0]), Ok(1)));
}

#[test]
fn a_program_that_connects_before_the_driver_is_up_is_served_then() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut device = Vsock::new(VsockSpec { cid: CID, listener, host_ports: vec![] }).unwrap();
    let mut stream = UnixStream::connect(&path).unwrap();
    stream.write_all(b"CONNECT 3\n").unwrap();

    let mut driver = Driver::new(&mut device);
    driver.queues[RECEIVE].add(&[Writable(RX_AREA, RX_BYTES)]);
    driver.kick(RECEIVE);
    assert_eq!(driver.queues[RECEIVE].take_used().len(), 1);
}

#[test]
fn a_port_that_the_guest_refuses_is_closed() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.dial_port(1);
    guest.send(ports, Op::Reset);
    assert!(is_closed(&mut stream));
    assert!(guest.received().is_empty(), "a reset is not answered");
}

#[test]
fn a_program_that_gives_up_waiting_resets_the_guest() {
    let mut guest = Guest::new();
    let (stream, ports) = guest.dial_port(1);
    drop(stream);
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
}

#[test]
fn the_guest_reaches_a_host_port_once() {
    let mut guest = Guest::new();
    let ports = guest.connect_control();
    guest.control.write_all(b"ping").unwrap();
    assert_eq!(guest.received_data(), b"ping");
    guest.send_data(ports, b"pong");
    let mut answer = [0; 4];
    guest.control.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");

    let second = Ports { host: CONTROL_PORT, guest: 5001 };
    guest.send(second, Op::Request);
    assert_eq!(guest.received_ops(second), [Op::Reset]);
    guest.send_data(ports, b"pong");
    guest.control.read_exact(&mut answer).unwrap();
}

#[test]
fn what_the_host_wrote_before_the_guest_connected_arrives() {
    let mut guest = Guest::new();
    guest.control.write_all(b"early").unwrap();
    let ports = Ports { host: CONTROL_PORT, guest: 5000 };
    guest.send(ports, Op::Request);
    let packets = guest.received();
    assert_eq!(packets[0].0.op, Op::Response as u16);
    assert_eq!(packets[1].1, b"early");
}

#[test]
fn other_host_ports_are_reset() {
    let mut guest = Guest::new();
    for port in [0, 1, 1023, 1025, u32::MAX] {
        let ports = Ports { host: port, guest: 5000 };
        guest.send(ports, Op::Request);
        assert_eq!(guest.received_ops(ports), [Op::Reset]);
    }
}

#[test]
fn packets_of_unknown_connections_are_reset() {
    let mut guest = Guest::new();
    let ports = Ports { host: 1 << 30, guest: 77 };
    for op in [Op::Response, Op::Shutdown, Op::Data, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(ports, op);
        assert_eq!(guest.received_ops(ports), [Op::Reset], "{op:?}");
    }
    guest.send(ports, Op::Reset);
    assert!(guest.received().is_empty());
}

#[test]
fn the_end_of_the_hosts_stream_is_a_half_close() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = guest.received();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (Op::Shutdown as u16, SHUTDOWN_SEND));
    // The other direction still works.
    guest.send_data(ports, b"answer");
    guest.send_shutdown(ports, SHUTDOWN_SEND);
    assert_eq!(read_all(&mut stream), b"answer");
}

#[test]
fn a_program_that_closes_ends_the_connection_after_its_data() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    stream.write_all(b"last words").unwrap();
    drop(stream);
    let packets = guest.received();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (Op::Shutdown as u16, SHUTDOWN_BOTH));
    guest.send(ports, Op::Reset);
    assert!(guest.received().is_empty());
}

#[test]
fn a_program_that_closes_after_its_half_close_ends_the_connection() {
    let mut guest = Guest::new();
    let (stream, ports) = guest.connected(9000);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(guest.received_ops(ports), [Op::Shutdown]);
    drop(stream);
    let packets = guest.received();
    assert_eq!((packets[0].0.op, packets[0].0.flags), (Op::Shutdown as u16, SHUTDOWN_BOTH));
    guest.send_data(ports, b"too late");
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
}

#[test]
fn the_guests_half_close_is_the_end_of_the_stream() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    guest.send_data(ports, b"output");
    guest.send_shutdown(ports, SHUTDOWN_SEND);
    assert_eq!(read_all(&mut stream), b"output");
    stream.write_all(b"more input").unwrap();
    assert_eq!(guest.received_data(), b"more input");
}

#[test]
fn a_guest_that_receives_no_more_breaks_the_hosts_pipe() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    guest.send_shutdown(ports, SHUTDOWN_RECEIVE);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send_data(ports, b"output");
    let mut output = [0; 6];
    stream.read_exact(&mut output).unwrap();
    assert!(guest.received().is_empty());
}

#[test]
fn the_guests_close_is_answered_with_a_reset() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    guest.send_data(ports, b"output");
    guest.send_shutdown(ports, SHUTDOWN_BOTH);
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
    assert_eq!(read_all(&mut stream), b"output");
}

#[test]
fn a_program_that_reads_no_more_is_told_to_the_guest() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    stream.shutdown(std::net::Shutdown::Read).unwrap();
    guest.send_data(ports, b"x");
    let packets = guest.received();
    assert_eq!((packets[0].0.op, packets[0].0.flags), (Op::Shutdown as u16, SHUTDOWN_RECEIVE));
    stream.write_all(b"still here").unwrap();
    assert_eq!(guest.received_data(), b"still here");
}

/// Sends as much as the credit allows without anyone reading; returns how much.
fn fill(guest: &mut Guest, ports: Ports) -> usize {
    let mut sent = 0;
    let mut forwarded = 0;
    loop {
        let credit = BUFFER_BYTES as usize - (sent - forwarded);
        let chunk = credit.min(MAX_DATA_BYTES);
        if chunk == 0 {
            return sent;
        }
        guest.send_data(ports, &vec![sent as u8; chunk]);
        sent += chunk;
        guest.send(ports, Op::CreditRequest);
        for (header, _) in guest.received() {
            forwarded = header.forwarded as usize;
        }
    }
}

#[test]
fn a_reader_that_stops_stops_the_guest_and_nothing_is_lost() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    let sent = fill(&mut guest, ports);
    assert!(sent > BUFFER_BYTES as usize);
    // The reader comes back: there is credit again, unasked.
    let mut read = 0;
    while read < sent {
        let now = drain(&mut stream);
        assert!(now > 0, "{read} of {sent}");
        read += now;
        guest.driver.run();
    }
    let packets = guest.received();
    let last = packets.last().expect("a credit update").0;
    assert_eq!(last.op, Op::CreditUpdate as u16);
    assert!(sent as u32 - last.forwarded < BUFFER_BYTES / 2);
    assert_eq!(read, sent);
}

#[test]
fn what_the_guest_sent_before_it_closed_is_delivered_to_a_slow_reader() {
    for op in [Op::Shutdown, Op::Reset] {
        let mut guest = Guest::new();
        let (mut stream, ports) = guest.connected(9000);
        let sent = fill(&mut guest, ports);
        let header = Header { flags: SHUTDOWN_BOTH, ..Guest::header(ports, op) };
        guest.send_raw(&header, &[]);
        let mut read = 0;
        while read < sent {
            let now = drain(&mut stream);
            assert!(now > 0, "{op:?}: {read} of {sent}");
            read += now;
            guest.driver.run();
        }
        assert!(is_closed(&mut stream));
    }
}

#[test]
fn data_waits_for_the_guests_credit() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    guest.send_credit(ports, 10, 0);
    stream.write_all(b"0123456789abcdef").unwrap();
    let packets = guest.received();
    assert_eq!(packets[0].1, b"0123456789");
    assert_eq!(packets[1].0.op, Op::CreditRequest as u16);
    assert_eq!(packets.len(), 2);
    guest.send_credit(ports, 10, 4);
    assert_eq!(guest.received_data(), b"abcd");
    guest.send_credit(ports, 10, 14);
    assert_eq!(guest.received_data(), b"ef");
}

#[test]
fn data_waits_for_the_guests_buffers_and_connections_take_turns() {
    let mut guest = Guest::without_buffers();
    guest.give_buffers(2);
    let (mut first, first_ports) = guest.connected(1);
    let (mut second, second_ports) = guest.connected(2);
    first.write_all(&[1; 100_000]).unwrap();
    second.write_all(&[2; 200_000]).unwrap();
    let (mut bytes, mut order) = ([0, 0], Vec::new());
    loop {
        guest.driver.run();
        assert_eq!(guest.driver.run_for(0), 0, "waiting for buffers costs nothing");
        let packets = guest.take_received();
        if packets.is_empty() {
            break;
        }
        for (header, data) in &packets {
            bytes[header.target_port as usize - 1] += data.len();
            order.push(header.target_port);
        }
        for (ports, forwarded) in [(first_ports, bytes[0]), (second_ports, bytes[1])] {
            guest.send_credit(ports, GUEST_BUFFER, forwarded as u32);
        }
        guest.give_buffers(packets.len());
    }
    assert_eq!(bytes, [100_000, 200_000]);
    let turns = order.windows(2).filter(|pair| pair[0] != pair[1]).count();
    assert!(turns > 40, "{order:?}");
}

#[test]
fn a_reset_of_the_device_closes_all_connections() {
    let mut guest = Guest::new();
    let (mut stream, _) = guest.connected(9000);
    guest.connect_control();
    guest.driver.reset();
    assert!(is_closed(&mut stream));
    assert!(is_closed(&mut guest.control));
    // The listener lives on.
    let Guest { driver, device, .. } = &mut guest;
    driver.activate(device);
    guest.give_buffers(64);
    guest.connected(9000);
}

// Hostile case 23.

#[test]
fn taking_more_than_was_sent_resets_the_connection() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    guest.send_credit(ports, GUEST_BUFFER, 1);
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
    assert!(is_closed(&mut stream));
}

#[test]
fn data_beyond_credit_resets_the_connection() {
    let mut guest = Guest::new();
    let (_stream, ports) = guest.connected(9000);
    fill(&mut guest, ports);
    guest.send_data(ports, b"x");
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
}

#[test]
fn the_largest_credit_is_harmless() {
    let mut guest = Guest::new();
    let (mut stream, ports) = guest.connected(9000);
    guest.send_credit(ports, u32::MAX, 0);
    stream.write_all(b"x").unwrap();
    assert_eq!(guest.received_data(), b"x");
    guest.send_credit(ports, u32::MAX, 1);
    guest.send_credit(ports, 0, 1);
    stream.write_all(b"y").unwrap();
    assert!(guest.received_data().is_empty());
}

#[test]
fn data_after_the_guests_own_half_close_resets_the_connection() {
    let mut guest = Guest::new();
    let (_stream, ports) = guest.connected(9000);
    guest.send_shutdown(ports, SHUTDOWN_SEND);
    guest.send_data(ports, b"x");
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
}

// Hostile case 24.

#[test]
fn a_hundred_thousand_connects_leave_bounded_resets() {
    let mut guest = Guest::without_buffers();
    for port in 0..100_000 {
        guest.send(Ports { host: port % 1000, guest: port }, Op::Request);
    }
    let mut resets = 0;
    loop {
        guest.give_buffers(64);
        let packets = guest.take_received();
        assert!(packets.iter().all(|(header, _)| header.op == Op::Reset as u16));
        if packets.is_empty() {
            break;
        }
        resets += packets.len();
    }
    assert_eq!(resets, MAX_RESETS);
    // The device still works.
    guest.connect_control();
}

#[test]
fn more_programs_than_connections_wait_in_the_backlog() {
    let mut guest = Guest::new();
    let mut streams: Vec<_> = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        streams.push(guest.dial());
        guest.driver.run();
    }
    let mut waiting = guest.dial();
    waiting.write_all(b"CONNECT 5\n").unwrap();
    assert!(guest.received().is_empty());
    streams.pop();
    assert_eq!(guest.received()[0].0.target_port, 5);
}

#[test]
fn wrong_addresses_types_and_lengths_reset_the_connection() {
    for (name, change) in [
        ("spoofed source", (|header| header.source_cid = 43) as fn(&mut Header)),
        ("source with high bits", |header| header.source_cid |= 1 << 32),
        ("target not the host", |header| header.target_cid = 3),
        ("not a stream", |header| header.kind = 2),
        ("longer than its buffers", |header| header.data_bytes = 5),
        ("4 GiB long", |header| header.data_bytes = u32::MAX),
        ("unknown operation", |header| header.op = 8),
        ("operation 0", |header| header.op = 0),
        ("second request", |header| header.op = Op::Request as u16),
        ("second response", |header| header.op = Op::Response as u16),
    ] {
        let mut guest = Guest::new();
        let (mut stream, ports) = guest.connected(9000);
        let mut header = Header { data_bytes: 4, ..Guest::header(ports, Op::Data) };
        change(&mut header);
        guest.send_raw(&header, b"data");
        assert_eq!(guest.received_ops(ports), [Op::Reset], "{name}");
        assert!(is_closed(&mut stream), "{name}");
    }
}

#[test]
fn a_packet_longer_than_any_resets_the_connection() {
    let mut guest = Guest::new();
    let (_stream, ports) = guest.connected(9000);
    guest.send_data(ports, &vec![0; MAX_DATA_BYTES + 1]);
    assert_eq!(guest.received_ops(ports), [Op::Reset]);
}

#[test]
fn a_response_that_nobody_asked_for_is_reset() {
    // Before the guest has seen the request, as it has no buffers.
    let mut guest = Guest::without_buffers();
    let mut stream = guest.dial();
    stream.write_all(b"CONNECT 1\n").unwrap();
    guest.driver.run();
    guest.send(Ports { host: 1 << 30, guest: 1 }, Op::Response);
    assert!(is_closed(&mut stream));
}

// Hostile cases 1 to 12 as vsock meets them.

#[test]
fn a_packet_shorter_than_a_header_latches_the_queue() {
    let mut guest = Guest::new();
    guest.driver.submit(TRANSMIT, &[Readable(TX_AREA, HEADER_BYTES as u32 - 1)]);
    assert!(guest.driver.interrupt.is_reset_needed());
    guest.driver.reset();
    let Guest { driver, device, .. } = &mut guest;
    driver.activate(device);
    guest.give_buffers(64);
    guest.connect_control();
}

#[test]
fn receive_buffers_that_cannot_be_written_latch_the_queue() {
    for buffer in [Readable(RX_AREA, RX_BYTES), Writable(RX_AREA, HEADER_BYTES as u32 - 1)] {
        let mut guest = Guest::without_buffers();
        let before = guest.driver.snapshot();
        guest.driver.queues[RECEIVE].add(&[buffer]);
        guest.control.write_all(b"x").unwrap();
        guest
            .driver
            .write(TX_AREA, &Guest::header(Ports { host: 1, guest: 1 }, Op::Request).to_bytes());
        guest.driver.submit(TRANSMIT, &[Readable(TX_AREA, HEADER_BYTES as u32)]);
        assert!(guest.driver.interrupt.is_reset_needed());
        guest
            .driver
            .assert_unchanged_except(&before, std::slice::from_ref(&(TX_AREA..TX_AREA + 44)));
    }
}

#[test]
fn a_kick_storm_does_nothing() {
    let mut guest = Guest::new();
    for queue in [0, 1, 2].into_iter().cycle().take(300) {
        guest.driver.kick(queue);
    }
    assert_eq!(guest.driver.interrupt.status(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    Packet { known: u8, op: u16, flags: u32, data: u16, claimed: Option<u32>, credit: (u32, u32) },
    Dial(u8),
    HostWrites(u8, u16),
    HostReads(u8),
    HostCloses(u8),
    HostHalfCloses(u8),
    Buffers,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop_oneof![10 => 1_u16..=7, 4 => Just(Op::Data as u16), 1 => any::<u16>()];
    let flags = prop_oneof![8 => 0_u32..4, 1 => any::<u32>()];
    let claimed = prop_oneof![9 => Just(None), 1 => any::<u32>().prop_map(Some)];
    let credit = prop_oneof![
        9 => (Just(GUEST_BUFFER), Just(0)),
        1 => (any::<u32>(), any::<u32>()),
    ];
    let packet = (any::<u8>(), op, flags, 0_u16..2000, claimed, credit).prop_map(
        |(known, op, flags, data, claimed, credit)| Step::Packet {
            known,
            op,
            flags,
            data,
            claimed,
            credit,
        },
    );
    prop_oneof![
        8 => packet,
        3 => (0_u8..8).prop_map(Step::Dial),
        3 => (any::<u8>(), 0_u16..9000).prop_map(|(which, bytes)| Step::HostWrites(which, bytes)),
        2 => any::<u8>().prop_map(Step::HostReads),
        1 => any::<u8>().prop_map(Step::HostCloses),
        1 => any::<u8>().prop_map(Step::HostHalfCloses),
        2 => Just(Step::Buffers),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever guest and host do: no panic, no endless loop, nothing written outside the
    /// receive buffers, and the device works afterwards.
    #[test]
    fn random_traffic_is_survived(steps in prop::collection::vec(step(), 1..60)) {
        let mut guest = Guest::without_buffers();
        let before = guest.driver.snapshot();
        let mut streams: Vec<UnixStream> = Vec::new();
        let mut known = vec![Ports { host: CONTROL_PORT, guest: 5000 }];
        for step in steps {
            let count = streams.len().max(1);
            let pick = |which: u8| which as usize % count;
            match step {
                Step::Packet { known: which, op, flags, data, claimed, credit } => {
                    let ports = known[which as usize % known.len()];
                    let header = Header {
                        op,
                        flags,
                        data_bytes: claimed.unwrap_or(data.into()),
                        buffer_bytes: credit.0,
                        forwarded: credit.1,
                        ..Guest::header(ports, Op::Data)
                    };
                    guest.send_raw(&header, &vec![1; data.into()]);
                }
                Step::Dial(port) => {
                    let mut stream = guest.dial();
                    stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
                    streams.push(stream);
                }
                Step::HostWrites(which, bytes) => {
                    if let Some(stream) = streams.get_mut(pick(which)) {
                        stream.set_nonblocking(true).unwrap();
                        let _ = stream.write(&vec![2; bytes.into()]);
                    }
                }
                Step::HostReads(which) => {
                    if let Some(stream) = streams.get_mut(pick(which)) {
                        stream.set_nonblocking(true).unwrap();
                        while let Ok(1..) = stream.read(&mut [0; 4096]) {}
                    }
                }
                Step::HostCloses(which) => {
                    if !streams.is_empty() {
                        streams.swap_remove(pick(which));
                    }
                }
                Step::HostHalfCloses(which) => {
                    if let Some(stream) = streams.get(pick(which)) {
                        let _ = stream.shutdown(std::net::Shutdown::Write);
                    }
                }
                Step::Buffers => {
                    guest.driver.run();
                    for (header, _) in guest.take_received() {
                        known.push(Ports { host: header.source_port, guest: header.target_port });
                    }
                    let count = guest.driver.queues[RECEIVE].free_count();
                    guest.give_buffers(count.min(16));
                }
            }
            guest.driver.run();
        }
        prop_assert!(!guest.driver.interrupt.is_reset_needed());
        let written = [TX_AREA..TX_AREA + 0x2000, RX_AREA..RX_AREA + 64 * u64::from(RX_BYTES)];
        guest.driver.assert_unchanged_except(&before, &written);

        guest.driver.reset();
        let Guest { driver, device, .. } = &mut guest;
        driver.activate(device);
        guest.give_buffers(64);
        drop(streams);
        guest.received();
        guest.received();
        guest.connected(9000);
    }

    /// A stream arrives whole and in order, whatever the sizes of writes, buffers and
    /// credit.
    #[test]
    fn streams_arrive_whole_in_both_directions(
        to_guest in prop::collection::vec(1_usize..20_000, 0..12),
        to_host in prop::collection::vec(1_usize..30_000, 0..12),
        guest_buffer in 1_u32..50_000,
    ) {
        let mut guest = Guest::new();
        let (mut stream, ports) = guest.connected(9000);
        guest.send_credit(ports, guest_buffer, 0);
        let bytes = |total: usize| -> Vec<u8> { (0..total).map(|n| (n % 253) as u8).collect() };

        let (down, up) = (bytes(to_guest.iter().sum()), bytes(to_host.iter().sum()));
        let (mut written, mut received) = (0, Vec::<u8>::new());
        for size in to_guest {
            stream.write_all(&down[written..written + size]).unwrap();
            written += size;
            loop {
                let data = guest.received_data();
                received.extend(&data);
                if received.len() == written {
                    break;
                }
                guest.send_credit(ports, guest_buffer, received.len() as u32);
            }
            guest.send_credit(ports, guest_buffer, received.len() as u32);
        }
        prop_assert!(received == down);

        let (mut sent, mut arrived) = (0, Vec::<u8>::new());
        for size in to_host {
            let header = Header {
                data_bytes: size as u32,
                buffer_bytes: guest_buffer,
                forwarded: received.len() as u32,
                ..Guest::header(ports, Op::Data)
            };
            guest.send_raw(&header, &up[sent..sent + size]);
            sent += size;
            while arrived.len() < sent {
                let mut buffer = vec![0; sent - arrived.len()];
                let read = stream.read(&mut buffer).unwrap();
                arrived.extend(&buffer[..read]);
                guest.driver.run();
            }
            guest.received();
        }
        prop_assert!(arrived == up);
    }
}
