//! Rings and descriptor chains that break the rules. Each makes the device ask for a reset
//! and use nothing; after the reset it works.

use caisson_vmm::virtio::registers::offset;

use crate::{
    guest::{
        DATA, Descriptor, Guest, INDIRECT, INDIRECT_DESC, IO_ERROR, NEEDS_RESET, NEXT, OK, Queue,
        RAM_END, READ_SECTORS, STATUS_BYTE, TABLE, WRITE, WRITE_SECTORS, word,
    },
    scene::{BALLOON, RNG, Scene, VICTIM, VSOCK, play},
};

const BUFFER: u64 = DATA as u64;
const SIZE: u16 = 8;

impl Scene {
    /// What `act` does to the queue of the victim makes it ask for a reset.
    fn refuses(&mut self, features: u64, act: impl FnOnce(&mut Guest, &mut Queue)) {
        let [mut queue] = self.guest.set_up(VICTIM, features, [SIZE]);
        act(&mut self.guest, &mut queue);
        let status = VICTIM.register(offset::STATUS);
        self.guest.wait(status, NEEDS_RESET, NEEDS_RESET, "the device to ask for a reset");
        // What comes now is not even looked at, while others go on.
        let chain = self.guest.request_chain(READ_SECTORS, 0, &[(BUFFER, 512, WRITE, 0)]);
        self.guest.publish(&mut queue, 0, &chain);
        self.look_at_witness();
        self.guest.expect(queue.used_index(), 0xffff, 0, "nothing was used");
        self.look_at_victim();
    }

    /// The device refuses each of these chains, which begin at descriptor 0.
    fn refuses_chains(&mut self, features: u64, chains: &[&[Descriptor]]) {
        for chain in chains {
            self.refuses(features, |guest, queue| guest.publish(queue, 0, chain));
        }
    }
}

#[test]
fn chains_that_loop_are_refused() {
    play(|scene| {
        let all: Vec<Descriptor> =
            (0..SIZE).map(|index| (BUFFER, 16, NEXT, (index + 1) % SIZE)).collect();
        scene.refuses_chains(
            0,
            &[&[(BUFFER, 16, NEXT, 0)], &[(BUFFER, 16, NEXT, 1), (BUFFER, 16, NEXT, 0)], &all],
        );
    });
}

#[test]
fn indices_beyond_the_queue_are_refused() {
    play(|scene| {
        for index in [SIZE, 0x8000, u16::MAX] {
            scene.refuses_chains(0, &[&[(BUFFER, 16, NEXT, index)]]);
            let chain = [(BUFFER, 16, 0, 0)];
            scene.refuses(0, |guest, queue| guest.publish(queue, index, &chain));
        }
    });
}

#[test]
fn empty_and_huge_buffers_are_refused() {
    play(|scene| {
        let header = (BUFFER, 16, NEXT, 1);
        scene.refuses_chains(
            0,
            &[
                &[(BUFFER, 0, 0, 0)],
                &[header, (BUFFER, 0, WRITE, 0)],
                &[header, (BUFFER, u32::MAX, WRITE, 0)],
                &[(BUFFER, u32::MAX, 0, 0)],
                &[header, (0, 0xffff_f000, NEXT | WRITE, 2), (0, 0xffff_f000, WRITE, 0)],
            ],
        );
    });
}

#[test]
fn buffers_outside_ram_are_refused() {
    play(|scene| {
        let registers = VICTIM.register(0).into();
        for address in [RAM_END, RAM_END - 511, registers, 0xfee0_0000, 1 << 32, u64::MAX, !511] {
            scene.refuses_chains(
                0,
                &[
                    &[
                        (BUFFER, 16, NEXT, 1),
                        (address, 512, WRITE | NEXT, 2),
                        (BUFFER, 1, WRITE, 0),
                    ],
                    &[(address, 512, 0, 0)],
                ],
            );
        }
    });
}

