//! Ring arithmetic in every small case: sizes, indices around their wrap, heads in and out
//! of range, and the suppression of notifications, against models that are plain to see.

use std::ops::Range;

use vm_memory::Bytes;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::virtio::testing::memory;

const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x4000;

const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// Where the counters of a ring may wrap, or be taken for negative.
const STARTS: [u16; 6] = [0, 1, 0x7fff, 0x8000, 65_534, 65_535];

/// A ring over memory that all cases use again.
struct Ring {
    memory: Memory,
    interrupt: Arc<Interrupt>,
    line: EventFd,
    notify: Arc<EventFd>,
}

impl Ring {
    fn new() -> Self {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = Self {
            memory: memory(),
            interrupt: Arc::new(Interrupt::new(line.try_clone().unwrap())),
            line,
            notify: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
        };
        // Each descriptor is a chain by itself, told by its length.
        for index in 0..8_u64 {
            let descriptor = [DATA as u32, 0, index as u32 + 1, 0];
            ring.put(TABLE + 16 * index, descriptor);
        }
        ring
    }

    fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    /// A queue that has come to `start` on both rings.
    fn queue(&self, size: u16, start: u16, features: u64) -> DeviceQueue {
        self.interrupt.reset();
        let _ = self.line.read();
        self.memory.write_slice(&[0; 0x80], GuestAddress(AVAILABLE)).unwrap();
        self.memory.write_slice(&[0; 0x80], GuestAddress(USED)).unwrap();
        let mut queue = Queue::new(size).unwrap();
        queue.set_desc_table_address(Some(TABLE as u32), None);
        queue.set_avail_ring_address(Some(AVAILABLE as u32), None);
        queue.set_used_ring_address(Some(USED as u32), None);
        queue.set_ready(true);
        queue.set_next_avail(start);
        queue.set_next_used(start);
        let active = ActiveQueue { queue, notify: Arc::clone(&self.notify) };
        DeviceQueue::new(active, features, &self.memory, &self.interrupt)
    }

    fn set_available_index(&self, index: u16) {
        self.put(AVAILABLE + 2, index);
    }

    /// Whether the driver was interrupted since the last call.
    fn was_signalled(&self) -> bool {
        self.line.read().is_ok()
    }

    /// The used elements of a range of indices, as (head, bytes written).
    fn used(&self, size: u16, indices: Range<u32>) -> Vec<(u32, u32)> {
        let slot = |index: u32| USED + 4 + 8 * u64::from(index as u16 % size);
        indices.map(|index| self.get::<[u32; 2]>(slot(index))).map(|[a, b]| (a, b)).collect()
    }
}

#[test]
fn every_small_ring_is_served_or_latched() {
    let ring = Ring::new();
    let (mut served, mut latched) = (0, 0);
    for size in [1_u16, 2, 4] {
        let deltas = (0..=size + 2).chain([0x7fff, 0x8000, 0xffff]);
        for (start, delta) in
            STARTS.into_iter().flat_map(|start| deltas.clone().map(move |delta| (start, delta)))
        {
            // Every choice of heads, one out of range included.
            for code in 0..u32::from(size + 1).pow(size.into()) {
                let heads: Vec<u16> = (0..size.into())
                    .map(|slot| (code / u32::from(size + 1).pow(slot)) as u16 % (size + 1))
                    .collect();
                let features = if code % 2 == 0 { EVENT_IDX } else { 0 };
                let good = check_ring(&ring, size, start, delta, &heads, features);
                if good { served += 1 } else { latched += 1 }
            }
        }
    }
    assert!(served > 1000 && latched > 1000, "{served} {latched}");
}

/// Serves the ring, compares with the model, and returns whether it was without fault.
fn check_ring(
    ring: &Ring,
    size: u16,
    start: u16,
    delta: u16,
    heads: &[u16],
    features: u64,
) -> bool {
    let context = || format!("size {size} start {start} delta {delta:#x} heads {heads:?}");
    let mut queue = ring.queue(size, start, features);
    for (slot, head) in (0..).zip(heads) {
        ring.put(AVAILABLE + 4 + 2 * slot, *head);
    }
    ring.set_available_index(start.wrapping_add(delta));
    let mut seen = Vec::new();
    queue.serve(Budget { chains: 64, bytes: 1 << 20 }, |chain| {
        seen.push(chain.bytes() as u32);
        Ok(7)
    });

    // The model: as many as the index says if they fit the ring, up to a bad head.
    let count = if delta > size { 0 } else { delta };
    let slots = (0..count).map(|n| heads[usize::from(start.wrapping_add(n) % size)]);
    let expected: Vec<u32> = slots.take_while(|head| *head < size).map(u32::from).collect();
    let good = delta <= size && expected.len() == usize::from(count);

    assert_eq!(seen, expected.iter().map(|head| head + 1).collect::<Vec<_>>(), "{}", context());
    assert_eq!(queue.failure().is_none(), good, "{}", context());
    assert_eq!(ring.interrupt.is_reset_needed(), !good, "{}", context());
    let used_index: u16 = ring.get(USED + 2);
    let expected_index = start.wrapping_add(expected.len() as u16);
    if !expected.is_empty() {
        assert_eq!(used_index, expected_index, "{}", context());
    }
    let first = u32::from(start);
    let used = ring.used(size, first..first + expected.len() as u32);
    assert!(used.iter().copied().eq(expected.iter().map(|head| (*head, 7))), "{}", context());
    // A latched queue is not looked at again.
    if !good {
        ring.set_available_index(expected_index.wrapping_add(1));
        assert!(queue.pop().is_none() && !queue.enable_notifications(), "{}", context());
    }
    good
}

