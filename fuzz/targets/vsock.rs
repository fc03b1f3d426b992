//! A driver that sends mostly valid packets, and programs on the host that connect, write,
//! read and close meanwhile.

#![no_main]

use std::{
    cell::RefCell,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
};

use caisson_vmm::{
    spec::{HostPortSpec, VsockSpec},
    virtio::{
        testing::{
            Buffer::{Readable, Writable},
            DATA, Driver,
        },
        vsock::Vsock,
    },
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const CID: u32 = 3;
const CONTROL_PORT: u32 = 1024;
const HEADER_BYTES: u32 = 44;

const TX_AREA: u64 = DATA;
const RX_AREA: u64 = DATA + 0x10_0000;
const RX_BYTES: u32 = 4096;

#[derive(Arbitrary, Debug)]
enum Step {
    Packet(Packet),
    Dial { port: u8, early_data: u8 },
    HostWrites { which: u8, bytes: u16 },
    HostReads { which: u8 },
    HostCloses { which: u8 },
    HostHalfCloses { which: u8 },
    GiveBuffers { count: u8 },
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Packet {
    /// An index into the ports that the device has spoken of.
    ports: u8,
    op: Op,
    flags: u8,
    data_bytes: u16,
    credit: Credit,
    /// XORed into one byte of the header.
    flip: Option<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

#[derive(Arbitrary, Debug)]
enum Credit {
    /// As a guest that has taken everything.
    Honest,
    Any {
        buffer_bytes: u32,
        forwarded: u32,
    },
}

/// What the driver knows of a connection.
#[derive(Clone, Copy)]
struct Known {
    host_port: u32,
    guest_port: u32,
    received: u32,
}

thread_local! {
    static LISTENER: RefCell<(UnixListener, PathBuf, tempfile::TempDir)> = RefCell::new({
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let path = directory.path().join("vsock");
        (UnixListener::bind(&path).expect("a socket"), path, directory)
    });
}

struct Guest {
    driver: Driver,
    device: Vsock,
    known: Vec<Known>,
    streams: Vec<UnixStream>,
    socket: PathBuf,
}

impl Guest {
    fn new() -> Self {
        let (listener, socket) = LISTENER.with_borrow(|(listener, path, _)| {
            (listener.try_clone().expect("an fd"), path.clone())
        });
        let (control, inner) = UnixStream::pair().expect("a socket pair");
        control.set_nonblocking(true).expect("it is a socket");
        let mut device = Vsock::new(VsockSpec {
            cid: CID,
            listener,
            host_ports: vec![HostPortSpec { port: CONTROL_PORT, socket: inner }],
        })
        .expect("the listener is a socket");
        let driver = Driver::new(&mut device);
        let known = Known { host_port: CONTROL_PORT, guest_port: 5000, received: 0 };
        Self { driver, device, known: vec![known], streams: vec![control], socket }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Packet(ref packet) => self.send(packet),
            Step::Dial { port, early_data } => self.dial(port, early_data),
            Step::HostWrites { which, bytes } => {
                if let Some(stream) = self.stream(which) {
                    let _ = stream.write(&vec![2; bytes.into()]);
                }
            }
            Step::HostReads { which } => {
                if let Some(stream) = self.stream(which) {
                    while let Ok(1..) = stream.read(&mut [0; 4096]) {}
                }
            }
            Step::HostCloses { which } => {
                if !self.streams.is_empty() {
                    let index = usize::from(which) % self.streams.len();
                    self.streams.swap_remove(index);
                }
            }
            Step::HostHalfCloses { which } => {
                if let Some(stream) = self.stream(which) {
                    let _ = stream.shutdown(Shutdown::Write);
                }
            }
            Step::GiveBuffers { count } => self.give_buffers(count % 16),
            Step::Reset => {
                self.driver.reset();
                self.driver.activate(&mut self.device);
            }
        }
        self.driver.run();
        self.take_received();
    }

    fn stream(&mut self, which: u8) -> Option<&mut UnixStream> {
        let count = self.streams.len().max(1);
        self.streams.get_mut(usize::from(which) % count)
    }

    fn dial(&mut self, port: u8, early_data: u8) {
        if self.streams.len() > 16 {
            return;
        }
        let mut stream = UnixStream::connect(&self.socket).expect("the listener listens");
        stream.set_nonblocking(true).expect("it is a socket");
        let mut start = format!("CONNECT {port}\n").into_bytes();
        start.resize(start.len() + usize::from(early_data), 1);
        let _ = stream.write(&start);
        self.streams.push(stream);
    }

    fn send(&mut self, packet: &Packet) {
        if self.driver.queues[1].free_count() < 2 {
            return;
        }
        let known = self.known[usize::from(packet.ports) % self.known.len()];
        let op = match packet.op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
        };
        let data_bytes = if op == 5 { u32::from(packet.data_bytes) } else { 0 };
        let (buffer_bytes, forwarded) = match packet.credit {
            Credit::Honest => (256 << 10, known.received),
            Credit::Any { buffer_bytes, forwarded } => (buffer_bytes, forwarded),
        };
        let mut header = Vec::with_capacity(HEADER_BYTES as usize);
        header.extend(u64::from(CID).to_le_bytes());
        header.extend(2_u64.to_le_bytes());
        for field in [known.guest_port, known.host_port, data_bytes, 1 | op << 16] {
            header.extend(field.to_le_bytes());
        }
        for field in [u32::from(packet.flags), buffer_bytes, forwarded] {
            header.extend(field.to_le_bytes());
        }
        if let Some((index, mask)) = packet.flip {
            header[usize::from(index) % HEADER_BYTES as usize] ^= mask;
        }
        self.driver.write(TX_AREA, &header);
        let mut buffers = vec![Readable(TX_AREA, HEADER_BYTES)];
        if data_bytes > 0 {
            buffers.push(Readable(TX_AREA + 0x1000, data_bytes));
        }
        self.driver.submit(1, &buffers);
    }

    fn give_buffers(&mut self, count: u8) {
        for _ in 0..usize::from(count).min(self.driver.queues[0].free_count()) {
            let head = self.driver.queues[0].next_free();
            let address = RX_AREA + u64::from(head) * u64::from(RX_BYTES);
            self.driver.queues[0].add(&[Writable(address, RX_BYTES)]);
        }
        self.driver.kick(0);
    }

    /// Learns the ports in the packets that the device has sent.
    fn take_received(&mut self) {
        for used in self.driver.queues[0].take_used() {
            let address = RX_AREA + u64::from(used.head) * u64::from(RX_BYTES);
            let packet = self.driver.read(address, used.written as usize);
            let field = |offset: usize| {
                u32::from_le_bytes(packet[offset..offset + 4].try_into().expect("four bytes"))
            };
            let (host_port, guest_port, data_bytes) = (field(16), field(20), field(24));
            assert_eq!(used.written, HEADER_BYTES + data_bytes);
            let known = self
                .known
                .iter_mut()
                .find(|it| (it.host_port, it.guest_port) == (host_port, guest_port));
            match known {
                Some(known) => known.received = known.received.wrapping_add(data_bytes),
                None => self.known.push(Known { host_port, guest_port, received: data_bytes }),
            }
        }
    }
}

fuzz_target!(|steps: Vec<Step>| {
    let mut guest = Guest::new();
    let before = guest.driver.snapshot();
    for step in steps.iter().take(64) {
        guest.step(step);
    }
    assert!(!guest.driver.interrupt.is_reset_needed());
    let written = [TX_AREA..TX_AREA + 0x1000, RX_AREA..RX_AREA + 64 * u64::from(RX_BYTES)];
    guest.driver.assert_unchanged_except(&before, &written);

    // What is left in the listener's backlog would meet the next input.
    guest.streams.clear();
    guest.driver.reset();
    guest.driver.activate(&mut guest.device);
    guest.give_buffers(16);
    guest.driver.run();
});
