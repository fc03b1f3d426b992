//! The few devices of a PC that a guest needs beside virtio, all on port I/O.

pub mod boot_stamp;
pub mod i8042;
pub mod serial;

use crate::bus::BusDevice;

/// Ports of PC devices that a kernel touches without being asked and that are not here:
/// timer, speaker, real-time clock, and the port to which BIOSes write their progress.
pub const SILENT_PORTS: [(u64, u64); 3] = [(0x40, 4), (0x70, 2), (0x80, 1)];

/// Ports that take everything and tell nothing.
pub struct Sink;

impl BusDevice for Sink {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}
