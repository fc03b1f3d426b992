//! A device's interrupt line and the status bits that tell its driver why (virtio 1.2
//! §4.2.2, InterruptStatus).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// The device has used a buffer in one of its virtqueues.
pub const USED_BUFFER: u32 = 1 << 0;
/// The configuration of the device has changed.
pub const CONFIG_CHANGE: u32 = 1 << 1;

/// Shared by a device's worker, which raises it, and its transport, where the driver
/// reads and acknowledges it. Atomics, not a lock: neither side ever waits for the other.
pub struct Interrupt {
    status: AtomicU32,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    /// Bound to the device's line of the interrupt controller (KVM_IRQFD).
    line: EventFd,
}

impl Interrupt {
    /// An interrupt that signals the eventfd `line`, which must be non-blocking.
    pub fn new(line: EventFd) -> Self {
        Self {
            status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            line,
        }
    }

    /// Tells the driver that buffers were used (virtio 1.2 §2.3). Whether the driver wants
    /// to hear it (`Queue::needs_notification`) is the caller's to ask.
    pub fn signal_used_queue(&self) {
        self.raise(USED_BUFFER);
    }

    /// Tells the driver that the config space has changed; call it after the change.
    pub fn signal_config_change(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIG_CHANGE);
    }

    /// The ConfigGeneration register: another value after every change.
    pub fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::Acquire)
    }

    /// Latches DEVICE_NEEDS_RESET in the device status (virtio 1.2 §2.1.2): the device
    /// met an error that it cannot recover from.
    pub fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CONFIG_CHANGE);
    }

    /// Whether DEVICE_NEEDS_RESET is latched.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The driver has handled the causes in `bits` (InterruptACK).
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Forgets everything, for a device reset. No worker may be left that could raise it.
    pub fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    /// Sets the cause before the line: the driver's handler finds it there.
    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::AcqRel);
        // A full counter (EAGAIN) means that the line is being signalled already.
        let _ = self.line.write(1);
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn interrupt() -> (Interrupt, EventFd) {
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        (Interrupt::new(line.try_clone().unwrap()), line)
    }

    #[test]
    fn causes_gather_until_acknowledged() {
        let (interrupt, line) = interrupt();
        interrupt.signal_used_queue();
        interrupt.signal_config_change();
        assert_eq!(interrupt.status(), USED_BUFFER | CONFIG_CHANGE);
        assert_eq!(line.read().unwrap(), 2);
        interrupt.acknowledge(USED_BUFFER);
        assert_eq!(interrupt.status(), CONFIG_CHANGE);
    }

    #[test]
    fn needing_a_reset_is_latched_until_the_reset() {
        let (interrupt, line) = interrupt();
        interrupt.needs_reset();
        interrupt.acknowledge(u32::MAX);
        assert!(interrupt.is_reset_needed());
        assert_eq!(line.read().unwrap(), 1);
        interrupt.reset();
        assert!(!interrupt.is_reset_needed());
        assert_eq!(interrupt.status(), 0);
    }
}
