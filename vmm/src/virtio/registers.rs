//! The registers of a virtio-mmio device (virtio 1.2 §4.2.2): what the driver has set so
//! far, and which of its writes mean something in that state.
//!
//! ```text
//! reset ─ACKNOWLEDGE─► ─DRIVER─► ─FEATURES_OK─► ─DRIVER_OK─► active
//!   ▲                     │            │
//!   │               features may   queues may           FAILED at any time: only a
//!   └── status = 0 ── be set         be set             reset helps
//! ```
//!
//! Strict: a step out of turn, a feature that was not offered, a queue that cannot be: the
//! write is ignored, and the driver reads back that it was.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

use super::Interrupt;

/// Registers by their offset (virtio 1.2 table 4.1).
pub mod offset {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_AVAIL_LOW: u64 = 0x090;
    pub const QUEUE_AVAIL_HIGH: u64 = 0x094;
    pub const QUEUE_USED_LOW: u64 = 0x0a0;
    pub const QUEUE_USED_HIGH: u64 = 0x0a4;
    pub const SHM_LENGTH_LOW: u64 = 0x0b0;
    pub const SHM_LENGTH_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// Not a PCI vendor: "CSSN".
const VENDOR: u32 = u32::from_le_bytes(*b"CSSN");

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

/// What about a device never changes.
#[derive(Clone, Debug)]
pub struct Identity {
    pub device_id: u32,
    pub features: u64,
    pub queue_max_sizes: Vec<u16>,
}

impl Identity {
    /// Everything offered to the driver.
    fn offered(&self) -> u64 {
        self.features | VERSION_1
    }
}

/// What the driver has set. All of a transport's state that a snapshot must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Registers {
    pub status: u32,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    pub queues: Vec<QueueRegisters>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// 0 until the driver has chosen one.
    pub size: u16,
    pub ready: bool,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

/// What a write asks of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// Ignored, because it makes no sense in this state.
    Refused,
    Acknowledge(u32),
    Activate,
    Reset,
}

impl Registers {
    /// After a reset of a device with `queues` queues.
    pub fn new(queues: usize) -> Self {
        Self { queues: vec![QueueRegisters::default(); queues], ..Self::default() }
    }

    /// The driver has set the device up and may use it.
    pub fn is_driver_ok(&self) -> bool {
        self.status & DRIVER_OK != 0
    }

