//! The few devices of a PC that a guest needs beside virtio, all on port I/O.

pub mod boot_stamp;
pub mod i8042;
pub mod serial;

use crate::bus::BusDevice;

/// The port to which BIOSes write their progress, and Linux to wait a microsecond.
pub const POST_PORT: u64 = 0x80;

/// A port that takes everything and tells nothing.
pub struct Sink;

impl BusDevice for Sink {
    fn read(&mut self, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}
