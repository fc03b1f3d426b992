//! Registers accessed in ways that no driver should.

use caisson_vmm::virtio::registers::offset;

use crate::{
    guest::{
        ACKNOWLEDGE, DATA, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, RAM_END, READ_SECTORS,
        VERSION_1, WRITE,
    },
    scene::{BALLOON, RNG, VICTIM, VSOCK, play},
};

const ALL_STEPS: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

#[test]
fn registers_take_accesses_of_4_bytes_only() {
    play(|scene| {
        let guest = &mut scene.guest;
        let [mut queue] = guest.set_up(VICTIM, 0, [8]);
        // A status of 0 would be a reset.
        let status = VICTIM.register(offset::STATUS);
        guest.code(|program| program.store8(status, 0).store16(status, 0));
        guest.store64(DATA, 0);
        guest.code(|program| program.copy64(status, DATA));
        guest.code(|program| program.store(status + 1, 0).store(status - 2, 0));
        guest.expect_register(VICTIM, offset::STATUS, ALL_STEPS, "status after odd writes");
        // Odd reads: zeros. 8 bytes of the magic number and the version.
        guest.store64(DATA, u64::MAX);
        guest.code(|program| program.copy64(DATA, VICTIM.register(offset::MAGIC)));
        for half in [DATA, DATA + 4] {
            guest.expect(half, u32::MAX, 0, "8 bytes of registers");
        }
        guest.expect(VICTIM.register(offset::MAGIC) + 1, u32::MAX, 0, "an unaligned read");
        guest.read_well(&mut queue, 1);
    });
}

#[test]
fn queue_sizes_that_cannot_be_are_refused() {
    play(|scene| {
        let guest = &mut scene.guest;
        guest.negotiate(VICTIM, 0);
        guest.write(VICTIM, offset::QUEUE_SELECT, 0);
        for size in [0, 3, 257, 512, 0x8000, 0x1_0000, 0x1_0008, u32::MAX] {
            guest.write(VICTIM, offset::QUEUE_SIZE, size);
            guest.write(VICTIM, offset::QUEUE_READY, 1);
            guest.expect_register(VICTIM, offset::QUEUE_READY, 0, "ready without a size");
        }
        guest.driver_ok(VICTIM);
        let status = ALL_STEPS | NEEDS_RESET;
        guest.expect_register(VICTIM, offset::STATUS, status, "no queue is ready");
    });
}

#[test]
fn rings_outside_ram_are_refused() {
    play(|scene| {
        let guest = &mut scene.guest;
        for (part, high) in [
            (offset::QUEUE_DESC_LOW, offset::QUEUE_DESC_HIGH),
            (offset::QUEUE_AVAIL_LOW, offset::QUEUE_AVAIL_HIGH),
            (offset::QUEUE_USED_LOW, offset::QUEUE_USED_HIGH),
        ] {
            let registers = u64::from(VICTIM.register(0));
            for address in [RAM_END - 16, registers, 0xffff_fff0, 1 << 32, u64::MAX - 15] {
                // Everything as it ought to be but this one address.
                let [queue] = guest.set_up(VICTIM, 0, [8]);
                guest.negotiate(VICTIM, 0);
                guest.describe(&queue);
                guest.write(VICTIM, part, address as u32);
                guest.write(VICTIM, high, (address >> 32) as u32);
                guest.write(VICTIM, offset::QUEUE_READY, 1);
                guest.driver_ok(VICTIM);
                let status = ALL_STEPS | NEEDS_RESET;
                guest.expect_register(VICTIM, offset::STATUS, status, "a ring outside RAM");
                guest.notify(&queue);
            }
        }
    });
}