#[test]
fn a_buffer_that_ends_at_the_top_of_ram_works() {
    play(|scene| {
        let [mut queue] = scene.guest.set_up(VICTIM, 0, [SIZE]);
        let top = [(RAM_END - 512, 512, WRITE, 0)];
        scene.guest.request(&mut queue, READ_SECTORS, 3, &top, OK, "a read to the top");
        let last = (RAM_END - 4) as u32;
        scene.guest.expect(last, u32::MAX, word(VICTIM.number, 3, 127), "the last word");
        let top = [(RAM_END - 512, 512, 0, 0)];
        scene.guest.request(&mut queue, WRITE_SECTORS, 3, &top, OK, "a write from the top");
    });
}

#[test]
fn buffers_that_overlap_give_defined_data() {
    play(|scene| {
        let [mut queue] = scene.guest.set_up(VICTIM, 0, [SIZE]);
        let guest = &mut scene.guest;
        // The header is written over by the data that it asks for.
        let chain =
            [(BUFFER, 16, NEXT, 1), (BUFFER, 512, WRITE | NEXT, 2), (BUFFER + 600, 1, WRITE, 0)];
        guest.store(DATA, READ_SECTORS);
        guest.store64(DATA + 8, 4);
        guest.publish(&mut queue, 0, &chain);
        guest.wait_used(&queue);
        for index in [0, 2, 127] {
            let expected = word(VICTIM.number, 4, index);
            guest.expect(DATA + 4 * index, u32::MAX, expected, "data over its header");
        }
        // Two buffers in one place: it has what was read last.
        let twice = [(BUFFER, 512, WRITE, 0), (BUFFER, 512, WRITE, 0)];
        guest.request(&mut queue, READ_SECTORS, 6, &twice, OK, "two buffers in one place");
        guest.expect(DATA, u32::MAX, word(VICTIM.number, 7, 0), "the second sector");
        // What is written to the disk contains the status byte of the request: it is taken
        // before the status is given. The second write puts back what was there.
        let sector = [(u64::from(STATUS_BYTE), 512, 0, 0)];
        guest.request(&mut queue, WRITE_SECTORS, 9, &sector, OK, "a write over the status");
        let back = [(BUFFER, 512, WRITE, 0)];
        guest.request(&mut queue, READ_SECTORS, 9, &back, OK, "it reads back");
        guest.expect(DATA, 0xff, 0xee, "the status before the request");
        for index in 0..128 {
            guest.store(DATA + 4 * index, word(VICTIM.number, 9, index));
        }
        let sector = [(BUFFER, 512, 0, 0)];
        guest.request(&mut queue, WRITE_SECTORS, 9, &sector, OK, "the sector is put back");
    });
}

#[test]
fn misused_indirect_tables_are_refused() {
    play(|scene| {
        let table = u64::from(TABLE);
        let inner = |scene: &mut Scene, chain: &[Descriptor]| {
            for (index, descriptor) in (0..).zip(chain) {
                scene.guest.descriptor(TABLE, index, *descriptor);
            }
        };
        inner(scene, &[(BUFFER, 16, NEXT, 1), (table, 32, INDIRECT, 0)]);
        scene.refuses_chains(INDIRECT_DESC, &[&[(table, 32, INDIRECT, 0)]]);
        // Itself, a loop, a successor beyond the table.
        inner(scene, &[(table, 16, INDIRECT, 0)]);
        scene.refuses_chains(INDIRECT_DESC, &[&[(table, 16, INDIRECT, 0)]]);
        inner(scene, &[(BUFFER, 16, NEXT, 0)]);
        scene.refuses_chains(INDIRECT_DESC, &[&[(table, 16, INDIRECT, 0)]]);
        inner(scene, &[(BUFFER, 16, NEXT, 1)]);
        scene.refuses_chains(INDIRECT_DESC, &[&[(table, 16, INDIRECT, 0)]]);
        inner(scene, &[(BUFFER, 16, 0, 0)]);
        scene.refuses_chains(
            INDIRECT_DESC,
            &[
                &[(table, 0, INDIRECT, 0)],
                &[(table, 17, INDIRECT, 0)],
                &[(table, 0xffff_fff0, INDIRECT, 0)],
                &[(table, 16 * 1025, INDIRECT, 0)],
                &[(RAM_END - 16, 32, INDIRECT, 0)],
                &[(RAM_END, 16, INDIRECT, 0)],
                &[(u64::MAX - 15, 16, INDIRECT, 0)],
                &[(table, 16, INDIRECT | NEXT, 1), (BUFFER, 16, 0, 0)],
            ],
        );
        // Not negotiated.
        scene.refuses_chains(0, &[&[(table, 16, INDIRECT, 0)]]);
    });
}

