//! Makes the devices and connects them: registers to a bus, notifications and interrupts
//! to eventfds, workers to threads.

use std::{
    fs::File,
    iter, mem,
    sync::{Arc, Mutex},
};

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{BuildError, kvm_failed};
use crate::{
    boot::layout::{self, VirtioSlot},
    boot_timer::BootTimer,
    bus::Bus,
    config::RateLimit,
    devices::{
        self, Sink,
        boot_stamp::{self, BootStamp},
        i8042::{self, I8042},
        serial::{self, SerialPort},
    },
    io_thread::{IoHandle, IoLoop},
    lifecycle::Lifecycle,
    spec::{BlockSpec, FsSpec, NetSpec, VsockSpec},
    virtio::{
        Interrupt, Memory, VirtioDevice,
        balloon::Balloon,
        block::Block,
        fs::Fs,
        mmio::Transport,
        net::{Net, NetCounters},
        registers::offset,
        rng::Rng,
        throttle::RateLimiter,
        vsock::Vsock,
    },
};

/// The virtio devices of a VM, before they are connected.
pub(super) struct Virtio {
    pub(super) block: Vec<BlockSpec>,
    pub(super) disk_limit: RateLimit,
    pub(super) net: Vec<NetSpec>,
    pub(super) vsock: Option<VsockSpec>,
    pub(super) fs: Option<FsSpec>,
    pub(super) rng: bool,
    pub(super) balloon: bool,
}

/// The devices in their places.
pub(super) struct Connected {
    pub(super) mmio: Bus,
    /// What serves their workers, with the names of the threads.
    pub(super) io_loops: Vec<(&'static str, IoLoop)>,
    /// What each network device counts.
    pub(super) net: Vec<Arc<NetCounters>>,
}

impl Virtio {
    /// Puts all devices into their `slots`. Disks have a thread of their own: their requests
    /// block.
    pub(super) fn connect(
        mut self,
        vm: &VmFd,
        memory: &Memory,
        slots: &[VirtioSlot],
    ) -> Result<Connected, BuildError> {
        let mut mmio = Bus::new("access to no MMIO device");
        let mut io_loops = Vec::new();
        let mut slots = slots.iter().copied();
        let disks = disks(mem::take(&mut self.block), self.disk_limit)?;
        let mut net = Vec::new();
        for (thread, devices) in [("block", disks), ("io", self.others(&mut net)?)] {
            if devices.is_empty() {
                continue;
            }
            let io = IoLoop::new().map_err(BuildError::EventLoop)?;
            for (device, slot) in devices.into_iter().zip(&mut slots) {
                let transport = connect(vm, memory, device, slot, io.handle())?;
                let transport = Arc::new(Mutex::new(transport));
                mmio.insert(slot.address, layout::VIRTIO_MMIO_BYTES, transport)?;
            }
            io_loops.push((thread, io));
        }
        Ok(Connected { mmio, io_loops, net })
    }

    /// The devices whose requests never block.
    fn others(
        self,
        counters: &mut Vec<Arc<NetCounters>>,
    ) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        for spec in self.net {
            let net = Net::new(spec).map_err(BuildError::Net)?;
            counters.push(net.counters());
            devices.push(Box::new(net));
        }
        if let Some(spec) = self.vsock {
            devices.push(Box::new(Vsock::new(spec).map_err(BuildError::Vsock)?));
        }
        if let Some(spec) = self.fs {
            devices.push(Box::new(Fs::new(spec)));
        }
        if self.rng {
            devices.push(Box::new(Rng::new()));
        }
        if self.balloon {
            devices.push(Box::new(Balloon::new()));
        }
        Ok(devices)
    }
}

/// They share one limit.
fn disks(
    specs: Vec<BlockSpec>,
    limit: RateLimit,
) -> Result<Vec<Box<dyn VirtioDevice>>, BuildError> {
    let limiter = RateLimiter::new(limit);
    let open = |spec: BlockSpec| -> Result<Box<dyn VirtioDevice>, BuildError> {
        let serial = spec.serial.clone();
        let block = Block::new(spec).map_err(|source| BuildError::Block { serial, source })?;
        Ok(Box::new(block.limited(limiter.clone())))
    };
    specs.into_iter().map(open).collect()
}

/// The lines of all devices.
pub(super) fn irqs(slots: &[VirtioSlot]) -> Vec<u8> {
    iter::once(layout::SERIAL_IRQ).chain(slots.iter().map(|slot| slot.irq)).collect()
}

/// Gives `device` the registers, the interrupt and the notifications of `slot`.
fn connect(
    vm: &VmFd,
    memory: &Memory,
    device: Box<dyn VirtioDevice>,
    slot: VirtioSlot,
    io: IoHandle,
) -> Result<Transport, BuildError> {
    let line = event()?;
    vm.register_irqfd(&line, slot.irq.into()).map_err(kvm_failed("bind an interrupt"))?;
    let register = IoEventAddress::Mmio(slot.address + offset::QUEUE_NOTIFY);
    let mut notify = Vec::new();
    for index in 0..device.queue_max_sizes().len() as u32 {
        let event = event()?;
        vm.register_ioevent(&event, &register, index).map_err(kvm_failed("bind a notification"))?;
        notify.push(Arc::new(event));
    }
    let interrupt = Arc::new(Interrupt::new(line));
    Ok(Transport::new(device, interrupt, notify, memory.clone(), io))
}

/// The devices on port I/O, and the console among them.
pub(super) fn ports(
    vm: &VmFd,
    lifecycle: &Arc<Lifecycle>,
    timer: &Arc<BootTimer>,
    console: Option<File>,
) -> Result<(Bus, Arc<Mutex<SerialPort>>), BuildError> {
    let line = event()?;
    vm.register_irqfd(&line, layout::SERIAL_IRQ.into()).map_err(kvm_failed("bind an interrupt"))?;
    let serial = Arc::new(Mutex::new(SerialPort::new(line, console)));
    let keyboard = Arc::new(Mutex::new(I8042(lifecycle.clone())));
    let stamp = Arc::new(Mutex::new(BootStamp(timer.clone())));

    let mut bus = Bus::new("access to no port");
    bus.insert(serial::PORT, serial::PORTS, serial.clone())?;
    bus.insert(i8042::PORT, i8042::PORTS, keyboard)?;
    bus.insert(boot_stamp::PORT, 1, stamp)?;
    for (start, ports) in devices::SILENT_PORTS {
        bus.insert(start, ports, Arc::new(Mutex::new(Sink)))?;
    }
    Ok((bus, serial))
}

fn event() -> Result<EventFd, BuildError> {
    EventFd::new(EFD_NONBLOCK).map_err(BuildError::Event)
}
