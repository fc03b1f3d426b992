//! virtio-balloon with free page reporting (virtio 1.2 §5.5).
//!
//! Pages that the driver puts into the balloon, or reports as free, go back to the host.
//! The next access makes them anew, so nothing has to happen when the driver takes them
//! out, and a driver that lies only empties its own memory.

mod pages;

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use self::pages::Ranges;
use super::{
    ActivateError, Activation, Interrupt, Memory, VirtioDevice, Worker,
    chain::Chain,
    config_space,
    device_queue::{Budget, DeviceQueue, QueueError, RING_FEATURES, device_queues},
};

const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u64 = 1 << 2;
const VIRTIO_BALLOON_F_REPORTING: u64 = 1 << 5;

/// Inflate, deflate, reporting. As no statistics and hinting queues are offered, the
/// reporting queue follows directly (as Linux and QEMU have it).
const QUEUE_SIZES: [u16; 3] = [64, 64, 64];
/// Giving back a lot takes the host a while.
const BUDGET: Budget = Budget { chains: 32, bytes: 256 << 20 };

/// Where `actual` is in the config space (§5.5.4).
const ACTUAL_OFFSET: u64 = 4;

/// The device as its transport sees it.
#[derive(Default)]
pub struct Balloon(Arc<Shared>);

/// Sets the balloon's size while the VM runs.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

/// The balloon's size in pages of 4 KiB, as the host wants it and as the driver says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonState {
    pub target_pages: u32,
    pub actual_pages: u32,
}

#[derive(Default)]
struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    /// Of the present activation. A lock, as activations and the host come from different
    /// threads; held for a moment only.
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

impl Balloon {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.0))
    }
}

impl BalloonHandle {
    /// Asks the guest for this many pages. It gives what it can spare, when it can.
    pub fn set_target_pages(&self, pages: u32) {
        self.0.target_pages.store(pages, Ordering::Release);
        if let Some(interrupt) = self.0.lock_interrupt().as_ref() {
            interrupt.signal_config_change();
        }
    }

    pub fn state(&self) -> BalloonState {
        self.0.state()
    }
}

impl Shared {
    fn state(&self) -> BalloonState {
        BalloonState {
            target_pages: self.target_pages.load(Ordering::Acquire),
            actual_pages: self.actual_pages.load(Ordering::Acquire),
        }
    }

    fn lock_interrupt(&self) -> std::sync::MutexGuard<'_, Option<Arc<Interrupt>>> {
        self.interrupt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES | VIRTIO_BALLOON_F_DEFLATE_ON_OOM | VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = self.0.state();
        let mut config = [0; 8];
        config[..4].copy_from_slice(&state.target_pages.to_le_bytes());
        config[4..].copy_from_slice(&state.actual_pages.to_le_bytes());
        config_space::read(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(actual)) = (offset, data.try_into()) {
            self.0.actual_pages.store(u32::from_le_bytes(actual), Ordering::Release);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let memory = Arc::clone(&activation.memory);
        let interrupt = Arc::clone(&activation.interrupt);
        // A driver without page reporting leaves that queue out.
        let [inflate, deflate, reporting] = device_queues(activation, 1)?;
        *self.0.lock_interrupt() = Some(interrupt);
        let shared = Arc::clone(&self.0);
        Ok(Box::new(BalloonWorker { inflate, deflate, reporting, memory, shared }))
    }
}

struct BalloonWorker {
    inflate: DeviceQueue,
    deflate: DeviceQueue,
    reporting: DeviceQueue,
    memory: Memory,
    shared: Arc<Shared>,
}

impl MutEventSubscriber for BalloonWorker {
    fn init(&mut self, ops: &mut EventOps) {
        self.inflate.register(ops);
        self.deflate.register(ops);
        self.reporting.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.inflate.on_event(events, ops) {
            self.inflate.serve(BUDGET, |chain| inflate(&self.memory, chain));
            self.inflate.signal();
        } else if self.deflate.on_event(events, ops) {
            self.deflate.serve(BUDGET, |_| Ok(0));
            self.deflate.signal();
        } else if self.reporting.on_event(events, ops) {
            self.reporting.serve(BUDGET, report);
            self.reporting.signal();
        }
    }
}

impl Drop for BalloonWorker {
    fn drop(&mut self) {
        *self.shared.lock_interrupt() = None;
        self.shared.actual_pages.store(0, Ordering::Release);
    }
}

/// Takes pages into the balloon (§5.5.6.1); page numbers outside RAM are ignored.
fn inflate(memory: &Memory, chain: &mut Chain) -> Result<u32, QueueError> {
    let mut ranges = Ranges::new(memory);
    ranges.read_page_numbers(&mut chain.readable);
    ranges.give_back();
    Ok(0)
}

/// Takes back pages that the driver does not use at present (§5.5.6.7): its buffers are
/// these pages.
fn report(chain: &mut Chain) -> Result<u32, QueueError> {
    pages::give_back_buffers(&mut chain.writable);
    Ok(0)
}

#[cfg(test)]
mod tests;
