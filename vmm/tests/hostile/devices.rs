//! Requests that are well-formed and mean harm.

use std::io::{Read, Write};

use caisson_vmm::virtio::registers::offset;

use crate::{
    guest::{
        DATA, Guest, INDIRECT, INDIRECT_DESC, IO_ERROR, Queue, RAM_END, READ_SECTORS, STATUS_BYTE,
        TABLE, WRITE,
    },
    scene::{BALLOON, CID, HOST_PORTS, RNG, VICTIM, VICTIM_BYTES, VSOCK, play, play_with},
};

#[test]
fn a_disk_whose_file_is_cut_fails_requests_and_no_more() {
    play_with(
        |scene| {
            let [queue] = scene.guest.set_up(VICTIM, INDIRECT_DESC, [4]);
            let guest = &mut scene.guest;
            // The same request again and again, in every slot of the ring.
            let data = [(u64::from(DATA), 512, WRITE, 0)];
            let chain = guest.request_chain(READ_SECTORS, VICTIM_BYTES / 512 - 1, &data);
            for (index, descriptor) in (0..).zip(&chain) {
                guest.descriptor(TABLE, index, *descriptor);
            }
            guest.descriptor(queue.table, 0, (TABLE.into(), 16 * chain.len() as u32, INDIRECT, 0));
            guest.store64(queue.available() + 4, 0);
            guest.say("cut the file");
            guest.store(STATUS_BYTE, 0);
            guest.repeat_until(STATUS_BYTE, IO_ERROR, 1_000_000, "a read of a cut file", |guest| {
                guest.code(|program| program.increment16(queue.available_index()));
                guest.notify(&queue);
                // The device counts on from the same number.
                guest.wait_same(queue.used_index(), queue.available_index());
            });
            guest.say("put it back");
            guest.store(STATUS_BYTE, 1);
            guest.repeat_until(STATUS_BYTE, 0, 1_000_000, "a read of the whole file", |guest| {
                guest.code(|program| program.increment16(queue.available_index()));
                guest.notify(&queue);
                guest.wait_same(queue.used_index(), queue.available_index());
            });
        },
        |host| {
            host.hear("cut the file");
            host.victim().set_len(VICTIM_BYTES / 2).unwrap();
            host.hear("put it back");
            host.victim().set_len(VICTIM_BYTES).unwrap();
        },
    );
}

#[test]
fn huge_requests_for_entropy_are_cut_short() {
    play(|scene| {
        let guest = &mut scene.guest;
        let [mut queue] = guest.set_up(RNG, 0, [8]);
        const START: u32 = 0x100_0000;
        const SENTINEL: u32 = 0x1111_2222;
        for _ in 0..4 {
            guest.store(START + 4096, SENTINEL);
            let all = (RAM_END as u32) - START;
            guest.publish(&mut queue, 0, &[(START.into(), all, WRITE, 0)]);
            guest.wait_used(&queue);
            guest.expect(START + 4096, u32::MAX, SENTINEL, "memory after the entropy");
        }
        for slot in 0..4 {
            guest.expect(queue.used() + 8 + 8 * slot, u32::MAX, 4096, "bytes of entropy");
        }
    });
}

#[test]
fn page_numbers_that_cannot_be_take_nothing_else() {
    play(|scene| {
        let guest = &mut scene.guest;
        let [mut inflate, mut deflate, mut reporting] = guest.set_up(BALLOON, 0, [8; 3]);
        const GONE: u32 = 0x180_0000;
        const KEPT: u32 = 0x181_0000;
        const SENTINEL: u32 = 0x3333_4444;
        guest.store(GONE, SENTINEL);
        guest.store(KEPT, SENTINEL);
        let page = GONE / 4096;
        let end = (RAM_END / 4096) as u32;
        // Outside RAM, the same again, a run that leaves RAM, and back.
        let numbers =
            [u32::MAX, 0xd_0000, page, page, page, end - 1, end, end + 1, 0xf_ffff, page, u32::MAX];
        for (index, number) in (0..).zip(numbers) {
            guest.store(DATA + 4 * index, number);
        }
        // The last number is cut short.
        let list = (DATA.into(), 4 * numbers.len() as u32 - 2, 0, 0);
        for _ in 0..2 {
            for queue in [&mut inflate, &mut deflate] {
                guest.publish(queue, 0, &[list]);
                guest.wait_used(queue);
            }
        }
        guest.expect(GONE, u32::MAX, 0, "a page that was given back");
        guest.expect(KEPT, u32::MAX, SENTINEL, "a page that was not");
        // Far more numbers than are taken: 8 MiB of zeros.
        guest.publish(&mut inflate, 0, &[(0x100_0000, 8 << 20, 0, 0)]);
        guest.wait_used(&inflate);
        // Reported pages that are no pages: parts of two.
        guest.publish(&mut reporting, 0, &[(u64::from(KEPT) - 100, 4096, WRITE, 0)]);
        guest.wait_used(&reporting);
        guest.expect(KEPT, u32::MAX, SENTINEL, "a page that was reported in part");
        // The balloon's size is what the driver says, and harms nobody.
        guest.store(BALLOON.register(offset::CONFIG + 4), u32::MAX);
    });
}

