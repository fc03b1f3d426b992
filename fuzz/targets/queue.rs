//! A driver that builds rings and descriptor chains of every kind, and a device that reads
//! and writes them all. What the device is given is compared, chain by chain, with a second
//! reading of the same memory by the rules of virtio 1.2 §2.7.

#![no_main]

use std::sync::{
    Arc,
    atomic::{AtomicU16, Ordering},
};

use caisson_vmm::virtio::{
    ActivateError, Activation, Memory, VirtioDevice, Worker,
    chain::{Chain, MAX_DESCRIPTORS},
    device_queue::{Budget, DeviceQueue, QueueError, RING_FEATURES, single_queue},
    testing::{Buffer, DATA, Driver, INDIRECT, NEXT, RAM_END, WRITE, put_descriptor, ring},
};
use event_manager::{EventOps, Events, MutEventSubscriber};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

const TABLE: u64 = DATA;
/// Most bytes of a chain that are compared, or written.
const MAX_BYTES: usize = 64 << 10;

#[derive(Arbitrary, Debug)]
struct Input {
    size_log2: u8,
    indirect: bool,
    event_idx: bool,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// A chain as a driver builds it.
    Good(Vec<(u16, u16, bool)>, bool),
    Descriptor(u8, Raw),
    Inner(u8, Raw),
    Publish(u8),
    PublishAny(u16),
    Jump(u16),
    /// Bytes anywhere in the rings.
    Scribble(u16, u32),
    Kick,
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Raw {
    address: Place,
    bytes: Length,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Debug)]
enum Place {
    Data(u16),
    Table,
    Ring(u16),
    AtEnd(u16),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Small(u8),
    Descriptors(u8),
    Any(u32),
}

impl Raw {
    fn descriptor(&self, size: u16) -> Descriptor {
        let address = match self.address {
            Place::Data(offset) => DATA + 0x1_0000 + u64::from(offset) * 16,
            Place::Table => TABLE,
            Place::Ring(offset) => 0x1000 + u64::from(offset % 0x3000),
            Place::AtEnd(before) => RAM_END - u64::from(before),
            Place::Any(address) => address,
        };
        let bytes = match self.bytes {
            Length::Small(bytes) => bytes.into(),
            Length::Descriptors(count) => u32::from(count) * 16,
            Length::Any(bytes) => bytes,
        };
        // Now and then one beyond the table.
        let next = u16::from(self.next) % (size + 1);
        Descriptor::new(address, bytes, u16::from(self.flags & 7), next)
    }
}

/// A device that does the same with every chain.
struct Probe {
    size: [u16; 1],
    /// How many chains were taken from the present ring.
    taken: Arc<AtomicU16>,
}

struct ProbeWorker {
    queue: DeviceQueue,
    memory: Memory,
    model: Model,
    taken: Arc<AtomicU16>,
}

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        4
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &self.size
    }
    fn features(&self) -> u64 {
        RING_FEATURES
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let indirect = activation.features & 1 << 28 != 0;
        self.taken.store(0, Ordering::Relaxed);
        Ok(Box::new(ProbeWorker {
            memory: Arc::clone(&activation.memory),
            model: Model { size: self.size[0], indirect },
            queue: single_queue(activation)?,
            taken: Arc::clone(&self.taken),
        }))
    }
}

impl MutEventSubscriber for ProbeWorker {
    fn init(&mut self, ops: &mut EventOps) {
        self.queue.register(ops);
    }
    fn process(&mut self, events: Events, ops: &mut EventOps) {
        self.queue.on_event(events, ops);
        let Self { queue, memory, model, taken } = self;
        queue.serve(Budget { chains: 8, bytes: 1 << 20 }, |chain| {
            let next = taken.fetch_add(1, Ordering::Relaxed);
            handle(memory, *model, next, chain)
        });
        queue.signal();
    }
}

fn handle(memory: &Memory, model: Model, next: u16, chain: &mut Chain) -> Result<u32, QueueError> {
    let expected = model.next_chain(memory, next);
    let Available::Chain { readable, writable } = expected else {
        panic!("the device was given a chain where there is {expected:?}");
    };
    assert_eq!(chain.readable.bytes() as u64, total(&readable));
    assert_eq!(chain.writable.bytes() as u64, total(&writable));
    let mut found = vec![0; chain.readable.bytes().min(MAX_BYTES)];
    let mut wanted = found.clone();
    assert_eq!(chain.readable.read(&mut found), found.len());
    fill(memory, &readable, &mut wanted);
    assert!(found == wanted, "other bytes than the chain has");
    let mut written = [0x5a; MAX_BYTES];
    let count = chain.writable.bytes().min(MAX_BYTES);
    assert_eq!(chain.writable.write(&written[..count]), count);
    fill(memory, &writable, &mut written[..count]);
    assert!(written[..count].iter().all(|byte| *byte == 0x5a), "not written where it should be");
    Ok(count as u32)
}

fn total(parts: &[(u64, u64)]) -> u64 {
    parts.iter().map(|(_, bytes)| bytes).sum()
}

/// Copies the first bytes of `parts`.
fn fill(memory: &Memory, parts: &[(u64, u64)], mut to: &mut [u8]) {
    for (address, bytes) in parts {
        let count = to.len().min(*bytes as usize);
        memory.read_slice(&mut to[..count], GuestAddress(*address)).expect("the part is in RAM");
        to = &mut to[count..];
    }
}

/// The rules, as plainly as they can be written.
#[derive(Clone, Copy)]
struct Model {
    size: u16,
    indirect: bool,
}

#[derive(Debug)]
enum Available {
    Nothing,
    Broken,
    Chain { readable: Vec<(u64, u64)>, writable: Vec<(u64, u64)> },
}

