//! Frames from the tap to the guest.
//!
//! One frame at a time leaves the tap, and stays here until the limit lets it pass and the
//! driver has buffers. What comes meanwhile fills the tap's own queue, and then the host's
//! kernel drops it: a driver that never refills its queue costs nothing.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events};

use super::{
    MAX_PACKET_BYTES,
    counters::NetCounters,
    header::{self, HEADER_BYTES, NUM_BUFFERS, Offloads},
    tap::Tap,
};
use crate::virtio::{
    chain::Chain,
    device_queue::{Budget, DeviceQueue, QueueError},
    throttle::Gate,
};

const BUDGET: Budget = Budget { chains: 128, bytes: 2 << 20 };

/// Edge-triggered: the tap is read until it is empty.
const FRAMES: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

pub(super) struct Receive {
    pub(super) queue: DeviceQueue,
    pub(super) gate: Gate,
    pub(super) tap: Arc<Tap>,
    pub(super) offloads: Offloads,
    pub(super) mtu: u16,
    /// A frame may be spread over several chains (VIRTIO_NET_F_MRG_RXBUF).
    pub(super) mergeable: bool,
    pub(super) counters: Arc<NetCounters>,
    pub(super) staging: Staging,
    /// Whether the tap's events are listened to.
    pub(super) is_listening: bool,
    /// Chains that a frame is being spread over.
    pub(super) chains: Vec<(Chain, u32)>,
}

/// The frame, with its header, that goes to the guest next.
pub(super) struct Staging {
    /// One byte more than any, so that one that is cut off is told from the longest.
    pub(super) buffer: Box<[u8; MAX_PACKET_BYTES + 1]>,
    /// 0 if there is none.
    pub(super) bytes: usize,
}

/// What became of a frame.
enum Delivery {
    Done,
    /// The driver has no buffers now.
    Waits,
}

impl Receive {
    pub(super) fn register(&self, ops: &mut EventOps) {
        self.queue.register(ops);
        self.gate.register(ops);
        ops.add(Events::new(&*self.tap, FRAMES)).expect("the tap is registered by one worker");
    }

    /// Takes in an event, if it is one of this direction's.
    pub(super) fn on_event(&mut self, events: Events, ops: &mut EventOps) -> bool {
        use std::os::fd::AsRawFd;
        events.fd() == self.tap.as_raw_fd()
            || self.gate.on_event(events)
            || self.queue.on_event(events, ops)
    }

    /// Gives the driver what there is for it, as far as it has buffers.
    pub(super) fn serve(&mut self, ops: &mut EventOps) {
        let mut budget = BUDGET;
        self.queue.disable_notifications();
        loop {
            let mut waits = false;
            while budget.is_left() && !waits && self.stage(&mut budget) {
                budget.spend(self.staging.bytes);
                waits = matches!(self.deliver(), Delivery::Waits);
            }
            if !waits {
                if !budget.is_left() {
                    self.queue.wake_self();
                }
                // Buffers that the driver adds meanwhile are no news.
                break;
            }
            if !self.queue.enable_notifications() {
                break;
            }
        }
        self.listen(self.staging.bytes == 0, ops);
    }

    /// Has a frame that may go to the guest now, if there is one.
    fn stage(&mut self, budget: &mut Budget) -> bool {
        while self.staging.bytes == 0 && budget.is_left() {
            let Some(bytes) = self.tap.read(&mut self.staging.buffer[..]) else { return false };
            if !self.accept(bytes) {
                budget.spend(bytes);
                self.counters.receive_dropped.add(1);
                continue;
            }
            self.staging.bytes = bytes;
            if !self.gate.admit(bytes - HEADER_BYTES) {
                return false;
            }
        }
        self.staging.bytes > 0 && !self.gate.is_waiting()
    }

    /// Whether the guest can take what was read: frames from before an activation may use
    /// what it did not negotiate.
    fn accept(&mut self, bytes: usize) -> bool {
        let Some(frame_bytes) = bytes.checked_sub(HEADER_BYTES) else { return false };
        let Some(header) = self.staging.buffer.first_chunk_mut() else { return false };
        if !self.offloads.data_valid {
            header::clear_data_valid(header);
        }
        bytes <= MAX_PACKET_BYTES
            && header::check(header, frame_bytes, self.mtu, self.offloads).is_ok()
    }

    /// Moves the frame into the driver's buffers, or drops it if they do not hold it.
    fn deliver(&mut self) -> Delivery {
        let total = self.staging.bytes;
        let mut room = 0;
        while room < total && (self.mergeable || self.chains.is_empty()) {
            let Some(chain) = self.queue.pop() else { break };
            let bytes = chain.writable.bytes();
            self.chains.push((chain, 0));
            if bytes < HEADER_BYTES {
                // No buffers for packets; the driver is told so.
                self.give_back();
                self.queue.fail(QueueError::Layout);
                return Delivery::Waits;
            }
            room += bytes;
        }
        if self.chains.is_empty() {
            return Delivery::Waits;
        }
        self.staging.bytes = 0;
        if room < total {
            self.give_back();
            self.counters.receive_dropped.add(1);
            return Delivery::Done;
        }
        self.fill(total);
        self.queue.complete_together(&mut self.chains);
        self.counters.received_frames.add(1);
        self.counters.received_bytes.add(total - HEADER_BYTES);
        Delivery::Done
    }

    /// Spreads the packet over the chains, which have room for it.
    fn fill(&mut self, total: usize) {
        // Each has room for a header, so there are some thousands at most.
        let count = self.chains.len() as u16;
        self.staging.buffer[NUM_BUFFERS].copy_from_slice(&count.to_le_bytes());
        let mut rest = &self.staging.buffer[..total];
        for (chain, written) in &mut self.chains {
            let bytes = chain.writable.write(rest);
            *written = bytes as u32;
            rest = &rest[bytes..];
        }
    }

    /// Makes the chains that were taken the next ones again.
    fn give_back(&mut self) {
        while let Some((chain, _)) = self.chains.pop() {
            self.queue.undo_pop(chain);
        }
    }

    /// A tap that must wait is not heard; when it is again, what it holds is an event.
    fn listen(&mut self, wanted: bool, ops: &mut EventOps) {
        if wanted != self.is_listening {
            // Edge-triggered all the same: that the interface is gone is always told, and
            // once is enough.
            let events = if wanted { FRAMES } else { EventSet::EDGE_TRIGGERED };
            ops.modify(Events::new(&*self.tap, events)).expect("the tap is registered");
            self.is_listening = wanted;
        }
    }
}
