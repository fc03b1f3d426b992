//! What went through a network device, and what did not.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::control::NetReport;

/// Only the device's worker adds; anyone may read.
#[derive(Debug, Default)]
pub struct NetCounters {
    pub(super) received_frames: Counter,
    pub(super) received_bytes: Counter,
    /// The driver had no buffers that hold the frame, or did not negotiate what it needs.
    pub(super) receive_dropped: Counter,
    pub(super) sent_frames: Counter,
    pub(super) sent_bytes: Counter,
    pub(super) send_malformed: Counter,
    pub(super) send_spoofed: Counter,
    /// The host did not take it.
    pub(super) send_dropped: Counter,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: usize) {
        // One writer: no read-modify-write is needed.
        self.0.store(self.get().wrapping_add(count as u64), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl NetCounters {
    pub fn report(&self) -> NetReport {
        NetReport {
            received_frames: self.received_frames.get(),
            received_bytes: self.received_bytes.get(),
            receive_dropped: self.receive_dropped.get(),
            sent_frames: self.sent_frames.get(),
            sent_bytes: self.sent_bytes.get(),
            send_malformed: self.send_malformed.get(),
            send_spoofed: self.send_spoofed.get(),
            send_dropped: self.send_dropped.get(),
        }
    }
}
