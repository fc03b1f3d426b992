//! A driver that sends frames good and bad, and a host that does the same. No frame reaches
//! the host that a second look finds wrong: its source, its length, its offloads. Nothing
//! but receive buffers changes in the guest, and they hold what the host sent.

#![no_main]

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, FromRawFd, RawFd},
};

use caisson_vmm::{
    config::{MacAddress, RateLimit},
    spec::NetSpec,
    virtio::{
        VirtioDevice,
        net::Net,
        testing::{
            Buffer::{Readable, Writable},
            DATA, Driver,
        },
    },
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const ADDRESS: [u8; 4] = [10, 0, 0, 2];
const MTU: u16 = 1500;
const HEADER_BYTES: usize = 12;
const ETHERNET_BYTES: usize = 14;
const VLAN_BYTES: usize = 4;

const CSUM: u32 = 0;
const GUEST_CSUM: u32 = 1;
const HOST_TSO4: u32 = 11;
const HOST_TSO6: u32 = 12;
const MRG_RXBUF: u32 = 15;

const SENT_AREA: u64 = DATA;
const RECEIVE_AREA: u64 = DATA + 0x10_0000;
const RECEIVE_BYTES: u64 = 0xe00;

#[derive(Arbitrary, Debug)]
struct Input {
    /// Features to leave out, by their bits.
    without: Vec<u8>,
    has_address: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    Send(Frame, Vec<u16>),
    /// A chain that may be no packet.
    SendRaw(u16, u16),
    HostSends(Frame),
    HostSendsRaw(Vec<u8>),
    GiveBuffers {
        count: u8,
        bytes: u16,
    },
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Frame {
    header: Header,
    kind: Kind,
    length: Length,
    /// XORed into one byte of the packet.
    flip: Option<(u8, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u8),
    Full,
    /// More than one segment.
    Long(u16),
    Any(u16),
}

#[derive(Arbitrary, Debug)]
enum Header {
    Plain,
    Checksum { start: u8, offset: u8 },
    Segments { v6: bool, size: u8, start: u8 },
    Any([u8; HEADER_BYTES]),
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Ipv4,
    Ipv4Spoofed([u8; 4]),
    Arp,
    Ipv6([u8; 4]),
    Other(u16),
    OtherMac([u8; 6]),
}

impl Header {
    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, value: u16| {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        match *self {
            Self::Plain => {}
            Self::Checksum { start, offset } => {
                put(0, 1);
                put(6, start.into());
                put(8, offset.into());
            }
            Self::Segments { v6, size, start } => {
                put(0, 1 | if v6 { 4 } else { 1 } << 8);
                put(2, 54);
                put(4, 50 + u16::from(size));
                put(6, 10 + u16::from(start % 64));
                put(8, 16);
            }
            Self::Any(any) => return any,
        }
        bytes
    }
}

impl Length {
    fn bytes(&self) -> usize {
        match *self {
            Self::Short(more) => 60 + usize::from(more),
            Self::Full => ETHERNET_BYTES + usize::from(MTU),
            Self::Long(more) => 2000 + usize::from(more) % 60_000,
            Self::Any(bytes) => bytes.into(),
        }
    }
}

impl Frame {
    fn packet(&self) -> Vec<u8> {
        let mut frame = vec![0; self.length.bytes()];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(to) = frame.get_mut(at..at + bytes.len()) {
                to.copy_from_slice(bytes);
            }
        };
        put(6, &MAC);
        match self.kind {
            Kind::Ipv4 => {
                put(12, &[8, 0, 0x45]);
                put(26, &ADDRESS);
            }
            Kind::Ipv4Spoofed(address) => {
                put(12, &[8, 0, 0x45]);
                put(26, &address);
            }
            Kind::Arp => {
                put(12, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                put(22, &MAC);
                put(28, &ADDRESS);
            }
            Kind::Ipv6(source) => {
                put(12, &[0x86, 0xdd, 0x60]);
                put(22, &[0xfe, 0x80]);
                put(34, &source);
            }
            Kind::Other(ethertype) => put(12, &ethertype.to_be_bytes()),
            Kind::OtherMac(mac) => put(6, &mac),
        }
        let mut packet = [self.header.bytes().as_slice(), &frame].concat();
        if let Some((index, mask)) = self.flip {
            let index = usize::from(index) % packet.len();
            packet[index] ^= mask;
        }
        packet
    }
}

struct Guest {
    driver: Driver,
    device: Net,
    features: u64,
    has_address: bool,
    host: File,
    /// What the host has sent and the guest not received.
    arriving: Vec<Vec<u8>>,
    /// Where each receive buffer ends, by its head.
    buffers: Vec<Option<u64>>,
}

/// The two ends of a socket that keeps frames apart.
fn pair() -> [File; 2] {
    let mut fds = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the kernel writes two descriptors.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) };
    assert_eq!(made, 0);
    // SAFETY: both are new, and nobody else's.
    fds.map(|fd: RawFd| unsafe { File::from_raw_fd(fd) })
}