#[test]
fn an_available_index_that_jumps_is_refused() {
    play(|scene| {
        for index in [SIZE + 1, 0x7fff, 0x8000, u16::MAX] {
            scene.refuses(0, |guest, queue| {
                guest.descriptor(queue.table, 0, (BUFFER, 16, 0, 0));
                guest.store16(queue.available_index(), index);
                guest.notify(queue);
            });
        }
    });
}

#[test]
fn buffers_of_the_wrong_direction_are_refused() {
    play(|scene| {
        scene.refuses_chains(
            0,
            &[
                // No header, a short header, no status byte.
                &[(BUFFER, 512, WRITE, 0)],
                &[(BUFFER, 15, NEXT, 1), (BUFFER, 1, WRITE, 0)],
                &[(BUFFER, 16, NEXT, 1), (BUFFER, 512, 0, 0)],
                // Readable after writable.
                &[(BUFFER, 16, NEXT, 1), (BUFFER, 512, WRITE | NEXT, 2), (BUFFER, 1, 0, 0)],
            ],
        );
    });
}

#[test]
fn other_devices_refuse_buffers_of_the_wrong_direction_too() {
    play(|scene| {
        let guest = &mut scene.guest;
        let [mut random] = guest.set_up(RNG, 0, [SIZE]);
        guest.publish(&mut random, 0, &[(BUFFER, 64, 0, 0)]);
        let [_, mut transmit, _] = guest.set_up(VSOCK, 0, [SIZE; 3]);
        guest.publish(&mut transmit, 0, &[(BUFFER, 64, WRITE, 0)]);
        for device in [RNG, VSOCK] {
            let status = device.register(offset::STATUS);
            guest.wait(status, NEEDS_RESET, NEEDS_RESET, "the device to ask for a reset");
        }
        // Page numbers that the balloon cannot read are none; what it can only read is no
        // page that it could take.
        let [mut inflate, _, mut reporting] = guest.set_up(BALLOON, 0, [SIZE; 3]);
        guest.publish(&mut inflate, 0, &[(BUFFER, 64, WRITE, 0)]);
        guest.publish(&mut reporting, 0, &[(BUFFER, 4096, 0, 0)]);
        guest.wait_used(&inflate);
        guest.wait_used(&reporting);
    });
}

#[test]
fn notifications_without_buffers_starve_nobody() {
    play(|scene| {
        let [mut queue] = scene.guest.set_up(VICTIM, 0, [SIZE]);
        for _ in 0..3 {
            scene.guest.repeat(30_000, |guest| guest.notify(&queue));
            scene.look_at_witness();
            scene.guest.read_well(&mut queue, 2);
        }
    });
}

#[test]
fn a_reset_leaves_no_late_write() {
    play(|scene| {
        const BYTES: u32 = 4 << 20;
        const BIG: u32 = 0x100_0000;
        const SENTINEL: u32 = 0x1357_9bdf;
        let places = [BIG, BIG + BYTES / 2, BIG + BYTES - 4];
        for _ in 0..20 {
            let [mut queue] = scene.guest.set_up(VICTIM, 0, [SIZE]);
            let data = [(BIG.into(), BYTES, WRITE, 0)];
            let chain = scene.guest.request_chain(READ_SECTORS, 16, &data);
            scene.guest.publish(&mut queue, 0, &chain);
            scene.guest.reset(VICTIM);
            for place in places {
                scene.guest.store(place, SENTINEL);
            }
            scene.guest.store(queue.used(), SENTINEL);
            scene.look_at_witness();
            for place in places {
                scene.guest.expect(place, u32::MAX, SENTINEL, "memory after a reset");
            }
            scene.guest.expect(queue.used(), u32::MAX, SENTINEL, "the used ring after a reset");
        }
    });
}