// --- vsock ---

const PACKET: u32 = 0x80_1000;
const RECEIVED: u32 = 0x80_2000;
const BUFFERS: u16 = 16;
const GUEST_PORT: u32 = 5000;

const REQUEST: u32 = 1;
const RESPONSE: u32 = 2;
const RESET: u32 = 3;
const DATA_OP: u32 = 5;

/// The fields of a packet's header that a liar may want to choose.
#[derive(Clone, Copy)]
struct Packet {
    source_cid: u64,
    target_cid: u64,
    host_port: u32,
    data_bytes: u32,
    kind: u32,
    op: u32,
    buffer_bytes: u32,
    forwarded: u32,
}

impl Packet {
    fn new(host_port: u32, op: u32) -> Self {
        Self {
            source_cid: CID.into(),
            target_cid: 2,
            host_port,
            data_bytes: 0,
            kind: 1,
            op,
            buffer_bytes: 0x1_0000,
            forwarded: 0,
        }
    }
}

/// A driver of the vsock device whose receive buffers are all in one place: the newest
/// packet is there.
struct Vsock {
    receive: Queue,
    transmit: Queue,
}

impl Vsock {
    fn set_up(guest: &mut Guest) -> Self {
        let [mut receive, transmit, _] = guest.set_up(VSOCK, 0, [BUFFERS, 8, 8]);
        guest.store(RECEIVED + 28, 0);
        let buffers = [(RECEIVED.into(), 4096, WRITE, 0); BUFFERS as usize];
        for head in 0..BUFFERS {
            guest.publish(&mut receive, head, &buffers);
        }
        Self { receive, transmit }
    }

    /// Sends a packet with so many bytes behind its header.
    fn send(&mut self, guest: &mut Guest, packet: Packet, available_bytes: u32) {
        guest.store64(PACKET, packet.source_cid);
        guest.store64(PACKET + 8, packet.target_cid);
        for (offset, value) in [
            (16, GUEST_PORT),
            (20, packet.host_port),
            (24, packet.data_bytes),
            (28, packet.kind | packet.op << 16),
            (32, 0),
            (36, packet.buffer_bytes),
            (40, packet.forwarded),
        ] {
            guest.store(PACKET + offset, value);
        }
        guest.publish(&mut self.transmit, 0, &[(PACKET.into(), 44 + available_bytes, 0, 0)]);
        guest.wait_used(&self.transmit);
    }

    fn hears(&self, guest: &mut Guest, op: u32, what: &str) {
        let _ = &self.receive;
        guest.wait(RECEIVED + 28, 0xffff_0000, op << 16, what);
    }

    /// A connection to a port of the host that it may have.
    fn connect(guest: &mut Guest, host_port: u32) -> Self {
        let mut vsock = Self::set_up(guest);
        vsock.send(guest, Packet::new(host_port, REQUEST), 0);
        vsock.hears(guest, RESPONSE, "a connection");
        guest.store(RECEIVED + 28, 0);
        vsock
    }
}

/// A port that was lied on is of no use to the liar; this one is left for the truth.
const GOOD_PORT: u32 = HOST_PORTS.end - 1;

