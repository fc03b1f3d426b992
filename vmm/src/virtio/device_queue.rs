//! A virtqueue as a device's worker uses it: take chains, complete them, signal.
//!
//! A driver that breaks the ring's rules gets DEVICE_NEEDS_RESET and its queue is latched:
//! nothing more is read from it until the driver resets the device. The worker stays
//! alive, so the reset always works.

use std::{io, ops::Deref, os::fd::AsRawFd, sync::Arc};

use event_manager::{EventOps, EventSet, Events};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::{eventfd::EventFd, timerfd::TimerFd};

use super::{
    ActivateError, Activation, ActiveQueue, Interrupt, Memory,
    chain::{Chain, ChainError, Table},
    kick_limit::{KickLimit, MUTE},
};

/// The ring features that every device here offers.
pub const RING_FEATURES: u64 = (1 << VIRTIO_RING_F_INDIRECT_DESC) | (1 << VIRTIO_RING_F_EVENT_IDX);

/// Edge-triggered, every notification is an event though the counter is never read: that
/// saves a system call each.
const KICKS: EventSet = EventSet::IN.union(EventSet::EDGE_TRIGGERED);

/// What a wake-up may do before other devices of the I/O thread get their turn.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub chains: usize,
    /// Of all buffers in the chains; a single chain may exceed it.
    pub bytes: usize,
}

impl Budget {
    /// Whether there is anything left.
    pub fn is_left(&self) -> bool {
        self.chains > 0 && self.bytes > 0
    }