/// Used entries are numbered from `start` on; the driver wants to hear of number
/// `used_event` (virtio 1.2 §2.7.7.1). So a batch is told if that number is in it.
#[test]
fn the_driver_is_interrupted_exactly_when_it_asked_for_it() {
    let ring = Ring::new();
    const SIZE: u16 = 4;
    for start in STARTS {
        for (first, second) in (0..=SIZE).flat_map(|a| (0..=SIZE).map(move |b| (a, b))) {
            for distance in (-10_i16..=10).chain([i16::MIN, i16::MIN + 1, i16::MAX]) {
                let used_event = start.wrapping_add_signed(distance);
                let mut queue = ring.queue(SIZE, start, EVENT_IDX);
                ring.put(AVAILABLE + 4 + 2 * u64::from(SIZE), used_event);
                let mut next = start;
                for batch in [first, second] {
                    use_chains(&ring, &mut queue, next, batch);
                    queue.signal();
                    let wanted = (0..batch).any(|n| next.wrapping_add(n) == used_event);
                    assert_eq!(
                        ring.was_signalled(),
                        wanted,
                        "start {start} batches {first}, {second} event {used_event}"
                    );
                    next = next.wrapping_add(batch);
                }
            }
        }
    }
}

#[test]
fn without_event_indices_every_batch_interrupts() {
    let ring = Ring::new();
    for (start, batch) in STARTS.into_iter().flat_map(|start| (0..=4).map(move |n| (start, n))) {
        let mut queue = ring.queue(4, start, 0);
        use_chains(&ring, &mut queue, start, batch);
        queue.signal();
        assert_eq!(ring.was_signalled(), batch > 0);
        queue.signal();
        assert!(!ring.was_signalled(), "once for each batch");
    }
}

/// Makes `count` chains available and completes them.
fn use_chains(ring: &Ring, queue: &mut DeviceQueue, next: u16, count: u16) {
    ring.set_available_index(next.wrapping_add(count));
    for _ in 0..count {
        let chain = queue.pop().expect("a chain is available");
        queue.complete(chain, 0);
    }
    assert!(queue.pop().is_none());
}

/// With event indices the device names the next chain it has not seen; without, it says
/// whether it listens at all.
#[test]
fn the_device_says_what_it_wants_to_be_notified_of() {
    let ring = Ring::new();
    const SIZE: u16 = 4;
    const NO_NOTIFY: u16 = 1;
    for (start, more) in STARTS.into_iter().flat_map(|start| (0..=SIZE).map(move |n| (start, n))) {
        let mut queue = ring.queue(SIZE, start, EVENT_IDX);
        ring.set_available_index(start.wrapping_add(more));
        assert_eq!(queue.enable_notifications(), more > 0);
        assert_eq!(ring.get::<u16>(USED + 4 + 8 * u64::from(SIZE)), start);

        let mut queue = ring.queue(SIZE, start, 0);
        ring.set_available_index(start.wrapping_add(more));
        queue.disable_notifications();
        assert_eq!(ring.get::<u16>(USED), NO_NOTIFY);
        assert_eq!(queue.enable_notifications(), more > 0);
        assert_eq!(ring.get::<u16>(USED), 0);
    }
}

#[test]
fn a_chain_that_is_put_back_comes_again_across_the_wrap() {
    let ring = Ring::new();
    for start in STARTS {
        let mut queue = ring.queue(2, start, 0);
        ring.put(AVAILABLE + 4, [0_u16, 1]);
        ring.set_available_index(start.wrapping_add(2));
        for _ in 0..3 {
            let chain = queue.pop().expect("two are available");
            assert_eq!(chain.head, start % 2);
            queue.undo_pop(chain);
        }
        let chain = queue.pop().expect("it is still there");
        queue.complete(chain, 0);
        assert_eq!(queue.pop().expect("the other one").head, (start % 2) ^ 1);
    }
}