    /// The register at `offset`; 0 where there is none to read.
    pub fn read(&self, offset: u64, identity: &Identity, interrupt: &Interrupt) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match offset {
            offset::MAGIC => MAGIC,
            offset::VERSION => VERSION,
            offset::DEVICE_ID => identity.device_id,
            offset::VENDOR_ID => VENDOR,
            offset::DEVICE_FEATURES => half(identity.offered(), self.device_features_select),
            offset::QUEUE_SIZE_MAX => {
                let max = identity.queue_max_sizes.get(self.queue_select as usize);
                max.copied().unwrap_or(0).into()
            }
            offset::QUEUE_READY => queue.is_some_and(|queue| queue.ready).into(),
            offset::INTERRUPT_STATUS => interrupt.status(),
            offset::STATUS if interrupt.is_reset_needed() => self.status | NEEDS_RESET,
            offset::STATUS => self.status,
            // No shared memory region has any id (§4.2.2): length and base of all ones.
            offset::SHM_LENGTH_LOW
            | offset::SHM_LENGTH_HIGH
            | offset::SHM_BASE_LOW
            | offset::SHM_BASE_HIGH => u32::MAX,
            offset::CONFIG_GENERATION => interrupt.config_generation(),
            _ => 0,
        }
    }

    /// Writes the register at `offset`.
    pub fn write(&mut self, offset: u64, value: u32, identity: &Identity) -> Effect {
        match offset {
            offset::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            offset::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            offset::QUEUE_SELECT => self.queue_select = value,
            offset::DRIVER_FEATURES => return self.write_features(value),
            offset::STATUS => return self.write_status(value, identity),
            offset::INTERRUPT_ACK => return Effect::Acknowledge(value),
            // Only what no ioeventfd matches comes here: a queue that does not exist.
            offset::QUEUE_NOTIFY => return Effect::Refused,
            _ => return self.write_queue(offset, value, identity),
        }
        Effect::None
    }

    fn write_features(&mut self, value: u32) -> Effect {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return Effect::Refused;
        }
        match self.driver_features_select {
            0 => self.driver_features = self.driver_features >> 32 << 32 | u64::from(value),
            1 => {
                self.driver_features =
                    self.driver_features & u64::from(u32::MAX) | u64::from(value) << 32;
            }
            // Features beyond 63 are not offered.
            _ if value != 0 => return Effect::Refused,
            _ => {}
        }
        Effect::None
    }

    /// Takes the steps that `value` adds, in their order, as far as they are allowed
    /// (virtio 1.2 §3.1.1).
    fn write_status(&mut self, value: u32, identity: &Identity) -> Effect {
        if value == 0 {
            *self = Self::new(self.queues.len());
            return Effect::Reset;
        }
        let clears = self.status & !value != 0;
        if clears || self.status & FAILED != 0 {
            return Effect::Refused;
        }
        if value & FAILED != 0 {
            self.status |= FAILED;
            return Effect::None;
        }
        let before = self.status;
        let mut taken = 0;
        for step in [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK] {
            if before & step == 0 && value & step != 0 {
                let allowed = self.status & taken == taken
                    && match step {
                        FEATURES_OK => self.features_are_acceptable(identity),
                        // The driver must have read FEATURES_OK back in between.
                        DRIVER_OK => before & FEATURES_OK != 0,
                        _ => true,
                    };
                if !allowed {
                    return Effect::Refused;
                }
                self.status |= step;
            }
            taken |= step;
        }
        if self.status & !before & DRIVER_OK != 0 { Effect::Activate } else { Effect::None }
    }

    fn features_are_acceptable(&self, identity: &Identity) -> bool {
        self.driver_features & !identity.offered() == 0 && self.driver_features & VERSION_1 != 0
    }

    fn write_queue(&mut self, offset: u64, value: u32, identity: &Identity) -> Effect {
        let index = self.queue_select as usize;
        let (Some(queue), Some(&max)) =
            (self.queues.get_mut(index), identity.queue_max_sizes.get(index))
        else {
            return Effect::Refused;
        };
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return Effect::Refused;
        }
        if offset == offset::QUEUE_READY {
            return queue.set_ready(value);
        }
        if queue.ready {
            return Effect::Refused;
        }
        match offset {
            offset::QUEUE_SIZE => return queue.set_size(value, max),
            offset::QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            offset::QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            offset::QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
            offset::QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
            offset::QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
            offset::QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
            _ => return Effect::Refused,
        }
        Effect::None
    }
}

impl QueueRegisters {
    fn set_size(&mut self, value: u32, max: u16) -> Effect {
        match u16::try_from(value) {
            Ok(size) if size.is_power_of_two() && size <= max => {
                self.size = size;
                Effect::None
            }
            _ => Effect::Refused,
        }
    }

    /// A queue needs a size, and addresses aligned as §2.7 wants. Whether they lie in
    /// memory is seen at the activation.
    fn set_ready(&mut self, value: u32) -> Effect {
        let aligned = self.desc_table.is_multiple_of(16)
            && self.avail_ring.is_multiple_of(2)
            && self.used_ring.is_multiple_of(4);
        match value {
            0 => self.ready = false,
            1 if self.size != 0 && aligned => self.ready = true,
            _ => return Effect::Refused,
        }
        Effect::None
    }
}

/// Bits 0 to 31 for `select` 0, 32 to 63 for 1, nothing beyond.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address >> 32 << 32 | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod state_space;

#[cfg(test)]
mod tests {
    use super::*;

    const FEATURE: u64 = 1 << 5;

    fn identity() -> Identity {
        Identity { device_id: 2, features: FEATURE, queue_max_sizes: vec![256, 64] }
    }

    /// After FEATURES_OK, with the first queue selected.
    fn negotiated() -> Registers {
        let mut registers = Registers::new(2);
        for (offset, value) in [
            (offset::STATUS, ACKNOWLEDGE),
            (offset::STATUS, ACKNOWLEDGE | DRIVER),
            (offset::DRIVER_FEATURES_SELECT, 1),
            (offset::DRIVER_FEATURES, 1),
            (offset::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK),
        ] {
            assert_eq!(registers.write(offset, value, &identity()), Effect::None);
        }
        registers
    }

