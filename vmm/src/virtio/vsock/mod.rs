//! virtio-vsock bridged to Unix sockets (virtio 1.2 §5.10).
//!
//! A program on the host reaches a port of the guest through the device's listener, with
//! `CONNECT <port>\n`; the guest reaches those few ports of the host that it was given a
//! connected socket for. There is no way from here to any other socket of the host.

mod bridge;
mod connect_line;
mod connection;
mod credit;
mod packet;
mod socket;

use std::{
    io,
    sync::{Arc, Mutex},
};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use self::{
    bridge::{Bridge, HostEnds},
    packet::HEADER_BYTES,
};
use super::{
    ActivateError, Activation, VirtioDevice, Worker, config_space,
    device_queue::{Budget, DeviceQueue, QueueError, RING_FEATURES, device_queues},
};
use crate::spec::VsockSpec;

/// Receive, transmit, event. A Linux guest fills the receive queue with buffers of 4 KiB
/// when it boots.
const QUEUE_SIZES: [u16; 3] = [64, 64, 16];
const BUDGET: Budget = Budget { chains: 128, bytes: 2 << 20 };

/// The device as its transport sees it.
pub struct Vsock {
    cid: u32,
    host: Arc<HostEnds>,
}

impl Vsock {
    pub fn new(spec: VsockSpec) -> io::Result<Self> {
        let VsockSpec { cid, listener, host_ports } = spec;
        listener.set_nonblocking(true)?;
        let ports = host_ports.into_iter().map(|host| (host.port, host.socket)).collect();
        Ok(Self { cid, host: Arc::new(HostEnds { listener, ports: Mutex::new(ports) }) })
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let [receive, transmit, event] = device_queues(activation, 1)?;
        let bridge =
            Bridge::new(self.cid, Arc::clone(&self.host)).map_err(ActivateError::Descriptor)?;
        Ok(Box::new(VsockWorker { receive, transmit, event, bridge }))
    }
}

struct VsockWorker {
    /// Packets to the guest.
    receive: DeviceQueue,
    /// Packets from the guest.
    transmit: DeviceQueue,
    /// The driver's buffers stay there: the transport is never reset.
    event: DeviceQueue,
    bridge: Bridge,
}

impl MutEventSubscriber for VsockWorker {
    fn init(&mut self, ops: &mut EventOps) {
        self.receive.register(ops);
        self.transmit.register(ops);
        self.event.register(ops);
        self.bridge.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.transmit.on_event(events, ops) {
            self.take_packets(ops);
        } else if !self.receive.on_event(events, ops) && !self.event.on_event(events, ops) {
            self.bridge.on_event(events, ops);
        }
        self.give_packets(ops);
        self.transmit.signal_both(&mut self.receive);
    }
}

impl VsockWorker {
    /// Handles the packets that the guest has sent.
    fn take_packets(&mut self, ops: &mut EventOps) {
        self.transmit.serve(BUDGET, |chain| {
            if self.bridge.on_packet(&mut chain.readable, ops) {
                Ok(0)
            } else {
                Err(QueueError::Layout)
            }
        });
    }

    /// Sends the guest what there is for it, as far as it has buffers.
    fn give_packets(&mut self, ops: &mut EventOps) {
        let mut budget = BUDGET;
        self.receive.disable_notifications();
        loop {
            while budget.is_left()
                && self.bridge.has_output()
                && let Some(mut chain) = self.receive.pop()
            {
                if chain.writable.bytes() < HEADER_BYTES {
                    self.receive.fail(QueueError::Layout);
                    break;
                }
                match self.bridge.next_packet(&mut chain.writable, ops) {
                    Some(bytes) => {
                        budget.spend(bytes as usize);
                        self.receive.complete(chain, bytes);
                    }
                    None => self.receive.undo_pop(chain),
                }
            }
            if !self.bridge.has_output() {
                // Buffers that the driver adds meanwhile are no news.
                break;
            }
            if !budget.is_left() {
                self.receive.wake_self();
                break;
            }
            if !self.receive.enable_notifications() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