impl Model {
    /// What a device finds that has taken `next` chains.
    fn next_chain(self, memory: &Memory, next: u16) -> Available {
        let index: u16 = memory.read_obj(GuestAddress(ring::AVAILABLE + 2)).expect("in RAM");
        match index.wrapping_sub(next) {
            0 => return Available::Nothing,
            ahead if ahead > self.size => return Available::Broken,
            _ => {}
        }
        let slot = ring::AVAILABLE + 4 + 2 * u64::from(next % self.size);
        let head = memory.read_obj(GuestAddress(slot)).expect("in RAM");
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        match self.walk(memory, head, &mut readable, &mut writable) {
            Some(()) => Available::Chain { readable, writable },
            None => Available::Broken,
        }
    }

    /// `None`: the chain breaks a rule.
    fn walk(
        self,
        memory: &Memory,
        mut index: u16,
        readable: &mut Vec<(u64, u64)>,
        writable: &mut Vec<(u64, u64)>,
    ) -> Option<()> {
        let (mut table, mut size, mut inner) = (ring::TABLE, u64::from(self.size), false);
        let mut steps = 0;
        loop {
            if u64::from(index) >= size || steps == size {
                return None;
            }
            steps += 1;
            let address = table.checked_add(16 * u64::from(index))?;
            let bytes: [u8; 16] = memory.read_obj(GuestAddress(address)).ok()?;
            let start = u64::from_le_bytes(bytes[..8].try_into().ok()?);
            let length = u64::from(u32::from_le_bytes(bytes[8..12].try_into().ok()?));
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            let next = u16::from_le_bytes([bytes[14], bytes[15]]);
            if flags & INDIRECT != 0 {
                let count = length / 16;
                let fits = length % 16 == 0 && (1..=u64::from(MAX_DESCRIPTORS)).contains(&count);
                if !self.indirect || inner || flags & NEXT != 0 || !fits {
                    return None;
                }
                (table, size, inner, index, steps) = (start, count, true, 0, 0);
                continue;
            }
            let sum = total(readable) + total(writable) + length;
            if length == 0 || sum > u64::from(u32::MAX) || start.checked_add(length)? > RAM_END {
                return None;
            }
            if flags & WRITE != 0 {
                writable.push((start, length));
            } else if writable.is_empty() {
                readable.push((start, length));
            } else {
                return None;
            }
            if flags & NEXT == 0 {
                return Some(());
            }
            index = next;
        }
    }
}

struct Guest {
    driver: Driver,
    device: Probe,
    model: Model,
}

impl Guest {
    fn new(input: &Input) -> Self {
        let size = 1 << (input.size_log2 % 9);
        let mut device = Probe { size: [size], taken: Arc::default() };
        let mut features = 0;
        for (wanted, bit) in [(input.indirect, 28), (input.event_idx, 29)] {
            features |= u64::from(wanted) << bit;
        }
        let driver = Driver::with_features(&mut device, features);
        Self { driver, device, model: Model { size, indirect: input.indirect } }
    }

    fn step(&mut self, op: &Op) {
        let size = self.model.size;
        let queue = &mut self.driver.queues[0];
        match *op {
            Op::Good(ref buffers, indirect) => {
                let mut chain: Vec<_> = buffers.iter().take(queue.free_count()).collect();
                chain.sort_by_key(|(_, _, write)| *write);
                let chain: Vec<Buffer> = chain.into_iter().map(good_buffer).collect();
                if chain.is_empty() {
                } else if indirect {
                    queue.add_indirect(TABLE, &chain[..chain.len().min(32)]);
                } else {
                    queue.add(&chain);
                }
            }
            Op::Descriptor(index, ref raw) => {
                let descriptor = raw.descriptor(size);
                put_descriptor(
                    &self.driver.memory,
                    ring::TABLE,
                    u16::from(index) % size,
                    descriptor,
                );
            }
            Op::Inner(index, ref raw) => {
                let descriptor = raw.descriptor(32);
                put_descriptor(&self.driver.memory, TABLE, u16::from(index % 32), descriptor);
            }
            Op::Publish(head) => queue.publish(u16::from(head) % size),
            Op::PublishAny(head) => queue.publish(head),
            Op::Jump(index) => queue.set_available_index(index),
            Op::Scribble(offset, value) => {
                let address = ring::TABLE + u64::from(offset % 0x3000);
                self.driver.write(address, &value.to_le_bytes());
            }
            Op::Kick => {
                self.driver.kick(0);
                self.compare();
            }
            Op::Reset => {
                self.driver.reset();
                self.driver.activate(&mut self.device);
            }
        }
    }

    /// The device has taken all that there is, or stopped where a rule is broken.
    fn compare(&mut self) {
        let taken = self.device.taken.load(Ordering::Relaxed);
        let rest = self.model.next_chain(&self.driver.memory, taken);
        if self.driver.interrupt.is_reset_needed() {
            assert!(matches!(rest, Available::Broken), "the queue was latched at {rest:?}");
            self.driver.reset();
            self.driver.activate(&mut self.device);
        } else {
            assert!(matches!(rest, Available::Nothing), "the device does not take {rest:?}");
            self.driver.queues[0].take_used();
        }
    }
}

fn good_buffer(&(offset, bytes, write): &(u16, u16, bool)) -> Buffer {
    let (address, bytes) = (DATA + 0x1_0000 + u64::from(offset), u32::from(bytes % 8192) + 1);
    if write { Buffer::Writable(address, bytes) } else { Buffer::Readable(address, bytes) }
}

fuzz_target!(|input: Input| {
    let mut guest = Guest::new(&input);
    for op in input.ops.iter().take(48) {
        guest.step(op);
    }
    guest.step(&Op::Kick);
});