#[test]
fn nothing_activates_out_of_turn() {
    play(|scene| {
        let guest = &mut scene.guest;
        // A good request in the rings, and a device that never gets to DRIVER_OK.
        let [mut queue] = guest.set_up(VICTIM, 0, [8]);
        guest.reset(VICTIM);
        guest.describe(&queue);
        let chain = guest.request_chain(READ_SECTORS, 0, &[(DATA.into(), 512, WRITE, 0)]);
        guest.publish(&mut queue, 0, &chain);
        for steps in [
            &[DRIVER_OK][..],
            &[ALL_STEPS],
            &[FEATURES_OK, FEATURES_OK | DRIVER_OK],
            &[ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK],
            // Without the feature that every driver must accept.
            &[ACKNOWLEDGE | DRIVER, ALL_STEPS & !DRIVER_OK, ALL_STEPS],
        ] {
            guest.reset(VICTIM);
            for &status in steps {
                // A queue is not ready before its time either.
                guest.write(VICTIM, offset::QUEUE_READY, 1);
                guest.expect_register(VICTIM, offset::QUEUE_READY, 0, "ready out of turn");
                guest.write(VICTIM, offset::STATUS, status);
                guest.notify(&queue);
            }
            let status = VICTIM.register(offset::STATUS);
            guest.expect(status, DRIVER_OK | NEEDS_RESET, 0, "status after skipped steps");
        }
        // Queues that do not exist, or were never made ready.
        let [_, transmit, _] = guest.set_up(VSOCK, 0, [8; 3]);
        guest.negotiate(VSOCK, 0);
        for index in [0, 1, 2, 3, 64, 0xffff, u32::MAX] {
            guest.write(VSOCK, offset::QUEUE_NOTIFY, index);
        }
        guest.driver_ok(VSOCK);
        guest.notify(&transmit);
        guest.expect(VSOCK.register(offset::STATUS), NEEDS_RESET, NEEDS_RESET, "no queues");
        scene.look_at_witness();
        scene.guest.expect(queue.used_index(), 0xffff, 0, "nothing was used");
    });
}

#[test]
fn features_that_were_not_offered_are_refused() {
    play(|scene| {
        let guest = &mut scene.guest;
        for (low, high) in [(u32::MAX, 1), (1 << 31, 1), (0, 0), (0, 3), (0, u32::MAX)] {
            guest.reset(RNG);
            guest.write(RNG, offset::STATUS, ACKNOWLEDGE | DRIVER);
            for (select, half) in [(0, low), (1, high)] {
                guest.write(RNG, offset::DRIVER_FEATURES_SELECT, select);
                guest.write(RNG, offset::DRIVER_FEATURES, half);
            }
            guest.write(RNG, offset::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
            let status = RNG.register(offset::STATUS);
            guest.expect(status, FEATURES_OK, 0, "features that were not offered");
        }
        // Selectors beyond the 64 bits read as nothing and set nothing.
        guest.reset(RNG);
        guest.write(RNG, offset::STATUS, ACKNOWLEDGE | DRIVER);
        for select in [2, 0x8000_0000, u32::MAX] {
            guest.write(RNG, offset::DEVICE_FEATURES_SELECT, select);
            guest.expect_register(RNG, offset::DEVICE_FEATURES, 0, "features beyond 63");
            guest.write(RNG, offset::DRIVER_FEATURES_SELECT, select);
            guest.write(RNG, offset::DRIVER_FEATURES, u32::MAX);
        }
        guest.write(RNG, offset::DRIVER_FEATURES_SELECT, 1);
        guest.write(RNG, offset::DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        guest.write(RNG, offset::STATUS, status);
        guest.expect_register(RNG, offset::STATUS, status, "only what was offered");
    });
}

#[test]
fn queues_and_config_out_of_range_read_zero() {
    play(|scene| {
        let guest = &mut scene.guest;
        guest.negotiate(VICTIM, 0);
        for select in [1, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            guest.write(VICTIM, offset::QUEUE_SELECT, select);
            guest.expect_register(VICTIM, offset::QUEUE_SIZE_MAX, 0, "size of no queue");
            for register in [offset::QUEUE_SIZE, offset::QUEUE_DESC_LOW, offset::QUEUE_READY] {
                guest.write(VICTIM, register, 1);
            }
            guest.expect_register(VICTIM, offset::QUEUE_READY, 0, "no queue is ready");
        }
        for device in [VICTIM, VSOCK, RNG, BALLOON] {
            // The end of the config space, and of the device's page.
            for at in [0x3c, 0xefc - 4, 0xefc] {
                let address = device.register(offset::CONFIG + at);
                guest.store(address, u32::MAX);
                guest
                    .code(|program| program.store8(address + 3, 0xff).store16(address + 1, 0xffff));
                if at > 0x3c {
                    guest.expect(address, u32::MAX, 0, "config past the end");
                }
            }
            // Over the end of the page into the next device's.
            guest.store(device.register(0xffe), u32::MAX);
            guest.expect(device.register(0xffc), u32::MAX, 0, "the end of the page");
        }
        // The balloon's size is all that a driver may write, and as a whole.
        let actual = BALLOON.register(offset::CONFIG + 4);
        guest.store(actual, 5);
        guest.code(|program| program.store8(actual, 9).store16(actual, 9).store(actual + 1, 9));
        guest.store(actual - 4, 9);
        guest.expect(actual, u32::MAX, 5, "the balloon's size");
        guest.expect(actual - 4, u32::MAX, 0, "the balloon's target");
    });
}