    #[test]
    fn the_steps_of_the_specification_activate() {
        let mut registers = negotiated();
        for (offset, value) in [
            (offset::QUEUE_SIZE, 128),
            (offset::QUEUE_DESC_LOW, 0x1000),
            (offset::QUEUE_DESC_HIGH, 1),
            (offset::QUEUE_AVAIL_LOW, 0x2000),
            (offset::QUEUE_USED_LOW, 0x3000),
            (offset::QUEUE_READY, 1),
        ] {
            assert_eq!(registers.write(offset, value, &identity()), Effect::None);
        }
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(registers.write(offset::STATUS, all, &identity()), Effect::Activate);
        let queue = &registers.queues[0];
        assert_eq!((queue.size, queue.desc_table), (128, 0x1_0000_1000));
        assert!(queue.ready && !registers.queues[1].ready);
    }

    #[test]
    fn no_step_can_be_skipped() {
        let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        for skipped in 0..3 {
            let mut registers = Registers::new(1);
            registers.driver_features = VERSION_1;
            let mut status = 0;
            for (index, step) in steps.into_iter().enumerate() {
                if index != skipped {
                    status |= step;
                    assert_ne!(
                        registers.write(offset::STATUS, status, &identity()),
                        Effect::Activate
                    );
                }
            }
            assert!(!registers.is_driver_ok(), "without step {skipped}");
        }
    }

    #[test]
    fn all_steps_in_one_write_do_not_activate() {
        let mut registers = Registers::new(1);
        registers.driver_features = VERSION_1;
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(registers.write(offset::STATUS, all, &identity()), Effect::Refused);
        assert!(!registers.is_driver_ok());
    }

    #[test]
    fn features_not_offered_or_without_version_1_are_refused() {
        for (low, high) in [(1 << 6, 1), (FEATURE as u32, 0), (0, 3)] {
            let mut registers = Registers::new(1);
            registers.write(offset::STATUS, ACKNOWLEDGE | DRIVER, &identity());
            registers.write(offset::DRIVER_FEATURES, low, &identity());
            registers.write(offset::DRIVER_FEATURES_SELECT, 1, &identity());
            registers.write(offset::DRIVER_FEATURES, high, &identity());
            let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
            assert_eq!(registers.write(offset::STATUS, status, &identity()), Effect::Refused);
            assert_eq!(registers.status & FEATURES_OK, 0);
        }
    }

    #[test]
    fn queue_sizes_are_powers_of_two_up_to_the_maximum() {
        let mut registers = negotiated();
        for size in [0, 3, 257, 512, 0x1_0000, 0x1_0100, u32::MAX] {
            assert_eq!(registers.write(offset::QUEUE_SIZE, size, &identity()), Effect::Refused);
        }
        assert_eq!(registers.write(offset::QUEUE_READY, 1, &identity()), Effect::Refused);
        registers.write(offset::QUEUE_SIZE, 256, &identity());
        registers.write(offset::QUEUE_DESC_LOW, 8, &identity());
        assert_eq!(registers.write(offset::QUEUE_READY, 1, &identity()), Effect::Refused);
    }

    #[test]
    fn a_queue_that_does_not_exist_reads_zero_and_takes_nothing() {
        let mut registers = negotiated();
        let interrupt = Interrupt::new(vmm_sys_util::eventfd::EventFd::new(0).unwrap());
        for select in [2, 0x8000_0000, u32::MAX] {
            registers.write(offset::QUEUE_SELECT, select, &identity());
            let before = registers.clone();
            for offset in [offset::QUEUE_SIZE, offset::QUEUE_READY, offset::QUEUE_DESC_LOW] {
                assert_eq!(registers.write(offset, 1, &identity()), Effect::Refused);
            }
            assert_eq!(registers, before);
            assert_eq!(registers.read(offset::QUEUE_SIZE_MAX, &identity(), &interrupt), 0);
            assert_eq!(registers.read(offset::QUEUE_READY, &identity(), &interrupt), 0);
        }
    }

    #[test]
    fn a_failed_driver_can_only_reset() {
        let mut registers = negotiated();
        let status = registers.status;
        registers.write(offset::STATUS, status | FAILED, &identity());
        let refused = registers.write(offset::STATUS, status | FAILED | DRIVER_OK, &identity());
        assert_eq!(refused, Effect::Refused);
        assert_eq!(registers.write(offset::STATUS, 0, &identity()), Effect::Reset);
        assert_eq!(registers, Registers::new(2));
    }

    #[test]
    fn bits_of_the_status_cannot_be_cleared_one_by_one() {
        let mut registers = negotiated();
        assert_eq!(registers.write(offset::STATUS, ACKNOWLEDGE, &identity()), Effect::Refused);
        assert_eq!(registers.status, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }
}