impl Guest {
    fn new(input: &Input) -> Self {
        let [tap, host] = pair();
        let addresses = if input.has_address {
            vec![IpAddr::from(Ipv4Addr::from(ADDRESS))]
        } else {
            Vec::new()
        };
        let mut device = Net::over_socket(NetSpec {
            tap,
            mac: MacAddress(MAC),
            mtu: MTU,
            addresses,
            receive_limit: RateLimit::default(),
            transmit_limit: RateLimit::default(),
        })
        .expect("a socket will do");
        let without = input.without.iter().take(4).fold(0, |all, bit| all | 1_u64 << (bit % 64));
        let features = device.features() & !without;
        let driver = Driver::with_features(&mut device, features);
        Self {
            buffers: vec![None; usize::from(driver.queues[0].size)],
            driver,
            device,
            features,
            has_address: input.has_address,
            host,
            arriving: Vec::new(),
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & (1 << feature) != 0
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Send(frame, cuts) => self.send(&frame.packet(), cuts),
            Op::SendRaw(offset, bytes) => {
                let before = self.driver.snapshot();
                let address = SENT_AREA + 0x2_0000 + u64::from(*offset);
                let chain = if bytes % 2 == 0 {
                    Readable(address, u32::from(*bytes) + 1)
                } else {
                    Writable(address, u32::from(*bytes) + 1)
                };
                self.driver.submit(1, &[chain]);
                self.driver.assert_unchanged_except(&before, &[]);
                self.hear(None);
            }
            Op::HostSends(frame) => self.host_sends(frame.packet()),
            Op::HostSendsRaw(bytes) if bytes.is_empty() => {}
            Op::HostSendsRaw(bytes) => self.host_sends(bytes.clone()),
            Op::GiveBuffers { count, bytes } => self.give_buffers(*count % 8, *bytes),
            Op::Reset => {
                self.driver.reset();
                self.driver.activate(&mut self.device);
                self.buffers.fill(None);
            }
        }
        self.driver.run();
        self.receive();
        assert!(!self.driver.interrupt.is_reset_needed());
    }

    fn send(&mut self, packet: &[u8], cuts: &[u16]) {
        self.driver.write(SENT_AREA, packet);
        let mut chain = Vec::new();
        let mut start = 0;
        for cut in cuts.iter().take(8) {
            let bytes = u32::from(*cut).clamp(1, 0x1_0000);
            if start + bytes < packet.len() as u32 {
                chain.push(Readable(SENT_AREA + u64::from(start), bytes));
                start += bytes;
            }
        }
        chain.push(Readable(SENT_AREA + u64::from(start), packet.len() as u32 - start));
        let before = self.driver.snapshot();
        let used = self.driver.submit(1, &chain);
        assert!(used.iter().all(|used| used.written == 0) && used.len() == 1);
        self.driver.assert_unchanged_except(&before, &[]);
        self.hear(Some(packet));
    }

