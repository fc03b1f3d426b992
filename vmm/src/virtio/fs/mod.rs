//! virtio-fs: the guest's FUSE requests, carried to a file server (virtio 1.2 §5.11).
//!
//! The server is another process, behind a socket that keeps messages apart
//! (SOCK_SEQPACKET). A request is copied out of guest memory and sent, a reply is received
//! and copied in: the server sees messages and no guest memory, and the guest's memory stays
//! private to the vmm.
//!
//! ```text
//! request queue ──► readable buffers ──► message ──► server
//!                   writable buffers ◄── message ◄──┘   (in any order, found by its token)
//! ```

mod message;
mod server;

use std::{
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use self::{
    message::{REPLY_HEADER_BYTES, Request},
    server::{Received, Sent, Server},
};
use super::{
    ActivateError, Activation, VirtioDevice, Worker,
    chain::Chain,
    config_space,
    device_queue::{Budget, DeviceQueue, QueueError, RING_FEATURES, device_queues},
};
use crate::spec::{FS_TAG_BYTES, FsSpec};

/// Requests that take priority (forgotten inodes), and all others. A Linux guest puts at most
/// as many pages into a request as the queue has descriptors, so that with this size a message
/// fits into what the kernel lets a socket hold by default.
const QUEUE_SIZES: [u16; 2] = [32, 32];
const BUDGET: Budget = Budget { chains: 64, bytes: 4 << 20 };
/// Replies taken in one wake-up.
const REPLIES_AT_ONCE: usize = 64;

/// The device as its transport sees it.
pub struct Fs {
    /// The tag and the number of request queues (virtio 1.2 §5.11.4).
    config: [u8; FS_TAG_BYTES + 4],
    server: Arc<OwnedFd>,
    /// Never used twice, so that no reply to a request from before a reset is taken for
    /// another's.
    next_token: Arc<AtomicU64>,
}

impl Fs {
    pub fn new(spec: FsSpec) -> Self {
        let mut config = [0; FS_TAG_BYTES + 4];
        config[..spec.tag.len()].copy_from_slice(spec.tag.as_bytes());
        config[FS_TAG_BYTES..].copy_from_slice(&1_u32.to_le_bytes());
        Self { config, server: Arc::new(spec.server), next_token: Arc::default() }
    }
}

impl VirtioDevice for Fs {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        config_space::read(&self.config, offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Worker>, ActivateError> {
        Ok(Box::new(FsWorker {
            queues: device_queues(activation, 0)?,
            server: Server::new(Arc::clone(&self.server)),
            next_token: Arc::clone(&self.next_token),
            in_flight: Vec::new(),
            is_blocked: false,
        }))
    }
}

struct FsWorker {
    queues: [DeviceQueue; 2],
    server: Server,
    next_token: Arc<AtomicU64>,
    /// At most as many as the queues have descriptors.
    in_flight: Vec<InFlight>,
    /// Whether the server's socket is full, and requests wait in their queues.
    is_blocked: bool,
}

/// A request that the server has.
struct InFlight {
    token: u64,
    /// What the guest calls it.
    unique: u64,
    queue: usize,
    chain: Chain,
}

impl MutEventSubscriber for FsWorker {
    fn init(&mut self, ops: &mut EventOps) {
        for queue in &self.queues {
            queue.register(ops);
        }
        ops.add(Events::new(&self.server, EventSet::IN))
            .expect("the server's socket is registered by its only worker");
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.fd() == self.server.as_raw_fd() {
            self.take_replies(ops);
            self.set_blocked(false, ops);
        } else {
            for queue in &mut self.queues {
                queue.on_event(events, ops);
            }
        }
        for queue in 0..self.queues.len() {
            self.send_requests(queue, ops);
        }
        let [priority, requests] = &mut self.queues;
        priority.signal_both(requests);
    }
}

impl FsWorker {
    fn send_requests(&mut self, index: usize, ops: &mut EventOps) {
        let mut budget = BUDGET;
        self.queues[index].disable_notifications();
        loop {
            while budget.is_left()
                && !self.is_blocked
                && let Some(chain) = self.queues[index].pop()
            {
                budget.spend(chain.bytes());
                self.send_request(index, chain, ops);
            }
            if !budget.is_left() {
                self.queues[index].wake_self();
                break;
            }
            // The server's socket wakes a blocked worker.
            if self.is_blocked || !self.queues[index].enable_notifications() {
                break;
            }
        }
    }

    fn send_request(&mut self, index: usize, mut chain: Chain, ops: &mut EventOps) {
        let room = chain.writable.bytes();
        let request = Request::read(&mut chain.readable);
        let queue = &mut self.queues[index];
        let Some(mut request) = request.filter(|_| room == 0 || room >= REPLY_HEADER_BYTES) else {
            queue.fail(QueueError::Layout);
            return;
        };
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let unique = request.replace_unique(token);
        let sent = self.server.send(request.bytes());
        match sent {
            Sent::Blocked => {
                queue.undo_pop(chain);
                self.set_blocked(true, ops);
            }
            Sent::Gone => complete_failed(queue, chain, unique, libc::ENOTCONN),
            Sent::Whole if room == 0 => queue.complete(chain, 0),
            Sent::Whole => self.in_flight.push(InFlight { token, unique, queue: index, chain }),
        }
    }

    fn take_replies(&mut self, ops: &mut EventOps) {
        for _ in 0..REPLIES_AT_ONCE {
            match self.server.receive() {
                Received::Nothing => return,
                Received::Message => self.take_reply(),
                Received::Gone => {
                    ops.remove(Events::empty(&self.server)).expect("the socket is registered");
                    for lost in self.in_flight.drain(..) {
                        let queue = &mut self.queues[lost.queue];
                        complete_failed(queue, lost.chain, lost.unique, libc::ENOTCONN);
                    }
                    return;
                }
            }
        }
    }

    /// Completes the request that the last message is the reply to, if there is one.
    fn take_reply(&mut self) {
        let Some(mut reply) = self.server.reply() else { return };
        let token = reply.unique();
        let Some(index) = self.in_flight.iter().position(|request| request.token == token) else {
            return;
        };
        let InFlight { unique, queue, mut chain, .. } = self.in_flight.swap_remove(index);
        let queue = &mut self.queues[queue];
        if !reply.is_whole() || reply.bytes().len() > chain.writable.bytes() {
            complete_failed(queue, chain, unique, libc::EIO);
            return;
        }
        reply.set_unique(unique);
        let written = chain.writable.write(reply.bytes());
        queue.complete(chain, written as u32);
    }

    fn set_blocked(&mut self, blocked: bool, ops: &mut EventOps) {
        if self.is_blocked == blocked || self.server.is_gone() {
            self.is_blocked &= blocked;
            return;
        }
        self.is_blocked = blocked;
        let events = if blocked { EventSet::IN | EventSet::OUT } else { EventSet::IN };
        ops.modify(Events::new(&self.server, events)).expect("the socket is registered");
    }
}

/// Answers the guest in the server's place.
fn complete_failed(queue: &mut DeviceQueue, mut chain: Chain, unique: u64, error: i32) {
    let written = chain.writable.write(&message::failure(unique, error));
    queue.complete(chain, written as u32);
}

#[cfg(test)]
mod tests;
