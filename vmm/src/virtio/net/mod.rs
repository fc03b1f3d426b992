//! virtio-net over a tap (virtio 1.2 §5.1).
//!
//! A frame is copied out of the guest's reach before it is looked at, and what was looked
//! at is what is sent. A frame that is wrong is dropped and counted; only a broken ring
//! fails the queue.

mod counters;
mod header;
mod receive;
mod source_filter;
mod tap;
mod transmit;

use std::{fs::File, io, net::IpAddr, sync::Arc};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_bindings::{
    virtio_ids::VIRTIO_ID_NET,
    virtio_net::{
        VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MTU,
    },
};

pub use self::{counters::NetCounters, tap::OFFLOAD_MASK};
use self::{
    header::{HEADER_BYTES, MAX_FRAME_BYTES, Offloads},
    receive::{Receive, Staging},
    source_filter::SourceFilter,
    tap::Tap,
    transmit::{Sender, Transmit},
};
use super::{
    ActivateError, Activation, VirtioDevice, Worker, config_space,
    device_queue::{RING_FEATURES, device_queues},
    throttle::{Gate, RateLimiter, SharedLimiter, Throttle},
};
use crate::{config::MacAddress, spec::NetSpec};

/// Receive, transmit.
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// A header and the longest frame.
const MAX_PACKET_BYTES: usize = HEADER_BYTES + MAX_FRAME_BYTES;

const FEATURES: u64 = RING_FEATURES
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_MTU;

/// `struct virtio_net_config` up to `mtu`.
const CONFIG_BYTES: usize = 12;

/// The device as its transport sees it.
pub struct Net {
    tap: Arc<Tap>,
    mac: MacAddress,
    mtu: u16,
    addresses: Vec<IpAddr>,
    receive_limiter: Option<SharedLimiter>,
    transmit_limiter: Option<SharedLimiter>,
    counters: Arc<NetCounters>,
}

impl Net {
    pub fn new(spec: NetSpec) -> io::Result<Self> {
        Self::over(Tap::new, spec)
    }

    /// A device over a socket that keeps frames apart, as a tap does.
    #[cfg(feature = "testing")]
    pub fn over_socket(spec: NetSpec) -> io::Result<Self> {
        Self::over(Tap::nonblocking, spec)
    }

    fn over(open: impl FnOnce(File) -> io::Result<Tap>, spec: NetSpec) -> io::Result<Self> {
        let NetSpec { tap, mac, mtu, addresses, receive_limit, transmit_limit } = spec;
        Ok(Self {
            tap: Arc::new(open(tap)?),
            mac,
            mtu,
            addresses,
            receive_limiter: RateLimiter::new(receive_limit),
            transmit_limiter: RateLimiter::new(transmit_limit),
            counters: Arc::default(),
        })
    }

    /// Counts from the beginning of the VM, whatever the driver does.
    pub fn counters(&self) -> Arc<NetCounters> {
        Arc::clone(&self.counters)
    }
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    /// virtio 1.2 §5.1.4: the MAC address, no status, one pair of queues, the MTU.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[..6].copy_from_slice(&self.mac.0);
        config[8..10].copy_from_slice(&1_u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.to_le_bytes());
        config_space::read(&config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        let features = activation.features;
        let [receive, transmit] = device_queues(activation, 0)?;
        Ok(Box::new(NetWorker {
            receive: Receive {
                queue: receive,
                gate: Gate::new(self.receive_limiter.as_ref())?,
                tap: Arc::clone(&self.tap),
                offloads: Offloads::of_host(features),
                mtu: self.mtu,
                mergeable: features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
                counters: Arc::clone(&self.counters),
                staging: Staging { buffer: zeros(), bytes: 0 },
                is_listening: true,
                chains: Vec::new(),
            },
            transmit: Transmit {
                queue: transmit,
                throttle: Throttle::new(self.transmit_limiter.as_ref())?,
                sender: Sender {
                    tap: Arc::clone(&self.tap),
                    filter: SourceFilter::new(self.mac, self.addresses.clone()),
                    offloads: Offloads::of_guest(features),
                    mtu: self.mtu,
                    counters: Arc::clone(&self.counters),
                    packet: zeros(),
                },
            },
        }))
    }
}

/// Made in place: the threads' stacks are small.
fn zeros<const COUNT: usize>() -> Box<[u8; COUNT]> {
    vec![0; COUNT].into_boxed_slice().try_into().expect("it is as long as it was made")
}

struct NetWorker {
    receive: Receive,
    transmit: Transmit,
}

impl MutEventSubscriber for NetWorker {
    fn init(&mut self, ops: &mut EventOps) {
        // A kernel that does not know them all goes on as it is set up; what the guest
        // cannot take does not reach it.
        let _ = self.receive.tap.set_offloads(self.receive.offloads);
        self.receive.register(ops);
        self.transmit.queue.register(ops);
        self.transmit.throttle.register(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if self.receive.on_event(events, ops) {
            self.receive.serve(ops);
        } else if self.transmit.throttle.on_event(events)
            || self.transmit.queue.on_event(events, ops)
        {
            self.transmit.serve();
        }
        self.receive.queue.signal_both(&mut self.transmit.queue);
    }
}

#[cfg(test)]
mod tests;
