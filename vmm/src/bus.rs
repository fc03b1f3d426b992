//! Port I/O and memory-mapped I/O: which device an access of the guest reaches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::log::GuestLog;

/// A device that the guest reaches by reading and writing registers.
///
/// `offset` is from the start of its range. Every offset and length must be answered: the
/// guest chooses them.
pub trait BusDevice: Send {
    fn read(&mut self, offset: u64, data: &mut [u8]);
    fn write(&mut self, offset: u64, data: &[u8]);
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    #[error("the range of {bytes} at {start:#x} overlaps that of another device")]
    Overlap { start: u64, bytes: u64 },
}

struct Slot {
    start: u64,
    bytes: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// An address space. A mutex a device: accesses of several vCPUs to one device are in
/// turn, to several devices in parallel, and no access holds two.
pub struct Bus {
    /// Sorted by address.
    slots: Vec<Slot>,
    unclaimed: GuestLog,
}

impl Bus {
    pub fn new(name: &'static str) -> Self {
        Self { slots: Vec::new(), unclaimed: GuestLog::new(name) }
    }

    /// Gives `device` the range of `bytes` from `start`.
    pub fn insert(
        &mut self,
        start: u64,
        bytes: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let position = self.slots.partition_point(|slot| slot.start < start);
        let before = position.checked_sub(1).map(|position| &self.slots[position]);
        let ends_before = before.is_none_or(|slot| slot.start + slot.bytes <= start);
        let starts_behind = self.slots.get(position).is_none_or(|slot| start + bytes <= slot.start);
        if !ends_before || !starts_behind {
            return Err(BusError::Overlap { start, bytes });
        }
        self.slots.insert(position, Slot { start, bytes, device });
        Ok(())
    }

    /// Reads from the device at `address`; all ones where there is none.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.find(address) {
            Some((mut device, offset)) => device.read(offset, data),
            None => self.unclaimed.write(format_args!("read of {} at {address:#x}", data.len())),
        }
    }

    /// Writes to the device at `address`, if there is one.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address) {
            Some((mut device, offset)) => device.write(offset, data),
            None => self.unclaimed.write(format_args!("write of {} at {address:#x}", data.len())),
        }
    }

    fn find(&self, address: u64) -> Option<(MutexGuard<'_, dyn BusDevice + 'static>, u64)> {
        let position = self.slots.partition_point(|slot| slot.start <= address).checked_sub(1)?;
        let slot = &self.slots[position];
        let offset = address - slot.start;
        (offset < slot.bytes).then(|| {
            // A device that panicked has ended the process (panic = abort); in a test the
            // next access may as well go on.
            (slot.device.lock().unwrap_or_else(PoisonError::into_inner), offset)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_of_their_range() {
        let mut bus = Bus::new("test");
        let (low, high) = (Arc::new(Mutex::new(Recorder::default())), Arc::default());
        let high: Arc<Mutex<Recorder>> = high;
        bus.insert(0x20, 0x10, high.clone()).unwrap();
        bus.insert(0x10, 0x8, low.clone()).unwrap();
        bus.write(0x10, &[1]);
        bus.write(0x2f, &[2, 3]);
        for nowhere in [0, 0xf, 0x18, 0x1f, 0x30, u64::MAX] {
            bus.write(nowhere, &[4]);
        }
        assert_eq!(low.lock().unwrap().0, [(0, vec![1])]);
        assert_eq!(high.lock().unwrap().0, [(0xf, vec![2, 3])]);
        assert_eq!(bus.unclaimed.count(), 6);
    }

    #[test]
    fn nothing_reads_as_ones() {
        let mut bus = Bus::new("test");
        bus.insert(8, 8, Arc::new(Mutex::new(Recorder::default()))).unwrap();
        let mut data = [0; 2];
        bus.read(9, &mut data);
        assert_eq!(data, [1, 1]);
        bus.read(16, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn ranges_may_touch_but_not_overlap() {
        let mut bus = Bus::new("test");
        let device = || Arc::new(Mutex::new(Recorder::default()));
        bus.insert(8, 8, device()).unwrap();
        bus.insert(16, 8, device()).unwrap();
        bus.insert(0, 8, device()).unwrap();
        for start in [0, 1, 12, 15, 16, 23] {
            assert!(bus.insert(start, 1, device()).is_err(), "{start}");
        }
        assert!(bus.insert(24, 1, device()).is_ok());
    }
}