    pub fn spend(&mut self, bytes: usize) {
        self.chains = self.chains.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Why a queue was latched.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("read or write a ring")]
    Ring(#[source] virtio_queue::Error),
    #[error("read a descriptor chain")]
    Chain(#[source] ChainError),
    #[error("a chain does not have the buffers that the device needs")]
    Layout,
    #[error("the host cannot do what every request needs")]
    Host(#[source] io::Error),
}

pub struct DeviceQueue {
    queue: Queue,
    notify: Arc<EventFd>,
    memory: Memory,
    interrupt: Arc<Interrupt>,
    indirect_allowed: bool,
    /// A completed chain, whose lists are used again.
    spare: Option<Chain>,
    /// Whether anything was completed since the driver was last signalled.
    news: bool,
    /// Whether it is to be signalled whatever it says.
    must_signal: bool,
    failure: Option<QueueError>,
    kick_limit: KickLimit,
    /// Made when the driver is first muted; ends that.
    unmute_timer: Option<TimerFd>,
}

/// The queues of an activation, of which the driver must have set up all but the last
/// `optional` ones.
pub fn device_queues<const COUNT: usize>(
    activation: Activation,
    optional: usize,
) -> Result<[DeviceQueue; COUNT], ActivateError> {
    let Activation { features, queues, memory, interrupt } = activation;
    let got = queues.len();
    let queues: [ActiveQueue; COUNT] =
        queues.try_into().map_err(|_| ActivateError::QueueCount { expected: COUNT, got })?;
    if let Some(index) = queues[..COUNT - optional].iter().position(|queue| !queue.queue.ready()) {
        return Err(ActivateError::QueueNotReady { index });
    }
    Ok(queues.map(|queue| DeviceQueue::new(queue, features, &memory, &interrupt)))
}

/// The queue of a device that has one.
pub fn single_queue(activation: Activation) -> Result<DeviceQueue, ActivateError> {
    device_queues::<1>(activation, 0).map(|[queue]| queue)
}

impl DeviceQueue {
    /// A queue that the driver left unused (not ready) yields no chains.
    pub fn new(
        active: ActiveQueue,
        features: u64,
        memory: &Memory,
        interrupt: &Arc<Interrupt>,
    ) -> Self {
        let ActiveQueue { mut queue, notify } = active;
        queue.set_event_idx(features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        Self {
            queue,
            notify,
            memory: Arc::clone(memory),
            interrupt: Arc::clone(interrupt),
            indirect_allowed: features & (1 << VIRTIO_RING_F_INDIRECT_DESC) != 0,
            spare: None,
            news: false,
            must_signal: false,
            failure: None,
            kick_limit: KickLimit::default(),
            unmute_timer: None,
        }
    }

    /// Asks the event manager for the driver's notifications, and looks once without one:
    /// the driver may have made buffers available before the worker was there.
    pub fn register(&self, ops: &mut EventOps) {
        ops.add(Events::new(self.notify.deref(), KICKS))
            .expect("a queue's eventfd is registered by its only worker");
        self.wake_self();
    }

    /// Takes in an event, if it is one of this queue's: then there may be chains.
    pub fn on_event(&mut self, events: Events, ops: &mut EventOps) -> bool {
        if events.fd() == self.notify.as_raw_fd() {
            if self.kick_limit.on_kick() {
                self.mute(ops);
            }
            return true;
        }
        let is_unmute = self.unmute_timer.as_ref().map(AsRawFd::as_raw_fd) == Some(events.fd());
        if is_unmute {
            self.listen(KICKS, ops);
        }
        is_unmute
    }

    /// Does not listen to the driver for a while. If the host has no timer for that, it
    /// goes on listening.
    fn mute(&mut self, ops: &mut EventOps) {
        if self.unmute_timer.is_none()
            && let Ok(timer) = TimerFd::new()
            // Edge-triggered, so that the timer need not be read.
            && ops.add(Events::new(&timer, EventSet::IN | EventSet::EDGE_TRIGGERED)).is_ok()
        {
            self.unmute_timer = Some(timer);
        }
        if let Some(timer) = &mut self.unmute_timer
            && timer.reset(MUTE, None).is_ok()
        {
            self.listen(EventSet::empty(), ops);
        }
    }

    fn listen(&self, events: EventSet, ops: &mut EventOps) {
        ops.modify(Events::new(self.notify.deref(), events)).expect("the eventfd is registered");
    }

    /// Wakes this worker again, after other devices had their turn.
    pub fn wake_self(&self) {
        // A full counter means that the wake-up is pending anyway.
        let _ = self.notify.write(1);
    }

    /// Why the queue is latched, if it is.
    pub fn failure(&self) -> Option<&QueueError> {
        self.failure.as_ref()
    }

    /// The next chain that the driver made available. `None`: none now, or none ever.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.failure.is_some() || !self.queue.ready() {
            return None;
        }
        let memory: &GuestMemoryMmap = &self.memory;
        let head = match self.queue.iter(memory) {
            Ok(mut available) => available.next()?.head_index(),
            Err(error) => {
                self.fail(QueueError::Ring(error));
                return None;
            }
        };
        let table =
            Table { address: GuestAddress(self.queue.desc_table()), size: self.queue.size() };
        let mut chain = self.spare.take().unwrap_or_else(|| Chain::new(&self.memory));
        self.kick_limit.note_use();
        match chain.load(&self.memory, table, head, self.indirect_allowed) {
            Ok(()) => Some(chain),
            Err(error) => {
                self.fail(QueueError::Chain(error));
                None
            }
        }
    }

    /// Makes the chain that was popped last the next one again.
    pub fn undo_pop(&mut self, chain: Chain) {
        self.queue.go_to_previous_position();
        self.spare = Some(chain);
    }

    /// Gives a chain back to the driver; the first `written` bytes of its writable buffers
    /// are defined.
    pub fn complete(&mut self, chain: Chain, written: u32) {
        if let Err(error) = self.queue.add_used(self.memory.deref(), chain.head, written) {
            self.fail(QueueError::Ring(error));
        }
        self.spare = Some(chain);
        self.news = true;
    }

    /// The same for several, of which the driver sees all or none (virtio 1.2 §5.1.6.4).
    pub fn complete_together(&mut self, chains: &mut Vec<(Chain, u32)>) {
        const HEADER_BYTES: u64 = 4;
        const ELEMENT_BYTES: u64 = 8;
        let Some((last, last_written)) = chains.pop() else { return };
        let first = self.queue.next_used();
        let mut next = first;
        for (chain, written) in chains.drain(..) {
            let slot = u64::from(next % self.queue.size());
            let element = [u32::from(chain.head).to_le(), written.to_le()];
            let address = self.queue.used_ring() + HEADER_BYTES + slot * ELEMENT_BYTES;
            // The ring was seen to lie in memory; if not, the last one says so.
            let _ = self.memory.write_obj(element, GuestAddress(address));
            next = next.wrapping_add(1);
        }
        if next != first {
            // The queue does not know that it is more than one: the driver is told anyway.
            self.queue.set_next_used(next);
            self.must_signal = true;
        }
        self.complete(last, last_written);
    }

    /// Interrupts the driver, if it wants to hear about what was completed.
    pub fn signal(&mut self) {
        if self.wants_signal() {
            self.interrupt.signal_used_queue();
        }
    }

    /// The same for two queues of a device, by one interrupt.
    pub fn signal_both(&mut self, other: &mut Self) {
        // Both are asked: the answer is also the note that the driver will be told.
        if self.wants_signal() | other.wants_signal() {
            self.interrupt.signal_used_queue();
        }
    }

    fn wants_signal(&mut self) -> bool {
        if !std::mem::take(&mut self.news) {
            return false;
        }
        let must = std::mem::take(&mut self.must_signal);
        let wants = self.queue.needs_notification(self.memory.deref());
        must | wants.unwrap_or_else(|error| {
            self.fail(QueueError::Ring(error));
            false
        })
    }

    /// Asks the driver for a notification when it makes a chain available. Returns whether
    /// there is one already.
    pub fn enable_notifications(&mut self) -> bool {
        if self.failure.is_some() || !self.queue.ready() {
            return false;
        }
        self.queue.enable_notification(self.memory.deref()).unwrap_or_else(|error| {
            self.fail(QueueError::Ring(error));
            false
        })
    }

    /// Spares the driver its notifications while the worker looks at the queue anyway.
    pub fn disable_notifications(&mut self) {
        if self.failure.is_some() || !self.queue.ready() {
            return;
        }
        if let Err(error) = self.queue.disable_notification(self.memory.deref()) {
            self.fail(QueueError::Ring(error));
        }
    }

    /// Latches the queue: the driver has broken the rules.
    pub fn fail(&mut self, error: QueueError) {
        if self.failure.is_none() {
            self.failure = Some(error);
            self.interrupt.needs_reset();
        }
    }

    /// Handles available chains until there are none or the budget is spent; then the rest
    /// follows in another wake-up. The driver is not signalled yet. `handle` returns the
    /// number of bytes it wrote, or that the chain lacks the buffers it needs.
    pub fn serve(
        &mut self,
        mut budget: Budget,
        mut handle: impl FnMut(&mut Chain) -> Result<u32, QueueError>,
    ) {
        self.disable_notifications();
        loop {
            while budget.is_left()
                && let Some(mut chain) = self.pop()
            {
                budget.spend(chain.bytes());
                match handle(&mut chain) {
                    Ok(written) => self.complete(chain, written),
                    Err(error) => self.fail(error),
                }
            }
            if !budget.is_left() {
                self.wake_self();
                break;
            }
            if !self.enable_notifications() {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests;
