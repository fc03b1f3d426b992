//! The driver's side of a device, for tests: memory, rings, and chains both good and bad.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use virtio_bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::{Queue, QueueT, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Activation, ActiveQueue, Interrupt, Memory, VirtioDevice, Worker};

/// Two regions without a gap, then nothing.
pub const REGION_BOUNDARY: u64 = 0x10_0000;
pub const RAM_END: u64 = 0x20_0000;
/// Where tests put their buffers; the rings lie below.
pub const DATA: u64 = 0x2_0000;

const RING_AREA: u64 = 0x1000;
const RING_STRIDE: u64 = 0x4000;
const AVAIL_OFFSET: u64 = 0x1000;
const USED_OFFSET: u64 = 0x2000;

/// Where the parts of the first queue are.
pub mod ring {
    pub const TABLE: u64 = super::RING_AREA;
    pub const AVAILABLE: u64 = TABLE + super::AVAIL_OFFSET;
    pub const USED: u64 = TABLE + super::USED_OFFSET;
}

pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A buffer of a chain, as the device may use it.
#[derive(Clone, Copy, Debug)]
pub enum Buffer {
    Readable(u64, u32),
    Writable(u64, u32),
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u32,
    pub written: u32,
}

pub fn memory() -> Memory {
    let boundary = REGION_BOUNDARY as usize;
    Arc::new(
        GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), boundary),
            (GuestAddress(REGION_BOUNDARY), RAM_END as usize - boundary),
        ])
        .expect("anonymous memory of 2 MiB"),
    )
}

/// A guest with one activated device.
pub struct Driver {
    pub memory: Memory,
    pub interrupt: Arc<Interrupt>,
    pub queues: Vec<DriverQueue>,
    features: u64,
    manager: EventManager<Box<dyn Worker>>,
    worker: Option<SubscriberId>,
}

impl Driver {
    /// Activates `device` with all that it offers.
    pub fn new(device: &mut dyn VirtioDevice) -> Self {
        let features = device.features();
        Self::with_features(device, features)
    }

    pub fn with_features(device: &mut dyn VirtioDevice, features: u64) -> Self {
        let memory = memory();
        let queues = (0..).zip(device.queue_max_sizes());
        let queues = queues.map(|(index, size)| DriverQueue::new(&memory, index, *size)).collect();
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let mut driver = Self {
            memory,
            interrupt: Arc::new(Interrupt::new(line)),
            queues,
            features,
            manager: EventManager::new().expect("an epoll instance"),
            worker: None,
        };
        driver.activate(device);
        driver
    }

    /// Sets DRIVER_OK with fresh rings.
    pub fn activate(&mut self, device: &mut dyn VirtioDevice) {
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = self.queues.iter_mut().map(|queue| queue.reset(event_idx)).collect();
        let worker = device
            .activate(Activation {
                features: self.features,
                queues,
                memory: Arc::clone(&self.memory),
                interrupt: Arc::clone(&self.interrupt),
            })
            .expect("the device activates with all queues ready");
        self.worker = Some(self.manager.add_subscriber(worker));
        self.run();
    }

    /// What a write of 0 to the device status does.
    pub fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            drop(self.manager.remove_subscriber(worker).expect("the worker is subscribed"));
        }
        self.interrupt.reset();
    }

    /// Notifies the device of a queue and runs its worker until it waits again.
    pub fn kick(&mut self, queue: usize) {
        self.queues[queue].notify.write(1).expect("the counter is low");
        self.run();
    }

    /// Runs the worker until it waits for events; panics if it never does.
    pub fn run(&mut self) {
        for _ in 0..10_000 {
            if self.manager.run_with_timeout(0).expect("epoll works") == 0 {
                return;
            }
        }
        panic!("the worker never waits");
    }

    /// Runs the worker for one round of events, waiting for the first one.
    pub fn run_for(&mut self, timeout_ms: i32) -> usize {
        self.manager.run_with_timeout(timeout_ms).expect("epoll works")
    }

    /// Makes a chain available, kicks, and returns what was used.
    pub fn submit(&mut self, queue: usize, buffers: &[Buffer]) -> Vec<Used> {
        self.queues[queue].add(buffers);
        self.kick(queue);
        self.queues[queue].take_used()
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).expect("the address is in RAM");
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("the address is in RAM");
        bytes
    }

    /// All of RAM but the rings.
    pub fn snapshot(&self) -> Vec<u8> {
        self.read(DATA, (RAM_END - DATA) as usize)
    }

    /// Panics if RAM differs from `before` anywhere but in `ranges`.
    pub fn assert_unchanged_except(&self, before: &[u8], ranges: &[Range<u64>]) {
        const PAGE: usize = 4096; // most pages are equal, and compared at once
        let after = self.snapshot();
        for (page, (before, after)) in before.chunks(PAGE).zip(after.chunks(PAGE)).enumerate() {
            if before == after {
                continue;
            }
            let start = DATA + (page * PAGE) as u64;
            for (address, (old, new)) in (start..).zip(before.iter().zip(after)) {
                if old != new && !ranges.iter().any(|range| range.contains(&address)) {
                    panic!("the device changed the byte at {address:#x}");
                }
            }
        }
    }
}

