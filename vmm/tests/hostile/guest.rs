//! A guest that drives virtio devices by itself: what it is to do is written down here, in
//! order, and becomes a program without loops but those that wait.
//!
//! ```text
//! 0x0000_9000  a ring that real-mode code can reach
//! 0x0010_0000  the program
//! 0x0040_0000  the rings: 64 KiB a device, 16 KiB a queue (descriptors, available, used)
//! 0x0080_0000  headers, status bytes, packets and buffers
//! 0x0200_0000  the end of RAM
//! ```

use std::mem;

use caisson_vmm::{
    boot::layout::{VIRTIO_MMIO, VIRTIO_MMIO_BYTES},
    virtio::registers::offset,
};

use crate::support::payload::{Payload, Until};

pub const RAM_END: u64 = 0x200_0000;
const RINGS: u32 = 0x40_0000;
/// Headers and status bytes of requests to disks.
const HEADER: u32 = 0x80_0000;
pub const STATUS_BYTE: u32 = 0x80_0040;
/// An indirect table that helps a request through a queue of any size.
pub const TABLE: u32 = 0x80_0100;
const COUNTERS: u32 = 0x80_0800;
/// Where data is read to and written from.
pub const DATA: u32 = 0x81_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const VERSION_1: u64 = 1 << 32;
pub const INDIRECT_DESC: u64 = 1 << 28;

pub const ACKNOWLEDGE: u32 = 1;
pub const DRIVER: u32 = 2;
pub const DRIVER_OK: u32 = 4;
pub const FEATURES_OK: u32 = 8;
pub const NEEDS_RESET: u32 = 0x40;

pub const READ_SECTORS: u32 = 0;
pub const WRITE_SECTORS: u32 = 1;
pub const OK: u32 = 0;
pub const IO_ERROR: u32 = 1;

/// Times that a condition is looked at. Each costs an exit, so this is seconds.
const PATIENCE: u32 = 2_000_000;

/// A device by its place on the bus.
#[derive(Clone, Copy)]
pub struct Device {
    pub number: u32,
    /// Its virtio device id.
    pub id: u32,
}

impl Device {
    pub fn register(self, offset: u64) -> u32 {
        (VIRTIO_MMIO + u64::from(self.number) * VIRTIO_MMIO_BYTES + offset) as u32
    }
}

/// A virtqueue as its driver has it.
#[derive(Clone)]
pub struct Queue {
    pub device: Device,
    pub index: u32,
    pub size: u16,
    pub table: u32,
    published: u16,
}

impl Queue {
    fn new(device: Device, index: u32, size: u16) -> Self {
        let table = RINGS + device.number * 0x1_0000 + index * 0x4000;
        Self { device, index, size, table, published: 0 }
    }

    /// The same queue with its rings at another address.
    pub fn at(self, table: u32) -> Self {
        Self { table, ..self }
    }

    pub fn available(&self) -> u32 {
        self.table + 0x1000
    }

    pub fn available_index(&self) -> u32 {
        self.available() + 2
    }

    pub fn used(&self) -> u32 {
        self.table + 0x2000
    }

    pub fn used_index(&self) -> u32 {
        self.used() + 2
    }
}

/// A descriptor: address, bytes, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

#[derive(Default)]
pub struct Guest {
    program: Payload,
    /// Loops around what is being written down.
    depth: u32,
}

impl Guest {
    /// The program as a kernel.
    pub fn into_payload(self) -> Payload {
        self.program
    }

    pub fn code(&mut self, add: impl FnOnce(Payload) -> Payload) {
        self.program = add(mem::take(&mut self.program));
    }

    pub fn say(&mut self, line: &str) {
        self.code(|program| program.print(line).print("\n"));
    }

    pub fn store(&mut self, address: u32, value: u32) {
        self.code(|program| program.store(address, value));
    }

    pub fn store16(&mut self, address: u32, value: u16) {
        self.code(|program| program.store16(address, value));
    }

    pub fn store64(&mut self, address: u32, value: u64) {
        self.store(address, value as u32);
        self.store(address + 4, (value >> 32) as u32);
    }

    pub fn write(&mut self, device: Device, offset: u64, value: u32) {
        self.store(device.register(offset), value);
    }

    // --- conditions ---

