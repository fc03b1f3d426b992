//! A virtio device on the MMIO bus (virtio 1.2 §4.2): answers the driver's register
//! accesses, and starts and stops the device's worker.

use std::sync::Arc;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::EventFd;

use super::{
    ActivateError, Activation, ActiveQueue, Interrupt, Memory, VirtioDevice,
    registers::{Effect, Identity, QueueRegisters, Registers, offset},
};
use crate::{
    bus::BusDevice,
    io_thread::{IoHandle, RunningWorker},
    log::GuestLog,
};

/// What keeps a device from being activated; the driver sees DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
enum TransportError {
    #[error("queue {index}: its {part} at {address:#x} is not in guest memory")]
    QueueOutsideMemory { index: usize, part: &'static str, address: u64 },
    #[error("queue {index} has registers that make no queue")]
    Queue {
        index: usize,
        #[source]
        source: virtio_queue::Error,
    },
    #[error("activate the device")]
    Device(#[from] ActivateError),
    #[error("give the device's worker to its thread")]
    Thread(#[source] event_manager::Error),
}

pub struct Transport {
    device: Box<dyn VirtioDevice>,
    identity: Identity,
    registers: Registers,
    interrupt: Arc<Interrupt>,
    /// Bound to QueueNotify with each queue's index (KVM_IOEVENTFD).
    notify: Vec<Arc<EventFd>>,
    memory: Memory,
    io: IoHandle,
    /// There is one from the activation to the reset.
    worker: Option<RunningWorker>,
    refused: GuestLog,
}

impl Transport {
    /// `notify` has one eventfd for each of the device's queues.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        interrupt: Arc<Interrupt>,
        notify: Vec<Arc<EventFd>>,
        memory: Memory,
        io: IoHandle,
    ) -> Self {
        let identity = Identity {
            device_id: device.device_id(),
            features: device.features(),
            queue_max_sizes: device.queue_max_sizes().to_vec(),
        };
        Self {
            registers: Registers::new(identity.queue_max_sizes.len()),
            identity,
            device,
            interrupt,
            notify,
            memory,
            io,
            worker: None,
            refused: GuestLog::new("virtio access ignored"),
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match self.registers.write(offset, value, &self.identity) {
            Effect::None => {}
            Effect::Refused => self.refuse(format_args!("{value:#x} to register {offset:#x}")),
            Effect::Acknowledge(bits) => self.interrupt.acknowledge(bits),
            Effect::Reset => self.reset(),
            Effect::Activate => match self.activate() {
                Ok(worker) => self.worker = Some(worker),
                Err(error) => {
                    self.refuse(format_args!("activation: {}", crate::error_chain(&error)));
                    self.interrupt.needs_reset();
                }
            },
        }
    }

    fn activate(&mut self) -> Result<RunningWorker, TransportError> {
        let features = self.registers.driver_features;
        let event_idx = features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let sizes = self.identity.queue_max_sizes.iter();
        let queues = sizes
            .zip(&self.registers.queues)
            .zip(&self.notify)
            .enumerate()
            .map(|(index, ((&max, registers), notify))| {
                let queue = queue(&self.memory, index, max, registers, event_idx)?;
                Ok(ActiveQueue { queue, notify: notify.clone() })
            })
            .collect::<Result<_, TransportError>>()?;
        let worker = self.device.activate(Activation {
            features,
            queues,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
        })?;
        self.io.start(worker).map_err(TransportError::Thread)
    }

    /// Ends the worker before anything else, so that none of its requests writes to
    /// memory after the driver has read back a status of 0.
    fn reset(&mut self) {
        self.worker = None;
        self.interrupt.reset();
    }

    fn refuse(&self, what: std::fmt::Arguments) {
        self.refused.write(format_args!("device {}: {what}", self.identity.device_id));
    }
}

/// A queue as its registers describe it, after a look at where they point.
fn queue(
    memory: &Memory,
    index: usize,
    max: u16,
    registers: &QueueRegisters,
    event_idx: bool,
) -> Result<Queue, TransportError> {
    let invalid = |source| TransportError::Queue { index, source };
    let mut queue = Queue::new(max).map_err(invalid)?;
    if !registers.ready {
        return Ok(queue);
    }
    // Sizes from virtio 1.2 §2.7, the event fields included.
    let entries = usize::from(registers.size);
    for (part, address, bytes) in [
        ("descriptor table", registers.desc_table, 16 * entries),
        ("available ring", registers.avail_ring, 6 + 2 * entries),
        ("used ring", registers.used_ring, 6 + 8 * entries),
    ] {
        if !memory.check_range(GuestAddress(address), bytes) {
            return Err(TransportError::QueueOutsideMemory { index, part, address });
        }
    }
    queue.try_set_size(registers.size).map_err(invalid)?;
    queue.try_set_desc_table_address(GuestAddress(registers.desc_table)).map_err(invalid)?;
    queue.try_set_avail_ring_address(GuestAddress(registers.avail_ring)).map_err(invalid)?;
    queue.try_set_used_ring_address(GuestAddress(registers.used_ring)).map_err(invalid)?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    Ok(queue)
}

impl BusDevice for Transport {
    /// Registers are 4 bytes, read as 4 bytes (§4.2.2.2); the config space is read as the
    /// device has it.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(offset::CONFIG) {
            self.device.read_config(offset, data);
        } else if let (Ok(to), true) = (<&mut [u8; 4]>::try_from(data), offset.is_multiple_of(4)) {
            *to = self.registers.read(offset, &self.identity, &self.interrupt).to_le_bytes();
        } else {
            self.refuse(format_args!("read of register {offset:#x} of another width"));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(offset::CONFIG) {
            self.device.write_config(offset, data);
        } else if let (Ok(value), true) = (data.try_into(), offset.is_multiple_of(4)) {
            self.write_register(offset, u32::from_le_bytes(value));
        } else {
            self.refuse(format_args!("write of register {offset:#x} of another width"));
        }
    }
}

#[cfg(test)]
mod tests;
