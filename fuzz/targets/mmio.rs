//! A driver that accesses the registers of devices in every order and width, with
//! notifications at any time. The status only ever tells of steps in their order, reading
//! changes nothing, and whatever was done, a reset and the proper steps give a device that
//! works.

#![no_main]

use std::{
    sync::{Arc, Mutex, OnceLock},
    thread,
};

use caisson_vmm::{
    bus::BusDevice,
    io_thread::{IoHandle, IoLoop},
    spec::BlockSpec,
    virtio::{
        Interrupt, VirtioDevice,
        balloon::Balloon,
        block::Block,
        mmio::Transport,
        registers::offset,
        rng::Rng,
        testing::{RAM_END, memory},
    },
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const STEPS: [u32; 5] = [0, 1, 3, 11, 15];
const FAILED: u32 = 0x80;
const NEEDS_RESET: u32 = 0x40;
const RINGS: u64 = 0x1000;

#[derive(Arbitrary, Debug)]
struct Input {
    kind: Kind,
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Block,
    Rng,
    Balloon,
}

#[derive(Arbitrary, Debug)]
enum Op {
    /// As many of the steps of a good driver as this says.
    Steps(u8),
    Features(u32, u32),
    Queue {
        index: u8,
        size: Size,
        place: Place,
    },
    Status(u8),
    Register {
        offset: u8,
        value: u32,
    },
    Write {
        offset: u16,
        bytes: [u8; 8],
        width: u8,
    },
    Read {
        offset: u16,
        width: u8,
    },
    Notify(u8),
}

#[derive(Arbitrary, Debug)]
enum Size {
    Good(u8),
    Any(u32),
}

#[derive(Arbitrary, Debug)]
enum Place {
    Good,
    AtEnd(u16),
    Any(u64),
}

/// One thread serves the workers of all inputs.
fn io() -> IoHandle {
    static IO: OnceLock<Mutex<IoHandle>> = OnceLock::new();
    let handle = IO.get_or_init(|| {
        let io = IoLoop::new().expect("an epoll instance");
        let handle = io.handle();
        thread::spawn(move || panic!("the loop ended: {}", io.run()));
        Mutex::new(handle)
    });
    handle.lock().expect("nothing panics while it holds the lock").clone()
}

struct Guest {
    transport: Transport,
    notify: Vec<Arc<EventFd>>,
    queues: u32,
}

impl Guest {
    fn new(kind: &Kind) -> Self {
        let device: Box<dyn VirtioDevice> = match kind {
            Kind::Block => {
                let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
                file.set_len(8192).expect("it can be resized");
                let spec = BlockSpec { serial: "fuzz".into(), readonly: false, files: vec![file] };
                Box::new(Block::new(spec).expect("the file suits the device"))
            }
            Kind::Rng => Box::new(Rng::new()),
            Kind::Balloon => Box::new(Balloon::new()),
        };
        let event = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let notify: Vec<_> = device.queue_max_sizes().iter().map(|_| event()).collect();
        let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let queues = notify.len() as u32;
        let interrupt = Arc::new(Interrupt::new(line));
        let transport = Transport::new(device, interrupt, notify.clone(), memory(), io());
        Self { transport, notify, queues }
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut value = [0; 4];
        self.transport.read(offset, &mut value);
        u32::from_le_bytes(value)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// The status, which must be one that the steps in their order give.
    fn status(&mut self) -> u32 {
        let status = self.read(offset::STATUS);
        assert!(STEPS.contains(&(status & !(FAILED | NEEDS_RESET))), "status {status:#x}");
        status
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Steps(count) => self.steps(count % 8),
            Op::Features(low, high) => {
                for (select, half) in [(0, low), (1, high)] {
                    self.write(offset::DRIVER_FEATURES_SELECT, select);
                    self.write(offset::DRIVER_FEATURES, half);
                }
            }
            Op::Queue { index, ref size, ref place } => {
                let size = match *size {
                    Size::Good(size) => 1 << (size % 9),
                    Size::Any(size) => size,
                };
                self.queue(u32::from(index % 4), size, place);
            }
            Op::Status(status) => self.write(offset::STATUS, status.into()),
            Op::Register { offset, value } => self.write(u64::from(offset) & !3, value),
            Op::Write { offset, bytes, width } => {
                let width = [1, 2, 4, 8][usize::from(width % 4)];
                self.transport.write(u64::from(offset % 0x1000), &bytes[..width]);
            }
            Op::Read { offset, width } => {
                let before = self.status();
                let mut bytes = [0xaa; 8];
                let width = [1, 2, 4, 8][usize::from(width % 4)];
                self.transport.read(u64::from(offset % 0x1000), &mut bytes[..width]);
                // The worker may ask for a reset meanwhile.
                assert_eq!(before | NEEDS_RESET, self.status() | NEEDS_RESET);
            }
            Op::Notify(queue) => {
                if let Some(event) = self.notify.get(usize::from(queue)) {
                    let _ = event.write(1);
                }
                self.write(offset::QUEUE_NOTIFY, queue.into());
            }
        }
        self.status();
    }

    /// The first `count` steps of a good driver.
    fn steps(&mut self, count: u8) {
        for step in 0..count {
            match step {
                0 => self.write(offset::STATUS, 0),
                1 => self.write(offset::STATUS, 1),
                2 => self.write(offset::STATUS, 3),
                3 => {
                    self.write(offset::DRIVER_FEATURES_SELECT, 0);
                    self.write(offset::DRIVER_FEATURES, 0);
                    self.write(offset::DRIVER_FEATURES_SELECT, 1);
                    self.write(offset::DRIVER_FEATURES, 1);
                }
                4 => self.write(offset::STATUS, 11),
                5 => (0..self.queues).for_each(|index| self.queue(index, 8, &Place::Good)),
                _ => self.write(offset::STATUS, 15),
            }
        }
    }

    fn queue(&mut self, index: u32, size: u32, place: &Place) {
        let base = match *place {
            Place::Good => RINGS + u64::from(index) * 0x3000,
            Place::AtEnd(before) => RAM_END - u64::from(before & !15),
            Place::Any(address) => address,
        };
        self.write(offset::QUEUE_SELECT, index);
        self.write(offset::QUEUE_SIZE, size);
        for (part, (low, high)) in (0..).zip([
            (offset::QUEUE_DESC_LOW, offset::QUEUE_DESC_HIGH),
            (offset::QUEUE_AVAIL_LOW, offset::QUEUE_AVAIL_HIGH),
            (offset::QUEUE_USED_LOW, offset::QUEUE_USED_HIGH),
        ]) {
            let address = base.wrapping_add(part * 0x1000);
            self.write(low, address as u32);
            self.write(high, (address >> 32) as u32);
        }
        self.write(offset::QUEUE_READY, 1);
    }
}

fuzz_target!(|input: Input| {
    let mut guest = Guest::new(&input.kind);
    for op in input.ops.iter().take(64) {
        guest.step(op);
    }
    guest.steps(1);
    assert_eq!(guest.status(), 0, "status after a reset");
    guest.steps(8);
    assert_eq!(guest.status(), 15, "status after the proper steps");
    guest.steps(1);
    assert_eq!(guest.status(), 0);
});
