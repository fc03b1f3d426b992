//! A driver that puts pages into the balloon and reports pages as free, some of which are
//! no pages. Only pages that it named change, and they turn to zeros.

#![no_main]

use std::ops::Range;

use caisson_vmm::virtio::{
    VirtioDevice,
    balloon::{Balloon, BalloonHandle},
    testing::{
        Buffer::{Readable, Writable},
        DATA, Driver, RAM_END,
    },
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const PAGE: u64 = 4096;
/// Where the lists of page numbers are; no list names it.
const LIST: u64 = DATA;
const FIRST_PAGE: u64 = (DATA + 0x1_0000) / PAGE;
const PAGES: u64 = RAM_END / PAGE;
const ACTUAL: u64 = 4;

#[derive(Arbitrary, Debug)]
enum Op {
    Inflate(Vec<Page>, u8),
    Deflate(Vec<Page>, u8),
    /// Buffers by their first page, an offset in it, and a number of bytes.
    Report(Vec<(u16, u16, u32)>),
    Target(u32),
    WriteConfig(u8, [u8; 8], u8),
    /// A list that the device may only write, or pages that it may only read.
    Backwards(u8, u16),
    Reset,
}

#[derive(Arbitrary, Debug)]
enum Page {
    InRam(u16),
    /// So many after the one before.
    After(u8),
    Same,
    Beyond(u32),
}

struct Guest {
    driver: Driver,
    device: Balloon,
    handle: BalloonHandle,
}

impl Guest {
    fn new() -> Self {
        let mut device = Balloon::new();
        let handle = device.handle();
        Self { driver: Driver::new(&mut device), device, handle }
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Inflate(pages, cut) => self.list(0, pages, *cut),
            Op::Deflate(pages, cut) => self.list(1, pages, *cut),
            Op::Report(buffers) => self.report(buffers),
            Op::Target(pages) => {
                self.handle.set_target_pages(*pages);
                let mut config = [0; 4];
                self.device.read_config(0, &mut config);
                assert_eq!(u32::from_le_bytes(config), *pages);
            }
            Op::WriteConfig(offset, bytes, width) => {
                let before = self.handle.state();
                let width = usize::from(width % 9);
                self.device.write_config(u64::from(*offset), &bytes[..width]);
                let after = self.handle.state();
                assert_eq!(before.target_pages, after.target_pages);
                let whole = u64::from(*offset) == ACTUAL && width == 4;
                assert!(whole || before.actual_pages == after.actual_pages);
            }
            Op::Backwards(queue, bytes) => {
                let before = self.driver.snapshot();
                let bytes = u32::from(*bytes) + 1;
                let address = FIRST_PAGE * PAGE;
                if queue % 2 == 0 {
                    self.driver.submit(0, &[Writable(address, bytes)]);
                } else {
                    self.driver.submit(2, &[Readable(address, bytes)]);
                }
                self.driver.assert_unchanged_except(&before, &[]);
            }
            Op::Reset => {
                self.driver.reset();
                assert_eq!(self.handle.state().actual_pages, 0);
                self.driver.activate(&mut self.device);
            }
        }
        assert!(!self.driver.interrupt.is_reset_needed());
    }

    /// Sends a list of page numbers, less `cut` bytes.
    fn list(&mut self, queue: usize, pages: &[Page], cut: u8) {
        let mut numbers = Vec::new();
        for page in pages.iter().take(5000) {
            let last = numbers.last().copied().unwrap_or(FIRST_PAGE as u32);
            numbers.push(match *page {
                Page::InRam(page) => (FIRST_PAGE + u64::from(page) % (PAGES - FIRST_PAGE)) as u32,
                Page::After(count) => last.saturating_add(count.into()),
                Page::Same => last,
                Page::Beyond(count) => (PAGES as u32).saturating_add(count),
            });
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let length = bytes.len().saturating_sub(cut.into());
        if length == 0 {
            return;
        }
        self.driver.write(LIST, &bytes);
        self.mark();
        let before = self.driver.snapshot();
        let used = self.driver.submit(queue, &[Readable(LIST, length as u32)]);
        assert_eq!(used.len(), 1);
        let taken = if queue == 0 { &numbers[..length / 4] } else { &[] };
        let in_ram = taken.iter().map(|number| u64::from(*number)).filter(|page| *page < PAGES);
        let changed: Vec<Range<u64>> = in_ram.map(|page| page * PAGE..(page + 1) * PAGE).collect();
        self.driver.assert_unchanged_except(&before, &changed);
        for range in changed {
            self.assert_zeros(range);
        }
    }

    /// Reports buffers as free: the whole pages in them turn to zeros.
    fn report(&mut self, buffers: &[(u16, u16, u32)]) {
        let first = FIRST_PAGE * PAGE;
        let buffers: Vec<_> = buffers
            .iter()
            .take(32)
            .map(|&(page, offset, bytes)| {
                let start = first + u64::from(page) * PAGE % (RAM_END - first);
                let start = start + u64::from(offset) % PAGE;
                (start, u64::from(bytes) % (RAM_END - start) + 1)
            })
            .collect();
        if buffers.is_empty() {
            return;
        }
        self.mark();
        let before = self.driver.snapshot();
        let chain: Vec<_> =
            buffers.iter().map(|&(start, bytes)| Writable(start, bytes as u32)).collect();
        assert_eq!(self.driver.submit(2, &chain).len(), 1);
        // Neighbours may make a page together, as one stretch or as two.
        let whole = |(start, bytes): (u64, u64)| {
            start.next_multiple_of(PAGE)..(start + bytes) / PAGE * PAGE
        };
        let changed: Vec<Range<u64>> = buffers.iter().map(|buffer| whole(*buffer)).collect();
        self.driver.assert_unchanged_except(&before, &changed);
        for range in changed.into_iter().filter(|range| !range.is_empty()) {
            self.assert_zeros(range);
        }
    }

    /// Puts a byte into every page.
    fn mark(&self) {
        for page in FIRST_PAGE..PAGES {
            self.driver.write(page * PAGE + page % PAGE, &[0xa5]);
        }
    }

    fn assert_zeros(&self, range: Range<u64>) {
        for page in range.clone().step_by(PAGE as usize) {
            let marked = page + page / PAGE % PAGE;
            assert_eq!(self.driver.read(marked, 1), [0], "the page at {page:#x} was kept");
        }
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let mut guest = Guest::new();
    for op in ops.iter().take(16) {
        guest.step(op);
    }
});
