//! A driver that asks for entropy with buffers of every kind. Nothing outside them changes,
//! and no request gets more than it may.

#![no_main]

use caisson_vmm::virtio::{
    rng::Rng,
    testing::{
        Buffer::{self, Readable, Writable},
        DATA, Driver, RAM_END,
    },
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const MAX_REQUEST_BYTES: u32 = 4096;
const TABLE: u64 = DATA;
const BUFFERS: u64 = DATA + 0x1000;

#[derive(Arbitrary, Debug)]
struct Request {
    readable: Vec<(u16, u16)>,
    writable: Vec<(u32, Length)>,
    indirect: bool,
    broken: Option<(u8, u64, u32, u16, u16)>,
    reset: bool,
}

#[derive(Arbitrary, Debug)]
enum Length {
    Short(u16),
    ToTheEnd,
}

fn buffers(request: &Request) -> Vec<Buffer> {
    let place = |offset: u64| BUFFERS + offset % (RAM_END - BUFFERS);
    let readable = request
        .readable
        .iter()
        .take(4)
        .map(|&(offset, bytes)| Readable(BUFFERS + u64::from(offset), u32::from(bytes) + 1));
    let writable = request.writable.iter().take(8).map(|(offset, length)| {
        let start = place(u64::from(*offset));
        let rest = (RAM_END - start) as u32;
        match length {
            Length::Short(bytes) => Writable(start, (u32::from(*bytes) + 1).min(rest)),
            Length::ToTheEnd => Writable(start, rest),
        }
    });
    readable.chain(writable).collect()
}

fn send(driver: &mut Driver, request: &Request) {
    let mut buffers = buffers(request);
    if buffers.is_empty() {
        buffers.push(Writable(BUFFERS, 64));
    }
    let count = buffers.len() as u16;
    if driver.queues[0].free_count() < buffers.len() {
        return;
    }
    let before = driver.snapshot();
    let indirect = request.indirect && request.broken.is_none();
    let head = if indirect {
        driver.queues[0].add_indirect(TABLE, &buffers)
    } else {
        driver.queues[0].add(&buffers)
    };
    if let Some((which, address, bytes, flags, next)) = request.broken {
        let index = (head + u16::from(which) % count) % driver.queues[0].size;
        // No further writable buffer, so that the check below knows them all.
        driver.queues[0].put(index, address % (RAM_END + 64), bytes, flags & !2, next % 32);
    }
    driver.kick(0);
    let writable = buffers.iter().filter_map(|buffer| match *buffer {
        Writable(address, bytes) => Some((address, bytes)),
        Readable(..) => None,
    });
    let total: u64 = writable.clone().map(|(_, bytes)| u64::from(bytes)).sum();
    for used in driver.queues[0].take_used() {
        assert!(used.written > 0 && used.written <= MAX_REQUEST_BYTES, "{used:?}");
        assert!(request.broken.is_some() || u64::from(used.written) <= total, "{used:?}");
    }
    let mut changeable: Vec<_> =
        writable.map(|(address, bytes)| address..address + u64::from(bytes)).collect();
    if indirect {
        changeable.push(TABLE..TABLE + u64::from(count) * 16);
    }
    driver.assert_unchanged_except(&before, &changeable);
}

fuzz_target!(|requests: Vec<Request>| {
    let mut device = Rng::new();
    let mut driver = Driver::new(&mut device);
    for request in requests.iter().take(16) {
        send(&mut driver, request);
        if request.reset || driver.interrupt.is_reset_needed() {
            driver.reset();
            driver.activate(&mut device);
        }
    }
});
