//! A driver that sends a disk mostly valid requests, some with a broken descriptor.

#![no_main]

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
};

use caisson_vmm::{
    spec::BlockSpec,
    virtio::{
        block::Block,
        testing::{
            Buffer::{self, Readable, Writable},
            DATA, Driver, RAM_END,
        },
    },
};
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};

const SECTORS: u64 = 32;
const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFERS: u64 = DATA + 0x1000;
const TABLE: u64 = DATA + 0x200;

#[derive(Arbitrary, Debug)]
struct Input {
    readonly: bool,
    requests: Vec<Request>,
}

#[derive(Arbitrary, Debug)]
struct Request {
    kind: Kind,
    sector: Sector,
    /// Data that the device may read: a discard's segment, or what is written.
    segment: (u8, u32, u32),
    buffers: Vec<(u16, Length, bool)>,
    indirect: bool,
    broken: Option<(u8, u64, u32, u16, u16)>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Other(u32),
}

#[derive(Arbitrary, Debug)]
enum Sector {
    OnDisk(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
enum Length {
    Sectors(u8),
    Bytes(u16),
}

impl Kind {
    fn number(&self) -> u32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(number) => *number,
        }
    }
}

impl Sector {
    fn number(&self) -> u64 {
        match self {
            Self::OnDisk(sector) => u64::from(*sector) % SECTORS,
            Self::Any(sector) => *sector,
        }
    }
}

impl Length {
    fn bytes(&self) -> u32 {
        match self {
            Self::Sectors(sectors) => u32::from(sectors % 8 + 1) * 512,
            Self::Bytes(bytes) => u32::from(*bytes),
        }
    }
}

thread_local! {
    static DISK: RefCell<tempfile::NamedTempFile> =
        RefCell::new(tempfile::NamedTempFile::new_in("/dev/shm").expect("a file in memory"));
}

fn pattern() -> Vec<u8> {
    (0..SECTORS * 512).map(|n| (n % 251) as u8).collect()
}

fn fresh_disk(readonly: bool) -> File {
    DISK.with_borrow(|disk| {
        disk.as_file().set_len(SECTORS * 512).expect("the file can be resized");
        disk.as_file().write_all_at(&pattern(), 0).expect("the file can be written");
        OpenOptions::new()
            .read(true)
            .write(!readonly)
            .open(disk.path())
            .expect("the file can be opened again")
    })
}

fn send(driver: &mut Driver, request: &Request) {
    driver.write(HEADER, &request.kind.number().to_le_bytes());
    driver.write(HEADER + 4, &[0; 4]);
    driver.write(HEADER + 8, &request.sector.number().to_le_bytes());
    let (sector, sectors, flags) = request.segment;
    driver.write(HEADER + 16, &u64::from(sector).to_le_bytes());
    driver.write(HEADER + 24, &sectors.to_le_bytes());
    driver.write(HEADER + 28, &flags.to_le_bytes());

    let has_segment = matches!(request.kind, Kind::Discard | Kind::WriteZeroes);
    let mut buffers = vec![Readable(HEADER, if has_segment { 32 } else { 16 })];
    let data = |writable: bool| {
        request.buffers.iter().take(6).filter(move |(_, _, write)| *write == writable).map(
            move |(offset, length, _)| {
                let (address, bytes) = (BUFFERS + u64::from(*offset) * 16, length.bytes());
                if writable { Writable(address, bytes) } else { Readable(address, bytes) }
            },
        )
    };
    buffers.extend(data(false));
    buffers.extend(data(true));
    buffers.push(Writable(STATUS, 1));

    let broken = request.broken.is_some();
    let before = driver.snapshot();
    let count = buffers.len() as u16;
    let head = if request.indirect && !broken {
        driver.queues[0].add_indirect(TABLE, &buffers)
    } else {
        driver.queues[0].add(&buffers)
    };
    if let Some((which, address, bytes, flags, next)) = request.broken {
        let index = (head + u16::from(which) % count) % driver.queues[0].size;
        // No further writable buffer, so that the check below knows them all.
        driver.queues[0].put(index, address % (RAM_END + 64), bytes, flags & !2, next % 512);
    }
    driver.kick(0);
    driver.queues[0].take_used();

    let mut changeable: Vec<_> = buffers
        .iter()
        .filter_map(|buffer: &Buffer| match *buffer {
            Writable(address, bytes) => Some(address..address + u64::from(bytes)),
            Readable(..) => None,
        })
        .collect();
    if request.indirect && !broken {
        changeable.push(TABLE..TABLE + u64::from(count) * 16);
    }
    driver.assert_unchanged_except(&before, &changeable);
}

fuzz_target!(|input: Input| {
    let file = fresh_disk(input.readonly);
    let spec = BlockSpec { serial: "fuzz".into(), readonly: input.readonly, files: vec![file] };
    let mut device = Block::new(spec).expect("the file suits the device");
    let mut driver = Driver::new(&mut device);
    for request in input.requests.iter().take(16) {
        send(&mut driver, request);
        if driver.interrupt.is_reset_needed() {
            driver.reset();
            driver.activate(&mut device);
        }
    }
    DISK.with_borrow(|disk| {
        let content = std::fs::read(disk.path()).expect("the file can be read");
        assert_eq!(content.len() as u64, SECTORS * 512);
        assert!(!input.readonly || content == pattern(), "a read-only file was changed");
    });
});
