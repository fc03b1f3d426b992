//! Frames from the guest to the tap.

use std::sync::Arc;

use super::{
    MAX_PACKET_BYTES,
    counters::NetCounters,
    header::{self, HEADER_BYTES, Offloads},
    source_filter::SourceFilter,
    tap::Tap,
};
use crate::virtio::{
    chain::Chain,
    device_queue::{Budget, DeviceQueue},
    throttle::Throttle,
};

const BUDGET: Budget = Budget { chains: 128, bytes: 2 << 20 };

pub(super) struct Transmit {
    pub(super) queue: DeviceQueue,
    pub(super) throttle: Throttle,
    pub(super) sender: Sender,
}

impl Transmit {
    /// Sends what the driver made available.
    pub(super) fn serve(&mut self) {
        let sender = &mut self.sender;
        self.throttle.serve(&mut self.queue, BUDGET, frame_bytes, |chain| {
            sender.send(chain);
            Ok(0)
        });
    }
}

/// What a chain counts for, whatever it claims to hold.
fn frame_bytes(chain: &Chain) -> usize {
    chain.readable.bytes().clamp(HEADER_BYTES, MAX_PACKET_BYTES) - HEADER_BYTES
}

pub(super) struct Sender {
    pub(super) tap: Arc<Tap>,
    pub(super) filter: SourceFilter,
    pub(super) offloads: Offloads,
    pub(super) mtu: u16,
    pub(super) counters: Arc<NetCounters>,
    /// The frame and its header, out of the guest's reach while they are checked and sent.
    pub(super) packet: Box<[u8; MAX_PACKET_BYTES]>,
}

impl Sender {
    /// Sends the frame in `chain`, or drops it and counts why.
    fn send(&mut self, chain: &mut Chain) {
        let counters = &self.counters;
        let bytes = chain.readable.bytes();
        let Some(packet) = self.packet.get_mut(..bytes) else {
            return counters.send_malformed.add(1);
        };
        chain.readable.read(packet);
        let Some((header, frame)) = packet.split_first_chunk() else {
            return counters.send_malformed.add(1);
        };
        if header::check(header, frame.len(), self.mtu, self.offloads).is_err() {
            return counters.send_malformed.add(1);
        }
        if !self.filter.allows(frame) {
            return counters.send_spoofed.add(1);
        }
        let frame_bytes = frame.len();
        match self.tap.write(packet) {
            Ok(()) => {
                counters.sent_frames.add(1);
                counters.sent_bytes.add(frame_bytes);
            }
            // The interface is down, or the kernel sees through a header that lies.
            Err(_) => counters.send_dropped.add(1),
        }
    }
}
