//! The transport driven as a guest would, by register accesses alone.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use proptest::prelude::*;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::io_thread::IoLoop;

const MEMORY_BYTES: u64 = 1 << 20;
const QUEUE_MAX: u16 = 64;

/// Counts its workers; checks what it is activated with.
#[derive(Default)]
struct Probe {
    workers: Arc<AtomicUsize>,
    activations: Arc<AtomicUsize>,
    config: [u8; 8],
}

struct ProbeWorker(Arc<AtomicUsize>);

impl MutEventSubscriber for ProbeWorker {
    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
    fn init(&mut self, _ops: &mut EventOps) {}
}

impl Drop for ProbeWorker {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for Probe {
    fn device_id(&self) -> u32 {
        4
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_MAX; 2]
    }
    fn features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let rest = self.config.get(offset as usize..).unwrap_or(&[]);
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let rest = self.config.get_mut(offset as usize..).unwrap_or(&mut []);
        rest.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
    }
    fn activate(
        &mut self,
        activation: Activation,
    ) -> Result<Box<dyn super::super::Worker>, ActivateError> {
        assert_eq!(activation.features & !(self.features() | 1 << 32), 0);
        assert_eq!(activation.queues.len(), 2);
        for (index, ActiveQueue { queue, .. }) in activation.queues.iter().enumerate() {
            if !queue.ready() {
                return Err(ActivateError::QueueNotReady { index });
            }
            assert!(queue.size().is_power_of_two() && queue.size() <= QUEUE_MAX);
            assert!(queue.desc_table() + 16 * u64::from(queue.size()) <= MEMORY_BYTES);
        }
        self.activations.fetch_add(1, Ordering::SeqCst);
        self.workers.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(ProbeWorker(self.workers.clone())))
    }
}

struct Guest {
    transport: Transport,
    workers: Arc<AtomicUsize>,
    activations: Arc<AtomicUsize>,
}