    /// What the host receives is the packet as it was sent, and may be.
    fn hear(&mut self, sent: Option<&[u8]>) {
        let mut buffer = vec![0; 0x2_0000];
        // SAFETY: the kernel writes to `buffer`, which is as long as it is told.
        let count = unsafe {
            libc::recv(self.host.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
        };
        let Ok(count) = usize::try_from(count) else { return };
        let packet = &buffer[..count];
        if let Some(sent) = sent {
            assert!(packet == sent, "another packet than was sent");
        }
        self.check(packet);
    }

    fn check(&self, packet: &[u8]) {
        let (header, frame) = packet.split_at(HEADER_BYTES);
        let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (flags, gso) = (header[0], header[1]);
        assert_eq!(frame[6..12], MAC, "a spoofed MAC address");
        if self.has_address {
            match [frame[12], frame[13]] {
                [8, 0] => assert_eq!(frame[26..30], ADDRESS, "a spoofed address"),
                [8, 6] => {
                    assert_eq!(frame[22..28], MAC, "a spoofed address in ARP");
                    assert!(frame[28..32] == ADDRESS || frame[28..32] == [0; 4]);
                }
                // Of IPv6 only the unspecified address, while it looks for one of its own.
                [0x86, 0xdd] => assert_eq!(frame[22..38], [0; 16]),
                other => panic!("ethertype {other:x?} of a guest with addresses"),
            }
        }
        assert!(flags == 0 || flags == 1 && self.has(CSUM), "flags {flags:#x}");
        if flags == 1 {
            let end = field(6) + field(8) + 2;
            assert!(field(6) >= ETHERNET_BYTES && end <= frame.len(), "a checksum outside");
        }
        match gso & 0x7f {
            0 => assert!(frame.len() <= usize::from(MTU) + ETHERNET_BYTES + VLAN_BYTES),
            1 => assert!(self.has(HOST_TSO4) && flags == 1 && field(4) > 0),
            4 => assert!(self.has(HOST_TSO6) && flags == 1 && field(4) > 0),
            other => panic!("segmentation {other}"),
        }
        assert!(field(2) <= frame.len(), "headers longer than the frame");
    }

    fn host_sends(&mut self, packet: Vec<u8>) {
        // SAFETY: the kernel reads `packet`, which is as long as it is told.
        let sent = unsafe {
            let (data, bytes) = (packet.as_ptr().cast(), packet.len());
            libc::send(self.host.as_raw_fd(), data, bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        };
        if sent >= 0 {
            self.arriving.push(packet);
        }
    }

    fn give_buffers(&mut self, count: u8, bytes: u16) {
        let bytes = u64::from(bytes) % RECEIVE_BYTES;
        let bytes = bytes.max(HEADER_BYTES as u64);
        for _ in 0..usize::from(count).min(self.driver.queues[0].free_count()) {
            let head = self.driver.queues[0].next_free();
            let address = RECEIVE_AREA + u64::from(head) * RECEIVE_BYTES;
            self.driver.queues[0].add(&[Writable(address, bytes as u32)]);
            self.buffers[usize::from(head)] = Some(address);
        }
        let before = self.driver.snapshot();
        self.driver.kick(0);
        let area = RECEIVE_AREA..RECEIVE_AREA + 0xe_0000;
        self.driver.assert_unchanged_except(&before, &[area]);
    }

    /// The guest's buffers hold packets that the host has sent, in order.
    fn receive(&mut self) {
        let used = self.driver.queues[0].take_used();
        let mut rest = used.iter();
        while let Some(first) = rest.next() {
            let mut packet = self.buffer(first.head, first.written);
            assert!(packet.len() >= HEADER_BYTES);
            let count = u16::from_le_bytes([packet[10], packet[11]]);
            assert!(count == 1 || count > 1 && self.has(MRG_RXBUF), "{count} buffers");
            for _ in 1..count {
                let next = rest.next().expect("as many buffers as the header says");
                packet.extend(self.buffer(next.head, next.written));
            }
            assert!(packet[0] & 2 == 0 || self.has(GUEST_CSUM), "a flag that was not negotiated");
            let is_same = |sent: &Vec<u8>| {
                sent.len() == packet.len()
                    && sent[1..10] == packet[1..10]
                    && sent[HEADER_BYTES..] == packet[HEADER_BYTES..]
            };
            let found = self.arriving.iter().position(is_same).expect("the host sent it");
            // Those before it were dropped.
            self.arriving.drain(..=found);
        }
    }

    fn buffer(&mut self, head: u32, written: u32) -> Vec<u8> {
        let address = self.buffers[head as usize].take().expect("the buffer was given");
        self.driver.read(address, written as usize)
    }
}

fuzz_target!(|input: Input| {
    let mut guest = Guest::new(&input);
    guest.step(&Op::GiveBuffers { count: 7, bytes: 2000 });
    for op in input.ops.iter().take(32) {
        guest.step(op);
    }
});