/// Another vCPU rewrites the address and the length of a buffer while the device reads it.
#[test]
fn a_descriptor_that_changes_while_it_is_read_is_good_or_refused() {
    /// Ring and code below 64 KiB, for the other vCPU's real mode.
    const RING: u32 = 0x9000;
    /// mov dword [0x9010], DATA; mov dword [0x9018], 512; mov dword [0x9010], -512;
    /// mov dword [0x9018], -1; jmp back
    const REWRITE: [u8; 40] = [
        0x66, 0xc7, 0x06, 0x10, 0x90, 0x00, 0x00, 0x81, 0x00, //
        0x66, 0xc7, 0x06, 0x18, 0x90, 0x00, 0x02, 0x00, 0x00, //
        0x66, 0xc7, 0x06, 0x10, 0x90, 0x00, 0xfe, 0xff, 0xff, //
        0x66, 0xc7, 0x06, 0x18, 0x90, 0xff, 0xff, 0xff, 0xff, //
        0xeb, 0xda, 0x90, 0x90,
    ];
    const OUTSIDE: [u32; 2] = [DATA - 4, DATA + 512];
    const SENTINEL: u32 = 0x2468_ace0;
    crate::scene::play_on(2, |scene| {
        let guest = &mut scene.guest;
        for (index, word) in (0..).zip(REWRITE.chunks_exact(4)) {
            guest.store(0x8000 + 4 * index, u32::from_le_bytes(word.try_into().unwrap()));
        }
        guest.code(crate::start_others);
        for place in OUTSIDE {
            guest.store(place, SENTINEL);
        }
        let [queue] = guest.set_up(VICTIM, 0, [SIZE]);
        let queue = queue.at(RING);
        guest.repeat(300, |guest| {
            guest.set_up_at(std::slice::from_ref(&queue), 0);
            let data = [(BUFFER, 512, WRITE, 0)];
            let chain = guest.request_chain(READ_SECTORS, 1, &data);
            guest.publish(&mut queue.clone(), 0, &chain);
            // A used buffer, or a changed configuration: that it asks for a reset.
            let causes = VICTIM.register(offset::INTERRUPT_STATUS);
            guest.wait_any(causes, 3, "the device to say anything");
        });
        for place in OUTSIDE {
            guest.expect(place, u32::MAX, SENTINEL, "memory beside the buffer");
        }
    });
}

#[test]
fn requests_beyond_the_disk_and_writes_to_a_read_only_one_fail_by_themselves() {
    use crate::scene::{READONLY, VICTIM_BYTES};
    play(|scene| {
        let guest = &mut scene.guest;
        let [mut queue] = guest.set_up(VICTIM, 0, [SIZE]);
        let end = VICTIM_BYTES / 512;
        for sector in [end, end - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
            for (kind, flags) in [(READ_SECTORS, WRITE), (WRITE_SECTORS, 0)] {
                let data = [(BUFFER, 1024, flags, 0)];
                guest.request(&mut queue, kind, sector, &data, IO_ERROR, "beyond the disk");
            }
        }
        let odd = [(BUFFER, 511, WRITE, 0)];
        guest.request(&mut queue, READ_SECTORS, 0, &odd, IO_ERROR, "part of a sector");
        guest.read_well(&mut queue, 1);
        let [mut queue] = guest.set_up(READONLY, 0, [SIZE]);
        let data = [(BUFFER, 512, 0, 0)];
        guest.request(&mut queue, WRITE_SECTORS, 0, &data, IO_ERROR, "a write to a read-only disk");
        guest.read_well(&mut queue, 1);
    });
}
