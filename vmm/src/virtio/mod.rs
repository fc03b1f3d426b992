//! Virtio devices and what they are to their transport (virtio 1.2 §2).
//!
//! ```text
//!             build                DRIVER_OK                     status = 0
//! VirtioDevice ────► mmio::Transport ────► activate() ─► Worker ────► dropped
//!  (stays with        (vCPU threads)                     (I/O thread)    │
//!   the transport) ◄───────────────── may be activated again ◄───────────┘
//! ```
//!
//! The device keeps what every activation needs (its files, its config space); a worker
//! owns what one activation needs (queues, memory, interrupt). So nothing can touch a
//! queue that the driver has taken back.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod config_space;
pub mod device_queue;
pub mod fs;
pub mod interrupt;
pub mod iovecs;
pub mod kick_limit;
pub mod mmio;
pub mod net;
pub mod registers;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod throttle;
pub mod token_bucket;
pub mod vsock;

use std::sync::Arc;

use event_manager::MutEventSubscriber;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

pub use interrupt::Interrupt;

/// The guest's memory, shared by all that reach into it.
pub type Memory = Arc<GuestMemoryMmap>;

/// What a virtio device is to its transport: config space, features, and activation
/// (virtio 1.2 §2).
pub trait VirtioDevice: Send {
    /// The device's type (virtio 1.2 §5).
    fn device_id(&self) -> u32;

    /// The largest size of each virtqueue; powers of two.
    fn queue_max_sizes(&self) -> &[u16];

    /// Device-specific and reserved feature bits offered; the transport adds
    /// `VIRTIO_F_VERSION_1`.
    fn features(&self) -> u64;

    /// Reads the config space; what lies out of its range reads as zeros.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the config space; what lies out of its range is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Moves queues, memory and interrupt into a worker that the I/O thread serves.
    ///
    /// Called again after a reset; the device keeps what it needs to build another
    /// worker. Dropping the worker is the reset.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError>;
}

/// One activation of a device: runs on an I/O thread until the driver resets the device.
/// When it is dropped, no request is in flight any more.
pub trait Worker: MutEventSubscriber + Send {}

impl<T: MutEventSubscriber + Send> Worker for T {}

/// What the driver has set up for a device when it sets DRIVER_OK.
pub struct Activation {
    /// The features that the driver accepted, a subset of those offered.
    pub features: u64,
    /// One for each of [`VirtioDevice::queue_max_sizes`]; a queue that the driver left
    /// unused is not ready (`QueueT::ready`).
    pub queues: Vec<ActiveQueue>,
    pub memory: Memory,
    pub interrupt: Arc<Interrupt>,
}

/// A virtqueue whose addresses were seen to lie in guest memory.
pub struct ActiveQueue {
    pub queue: Queue,
    /// Signalled (non-blocking eventfd) when the driver notifies the queue. It may be
    /// signalled without need, by a notification from before a reset.
    pub notify: Arc<EventFd>,
}

/// Why a device cannot be activated. The transport latches DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    #[error("the device has {expected} queues, its activation {got}")]
    QueueCount { expected: usize, got: usize },
    #[error("queue {index} is not ready, but the device cannot work without it")]
    QueueNotReady { index: usize },
    #[error("make a file descriptor for the device's worker")]
    Descriptor(#[source] std::io::Error),
}