    /// The 32 bits at an address are this now.
    pub fn expect(&mut self, address: u32, mask: u32, value: u32, what: &str) {
        self.until(address, mask, Some(value), 1, what, |_| ());
    }

    /// Waits until they are.
    pub fn wait(&mut self, address: u32, mask: u32, value: u32, what: &str) {
        self.until(address, mask, Some(value), PATIENCE, what, |_| ());
    }

    /// Waits until any bit of the mask is set.
    pub fn wait_any(&mut self, address: u32, mask: u32, what: &str) {
        self.until(address, mask, None, PATIENCE, what, |_| ());
    }

    /// Waits until the 16 bits at two addresses are the same.
    pub fn wait_same(&mut self, one: u32, other: u32) {
        let difference = COUNTERS + 0x600;
        let again = |guest: &mut Self| {
            // movzx ebx, word [one]; movzx eax, word [other]; sub eax, ebx; mov [difference], eax
            guest.code(|program| {
                program
                    .bytes(&[0x0f, 0xb7, 0x1d])
                    .bytes(&one.to_le_bytes())
                    .bytes(&[0x0f, 0xb7, 0x05])
                    .bytes(&other.to_le_bytes())
                    .bytes(&[0x29, 0xd8, 0xa3])
                    .bytes(&difference.to_le_bytes())
            });
        };
        self.until(difference, u32::MAX, Some(0), PATIENCE, "buffers to be used", again);
    }

    /// Does `body` again and again until the condition holds.
    pub fn repeat_until(
        &mut self,
        address: u32,
        value: u32,
        limit: u32,
        what: &str,
        body: impl FnOnce(&mut Self),
    ) {
        self.until(address, u32::MAX, Some(value), limit, what, body);
    }

    /// Does `body` so many times.
    pub fn repeat(&mut self, times: u32, body: impl FnOnce(&mut Self)) {
        let done = COUNTERS + 0x400 + self.depth * 4;
        self.store(done, 0);
        self.until(done, u32::MAX, Some(times), times + 1, "a count", |guest| {
            body(guest);
            // inc dword [done]
            guest.code(|program| program.bytes(&[0xff, 0x05]).bytes(&done.to_le_bytes()));
        });
    }

    fn until(
        &mut self,
        address: u32,
        mask: u32,
        wanted: Option<u32>,
        limit: u32,
        what: &str,
        body: impl FnOnce(&mut Self),
    ) {
        let before = mem::take(&mut self.program);
        self.depth += 1;
        body(self);
        self.depth -= 1;
        let body = mem::replace(&mut self.program, before);
        let counter = COUNTERS + self.depth * 4;
        let until = Until { address, mask, wanted };
        self.code(|program| program.repeat_until(until, limit, counter, what, body));
    }

    // --- devices ---

    pub fn expect_register(&mut self, device: Device, offset: u64, value: u32, what: &str) {
        self.expect(device.register(offset), u32::MAX, value, what);
    }

    pub fn reset(&mut self, device: Device) {
        self.write(device, offset::STATUS, 0);
        self.expect_register(device, offset::STATUS, 0, "status after a reset");
    }

    /// From a reset to FEATURES_OK.
    pub fn negotiate(&mut self, device: Device, features: u64) {
        self.expect_register(device, offset::DEVICE_ID, device.id, "device id");
        self.reset(device);
        self.write(device, offset::STATUS, ACKNOWLEDGE);
        self.write(device, offset::STATUS, ACKNOWLEDGE | DRIVER);
        let features = features | VERSION_1;
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(device, offset::DRIVER_FEATURES_SELECT, select);
            self.write(device, offset::DRIVER_FEATURES, half);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.write(device, offset::STATUS, status);
        self.expect_register(device, offset::STATUS, status, "features accepted");
    }

    /// Sets the registers of a queue, but not that it is ready, over an empty ring.
    pub fn describe(&mut self, queue: &Queue) {
        // Flags and index of both rings.
        self.store(queue.available(), 0);
        self.store(queue.used(), 0);
        let device = queue.device;
        for (offset, value) in [
            (offset::QUEUE_SELECT, queue.index),
            (offset::QUEUE_SIZE, queue.size.into()),
            (offset::QUEUE_DESC_LOW, queue.table),
            (offset::QUEUE_DESC_HIGH, 0),
            (offset::QUEUE_AVAIL_LOW, queue.available()),
            (offset::QUEUE_AVAIL_HIGH, 0),
            (offset::QUEUE_USED_LOW, queue.used()),
            (offset::QUEUE_USED_HIGH, 0),
        ] {
            self.write(device, offset, value);
        }
    }