fn talks_well(guest: &mut Guest) {
    let mut vsock = Vsock::connect(guest, GOOD_PORT);
    guest.store(PACKET + 44, u32::from_le_bytes(*b"good"));
    vsock.send(guest, Packet { data_bytes: 4, ..Packet::new(GOOD_PORT, DATA_OP) }, 4);
    vsock.hears(guest, DATA_OP, "an answer from the host");
    guest.expect(RECEIVED + 44, u32::MAX, u32::from_le_bytes(*b"well"), "the answer");
}

#[test]
fn a_guest_that_lies_about_credit_or_addresses_loses_that_connection() {
    play_with(
        |scene| {
            let guest = &mut scene.guest;
            let data = Packet { data_bytes: 4, ..Packet::new(0, DATA_OP) };
            let lies = [
                (Packet { forwarded: 1, ..data }, "more forwarded than was sent"),
                (Packet { forwarded: 0x7fff_ffff, ..data }, "far more forwarded"),
                (Packet { data_bytes: 5, ..data }, "a length beyond the packet"),
                (Packet { data_bytes: u32::MAX, ..data }, "a length of 4 GiB"),
                (Packet { source_cid: u64::from(CID) + 1, ..data }, "a spoofed CID"),
                (Packet { source_cid: 2, ..data }, "the host's CID"),
                (Packet { source_cid: u64::from(CID) | 1 << 32, ..data }, "a CID of 64 bits"),
                (Packet { target_cid: 3, ..data }, "another guest's CID"),
                (Packet { kind: 2, ..data }, "another type of socket"),
                (Packet { op: 0, ..data }, "an operation 0"),
                (Packet { op: 0xffff, ..data }, "an unknown operation"),
                (Packet { op: RESPONSE, ..data }, "a response on an open connection"),
                (Packet { op: REQUEST, ..data }, "a request on an open connection"),
            ];
            for (host_port, (lie, what)) in HOST_PORTS.zip(lies) {
                assert!(host_port < GOOD_PORT);
                let mut vsock = Vsock::connect(guest, host_port);
                vsock.send(guest, Packet { host_port, ..lie }, 4);
                vsock.hears(guest, RESET, what);
            }
            talks_well(guest);
        },
        |host| {
            for (_, stream) in host.ports.range_mut(HOST_PORTS.start..HOST_PORTS.start + 13) {
                let mut rest = Vec::new();
                let end = stream.read_to_end(&mut rest);
                assert!(end.is_ok() && rest.is_empty(), "{end:?} {rest:?}");
            }
            host_talks_well(host);
        },
    );
}

fn host_talks_well(host: &mut crate::scene::Host) {
    let mut stream = &host.ports[&GOOD_PORT];
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"good");
    stream.write_all(b"well").unwrap();
}

#[test]
fn a_guest_that_sends_more_than_it_has_credit_for_is_reset() {
    play_with(
        |scene| {
            let guest = &mut scene.guest;
            let port = HOST_PORTS.start;
            let mut vsock = Vsock::connect(guest, port);
            // Nobody reads on the host: its socket fills, then the device's buffer.
            let data = Packet { data_bytes: 0x1_0000, ..Packet::new(port, DATA_OP) };
            for _ in 0..40 {
                vsock.send(guest, data, 0x1_0000);
            }
            vsock.hears(guest, RESET, "a flood");
            talks_well(guest);
        },
        host_talks_well,
    );
}

#[test]
fn connection_attempts_without_end_cost_nothing() {
    play_with(
        |scene| {
            let guest = &mut scene.guest;
            let [mut receive, transmit, _] = guest.set_up(VSOCK, 0, [8; 3]);
            // A port that the guest may not have, and no buffers for the answers.
            let mut vsock = Vsock { receive: receive.clone(), transmit: transmit.clone() };
            vsock.send(guest, Packet::new(9, REQUEST), 0);
            guest.store(transmit.available() + 4, 0);
            guest.store64(transmit.available() + 8, 0);
            guest.store(transmit.available() + 16, 0);
            guest.repeat(20_000, |guest| {
                guest.code(|program| program.increment16(transmit.available_index()));
                guest.notify(&transmit);
                guest.wait_same(transmit.used_index(), transmit.available_index());
            });
            guest.store(RECEIVED + 28, 0);
            guest.publish(&mut receive, 0, &[(RECEIVED.into(), 4096, WRITE, 0)]);
            guest.wait(RECEIVED + 28, 0xffff_0000, RESET << 16, "a refusal");
            talks_well(guest);
        },
        host_talks_well,
    );
}