/// A virtqueue from the driver's side. Descriptors are taken in order from 0 on and, when
/// they were used, again after all others.
pub struct DriverQueue {
    pub size: u16,
    pub notify: Arc<EventFd>,
    memory: Memory,
    base: u64,
    event_idx: bool,
    free: VecDeque<u16>,
    /// The descriptors of each chain in flight, by its head.
    in_flight: HashMap<u32, Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl DriverQueue {
    fn new(memory: &Memory, index: u64, size: u16) -> Self {
        assert!(size <= 256, "larger rings do not fit the layout");
        Self {
            size,
            notify: Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd")),
            memory: Arc::clone(memory),
            base: RING_AREA + index * RING_STRIDE,
            event_idx: false,
            free: VecDeque::new(),
            in_flight: HashMap::new(),
            next_available: 0,
            next_used: 0,
        }
    }

    fn reset(&mut self, event_idx: bool) -> ActiveQueue {
        self.event_idx = event_idx;
        self.free = (0..self.size).collect();
        self.in_flight.clear();
        self.next_available = 0;
        self.next_used = 0;
        let zeros = [0; RING_STRIDE as usize];
        self.memory.write_slice(&zeros, GuestAddress(self.base)).expect("the rings are in RAM");
        let mut queue = Queue::new(self.size).expect("the size is a power of two");
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some((self.base + AVAIL_OFFSET) as u32), Some(0));
        queue.set_used_ring_address(Some((self.base + USED_OFFSET) as u32), Some(0));
        queue.set_ready(true);
        ActiveQueue { queue, notify: Arc::clone(&self.notify) }
    }

    /// Makes a chain of these buffers available and returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let indices = self.take_descriptors(buffers.len());
        write_chain(&self.memory, self.base, &indices, buffers);
        let head = indices[0];
        self.in_flight.insert(head.into(), indices);
        self.publish(head);
        head
    }

    /// The same with the descriptors in an indirect table at `table`.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> u16 {
        let indices: Vec<u16> = (0..buffers.len() as u16).collect();
        write_chain(&self.memory, table, &indices, buffers);
        let head = self.take_descriptors(1)[0];
        self.in_flight.insert(head.into(), vec![head]);
        self.put(head, table, buffers.len() as u32 * 16, INDIRECT, 0);
        self.publish(head);
        head
    }

    /// The head that the next chain will have.
    pub fn next_free(&self) -> u16 {
        *self.free.front().expect("a free descriptor")
    }

    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    fn take_descriptors(&mut self, count: usize) -> Vec<u16> {
        assert!(count <= self.free.len(), "out of descriptors");
        self.free.drain(..count).collect()
    }

    /// Writes a descriptor as it is.
    pub fn put(&self, index: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        put_descriptor(
            &self.memory,
            self.base,
            index,
            Descriptor::new(address, bytes, flags, next),
        );
    }

    /// Puts a head into the available ring and advances its index.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.store(AVAIL_OFFSET + 4 + slot * 2, head);
        self.set_available_index(self.next_available.wrapping_add(1));
    }

    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.store(AVAIL_OFFSET + 2, index);
    }

    /// What the device has used since the last call. Asks for the next interrupt.
    pub fn take_used(&mut self) -> Vec<Used> {
        let index: u16 = self.load(USED_OFFSET + 2);
        let mut used = Vec::new();
        while self.next_used != index {
            let slot = self.base + USED_OFFSET + 4 + u64::from(self.next_used % self.size) * 8;
            let [head, written]: [u32; 2] =
                self.memory.read_obj(GuestAddress(slot)).expect("the rings are in RAM");
            used.push(Used { head, written });
            self.free.extend(self.in_flight.remove(&head).into_iter().flatten());
            self.next_used = self.next_used.wrapping_add(1);
        }
        if self.event_idx {
            self.store(AVAIL_OFFSET + 4 + u64::from(self.size) * 2, self.next_used);
        }
        used
    }

    fn store(&self, offset: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(self.base + offset)).expect("rings in RAM");
    }

    fn load(&self, offset: u64) -> u16 {
        self.memory.read_obj(GuestAddress(self.base + offset)).expect("rings in RAM")
    }
}

/// Writes a chain of descriptors into the table at `table`.
pub fn write_chain(memory: &Memory, table: u64, indices: &[u16], buffers: &[Buffer]) {
    for (position, (index, buffer)) in indices.iter().zip(buffers).enumerate() {
        let (address, bytes, write) = match *buffer {
            Buffer::Readable(address, bytes) => (address, bytes, 0),
            Buffer::Writable(address, bytes) => (address, bytes, WRITE),
        };
        let (next_flag, next) = match indices.get(position + 1) {
            Some(next) => (NEXT, *next),
            None => (0, 0),
        };
        let descriptor = Descriptor::new(address, bytes, write | next_flag, next);
        put_descriptor(memory, table, *index, descriptor);
    }
}

/// Writes one descriptor into the table at `table`.
pub fn put_descriptor(memory: &Memory, table: u64, index: u16, descriptor: Descriptor) {
    let address = table + u64::from(index) * size_of::<Descriptor>() as u64;
    memory.write_obj(descriptor, GuestAddress(address)).expect("the table is in RAM");
}