    pub fn driver_ok(&mut self, device: Device) {
        self.write(device, offset::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// A device from its reset to DRIVER_OK, with queues of these sizes.
    pub fn set_up<const N: usize>(
        &mut self,
        device: Device,
        features: u64,
        sizes: [u16; N],
    ) -> [Queue; N] {
        let queues = std::array::from_fn(|index| Queue::new(device, index as u32, sizes[index]));
        self.set_up_at(&queues, features);
        queues
    }

    pub fn set_up_at(&mut self, queues: &[Queue], features: u64) {
        let device = queues[0].device;
        self.negotiate(device, features);
        for queue in queues {
            self.describe(queue);
            self.write(device, offset::QUEUE_READY, 1);
        }
        self.driver_ok(device);
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.expect_register(device, offset::STATUS, status, "the device is set up");
    }

    // --- rings ---

    pub fn descriptor(&mut self, table: u32, index: u16, descriptor: Descriptor) {
        let (address, bytes, flags, next) = descriptor;
        let at = table + 16 * u32::from(index);
        self.store64(at, address);
        self.store(at + 8, bytes);
        self.store(at + 12, u32::from(flags) | u32::from(next) << 16);
    }

    /// Writes descriptors from the first on, makes the chain at `head` available and
    /// notifies.
    pub fn publish(&mut self, queue: &mut Queue, head: u16, chain: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(chain) {
            self.descriptor(queue.table, index, *descriptor);
        }
        let slot = u32::from(queue.published % queue.size);
        self.store16(queue.available() + 4 + 2 * slot, head);
        queue.published = queue.published.wrapping_add(1);
        self.store16(queue.available_index(), queue.published);
        self.notify(queue);
    }

    pub fn notify(&mut self, queue: &Queue) {
        self.write(queue.device, offset::QUEUE_NOTIFY, queue.index);
    }

    /// Waits until the device has used all that was published.
    pub fn wait_used(&mut self, queue: &Queue) {
        self.wait(queue.used_index(), 0xffff, queue.published.into(), "buffers to be used");
    }

    // --- disks ---

    /// A request with these buffers between header and status, which it waits for.
    pub fn request(
        &mut self,
        queue: &mut Queue,
        kind: u32,
        sector: u64,
        data: &[Descriptor],
        status: u32,
        what: &str,
    ) {
        self.store(STATUS_BYTE, 0xee);
        let chain = self.request_chain(kind, sector, data);
        self.publish(queue, 0, &chain);
        self.wait_used(queue);
        self.expect(STATUS_BYTE, 0xff, status, what);
    }

    /// The header, written to memory, and the descriptors around `data`.
    pub fn request_chain(
        &mut self,
        kind: u32,
        sector: u64,
        data: &[Descriptor],
    ) -> Vec<Descriptor> {
        self.store(HEADER, kind);
        self.store(HEADER + 4, 0);
        self.store64(HEADER + 8, sector);
        let mut chain = vec![(HEADER.into(), 16, NEXT, 1)];
        for (index, &(address, bytes, flags, _)) in (2..).zip(data) {
            chain.push((address, bytes, flags | NEXT, index));
        }
        chain.push((STATUS_BYTE.into(), 1, WRITE, 0));
        chain
    }

    /// Reads a sector of a disk and compares it with what [`word`] says.
    pub fn read_well(&mut self, queue: &mut Queue, sector: u32) {
        const TARGET: u32 = DATA + 0x2000;
        for index in [0, 63, 127] {
            self.store(TARGET + 4 * index, 0);
        }
        let data = [(TARGET.into(), 512, WRITE, 0)];
        self.request(queue, READ_SECTORS, sector.into(), &data, OK, "status of a good read");
        for index in [0, 63, 127] {
            let expected = word(queue.device.number, sector, index);
            self.expect(TARGET + 4 * index, u32::MAX, expected, "data of a good read");
        }
    }
}

/// What disks are made of: the word at `index` of a sector.
pub fn word(disk: u32, sector: u32, index: u32) -> u32 {
    0x8000_0000 | disk << 24 | sector << 8 | index
}