impl Guest {
    fn new() -> Self {
        static IO: OnceLock<IoHandle> = OnceLock::new();
        static MEMORY: OnceLock<Memory> = OnceLock::new();
        let io = IO.get_or_init(|| {
            let io = IoLoop::new().unwrap();
            let handle = io.handle();
            thread::spawn(move || io.run());
            handle
        });
        let memory = MEMORY.get_or_init(|| crate::memory::allocate(MEMORY_BYTES).unwrap());
        let device = Probe::default();
        let (workers, activations) = (device.workers.clone(), device.activations.clone());
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = Transport::new(
            Box::new(device),
            Arc::new(Interrupt::new(event())),
            (0..2).map(|_| Arc::new(event())).collect(),
            memory.clone(),
            io.clone(),
        );
        Self { transport, workers, activations }
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn negotiate(&mut self) {
        self.write(offset::STATUS, 0);
        self.write(offset::STATUS, 1);
        self.write(offset::STATUS, 3);
        self.write(offset::DRIVER_FEATURES_SELECT, 1);
        self.write(offset::DRIVER_FEATURES, 1);
        self.write(offset::STATUS, 11);
        assert_eq!(self.read(offset::STATUS), 11);
    }

    fn set_queue(&mut self, index: u32, size: u32, desc: u32) {
        self.write(offset::QUEUE_SELECT, index);
        self.write(offset::QUEUE_SIZE, size);
        self.write(offset::QUEUE_DESC_LOW, desc);
        self.write(offset::QUEUE_AVAIL_LOW, 0x2000);
        self.write(offset::QUEUE_USED_LOW, 0x3000);
        self.write(offset::QUEUE_READY, 1);
    }

    fn activated() -> Self {
        let mut guest = Self::new();
        guest.negotiate();
        guest.set_queue(0, 64, 0x1000);
        guest.set_queue(1, 64, 0x4000);
        guest.write(offset::STATUS, 15);
        assert_eq!(guest.read(offset::STATUS), 15);
        guest
    }

    fn counts(&self) -> (usize, usize) {
        (self.activations.load(Ordering::SeqCst), self.workers.load(Ordering::SeqCst))
    }
}

#[test]
fn a_driver_identifies_activates_resets_and_activates_again() {
    let mut guest = Guest::new();
    assert_eq!(guest.read(offset::MAGIC), 0x7472_6976);
    assert_eq!(guest.read(offset::VERSION), 2);
    assert_eq!(guest.read(offset::DEVICE_ID), 4);
    let mut guest = Guest::activated();
    assert_eq!(guest.counts(), (1, 1));
    guest.write(offset::STATUS, 0);
    assert_eq!(guest.read(offset::STATUS), 0);
    assert_eq!(guest.counts(), (1, 0), "the reset has waited for the worker's end");
    guest.negotiate();
    guest.set_queue(0, 2, 0x1000);
    guest.set_queue(1, 2, 0x1000);
    guest.write(offset::STATUS, 15);
    assert_eq!(guest.counts(), (2, 1));
}

#[test]
fn a_queue_outside_memory_needs_a_reset() {
    for desc in [MEMORY_BYTES as u32, MEMORY_BYTES as u32 - 16, 0xffff_fff0] {
        let mut guest = Guest::new();
        guest.negotiate();
        guest.set_queue(0, 64, desc);
        guest.set_queue(1, 64, 0x4000);
        guest.write(offset::STATUS, 15);
        assert_eq!(guest.read(offset::STATUS), 15 | NEEDS_RESET);
        assert_eq!(guest.read(offset::INTERRUPT_STATUS), 2);
        assert_eq!(guest.counts(), (0, 0));
        guest.write(offset::STATUS, 0);
        assert_eq!(guest.read(offset::STATUS), 0);
    }
}

#[test]
fn a_queue_that_ends_at_the_top_of_memory_works() {
    let mut guest = Guest::new();
    guest.negotiate();
    guest.set_queue(0, 64, MEMORY_BYTES as u32 - 16 * 64);
    guest.set_queue(1, 64, 0x4000);
    guest.write(offset::STATUS, 15);
    assert_eq!(guest.counts(), (1, 1));
}

#[test]
fn a_queue_that_the_device_needs_and_does_not_get_needs_a_reset() {
    let mut guest = Guest::new();
    guest.negotiate();
    guest.set_queue(0, 64, 0x1000);
    guest.write(offset::STATUS, 15);
    assert_eq!(guest.read(offset::STATUS), 15 | NEEDS_RESET);
}

#[test]
fn accesses_of_another_width_are_ignored() {
    let mut guest = Guest::activated();
    for width in [1, 2, 8] {
        let mut data = vec![0xff; width];
        guest.transport.read(offset::MAGIC, &mut data);
        assert_eq!(data, vec![0; width]);
        guest.transport.write(offset::STATUS, &vec![0; width]);
    }
    guest.transport.write(offset::STATUS + 2, &[0; 4]);
    assert_eq!(guest.read(offset::STATUS), 15);
    assert_eq!(guest.transport.refused.count(), 7);
}

#[test]
fn the_config_space_is_zero_behind_its_end() {
    let mut guest = Guest::new();
    guest.transport.write(offset::CONFIG + 6, &[1; 8]);
    let mut data = [0xff; 8];
    guest.transport.read(offset::CONFIG + 4, &mut data);
    assert_eq!(data, [0, 0, 1, 1, 0, 0, 0, 0]);
    guest.transport.read(0xfff, &mut data);
    assert_eq!(data, [0; 8]);
    guest.transport.write(0xfff, &[1; 8]);
}

#[test]
fn an_active_device_keeps_its_queues_and_features() {
    let mut guest = Guest::activated();
    let before = guest.transport.registers.clone();
    guest.set_queue(0, 2, 0x8000);
    guest.write(offset::QUEUE_READY, 0);
    guest.write(offset::DRIVER_FEATURES, 0);
    guest.write(offset::STATUS, 15);
    let after = guest.transport.registers.clone();
    assert_eq!(after.queues, before.queues);
    assert_eq!(after.driver_features, before.driver_features);
    assert_eq!(guest.counts(), (1, 1));
}

/// Values and offsets that a driver uses, mixed with ones that none would.
fn access() -> impl Strategy<Value = (u64, u32)> {
    let statuses = prop_oneof![Just(0), Just(1), Just(3), Just(11), Just(15), any::<u32>()];
    let known = [
        offset::DRIVER_FEATURES,
        offset::DRIVER_FEATURES_SELECT,
        offset::QUEUE_SELECT,
        offset::QUEUE_SIZE,
        offset::QUEUE_READY,
        offset::QUEUE_NOTIFY,
        offset::INTERRUPT_ACK,
        offset::QUEUE_DESC_LOW,
        offset::QUEUE_DESC_HIGH,
        offset::QUEUE_AVAIL_LOW,
        offset::QUEUE_USED_LOW,
        offset::QUEUE_USED_HIGH,
    ];
    let values = prop_oneof![
        6 => prop_oneof![Just(0), Just(1), Just(2), Just(64), Just(0x1000)],
        1 => any::<u32>(),
    ];
    prop_oneof![
        4 => (Just(offset::STATUS), statuses),
        8 => (prop::sample::select(known.to_vec()), values),
        1 => (0..0x1000_u64, any::<u32>()),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_panics_or_activates_what_is_not_configured(
        prefix in 0..3_u8,
        accesses in prop::collection::vec((access(), 1..=8_usize), 0..60),
    ) {
        let mut guest = match prefix {
            0 => Guest::new(),
            1 => { let mut guest = Guest::new(); guest.negotiate(); guest }
            _ => Guest::activated(),
        };
        for ((offset, value), width) in accesses {
            let mut data = [0; 8];
            data[..4].copy_from_slice(&value.to_le_bytes());
            // Mostly the width that counts.
            let width = if width > 5 { width } else { 4 };
            guest.transport.write(offset, &data[..width]);
            guest.transport.read(offset, &mut data[..width]);

            let status = guest.read(offset::STATUS);
            let (_, workers) = guest.counts();
            prop_assert!(workers <= 1);
            if workers == 1 {
                prop_assert_eq!(status & 15, 15);
            }
            if status & DRIVER_OK != 0 {
                prop_assert!(status & FEATURES_OK != 0);
                prop_assert!(workers == 1 || status & NEEDS_RESET != 0);
            }
            for queue in &guest.transport.registers.queues {
                prop_assert!(queue.size == 0 || queue.size.is_power_of_two());
                prop_assert!(queue.size <= QUEUE_MAX);
                prop_assert!(!queue.ready || queue.size != 0);
            }
        }
    }
}
