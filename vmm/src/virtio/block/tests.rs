use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    slice,
    sync::Mutex,
    time::Instant,
};

use proptest::prelude::*;
use virtio_bindings::{
    virtio_blk::{
        VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
        VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    },
    virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
};

use super::*;
use crate::{
    config::{Rate, RateLimit},
    virtio::{
        iovecs::IoVecs,
        testing::{
            Buffer::{self, Readable, Writable},
            DATA, Driver, INDIRECT, NEXT, RAM_END, REGION_BOUNDARY, Used, WRITE,
        },
        throttle::RateLimiter,
    },
};

const OK: u8 = Status::Ok as u8;
const IO_ERROR: u8 = Status::IoError as u8;
const UNSUPPORTED: u8 = Status::Unsupported as u8;

const HEADER: u64 = DATA;
const STATUS: u64 = DATA + 0x100;
const BUFFER: u64 = DATA + 0x1000;

/// A file of `bytes` bytes in which byte n is n modulo 251.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n % 251) as u8).collect()
}

fn file_with(content: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile, writable: bool) -> File {
    OpenOptions::new().read(true).write(writable).open(file.path()).unwrap()
}

fn content(file: &tempfile::NamedTempFile) -> Vec<u8> {
    std::fs::read(file.path()).unwrap()
}

fn block(readonly: bool, files: Vec<File>) -> Block {
    Block::new(BlockSpec { serial: "layers".into(), readonly, files }).unwrap()
}

/// A driver with a device over one file of `sectors` sectors.
fn disk(sectors: usize, readonly: bool) -> (Driver, tempfile::NamedTempFile, Block) {
    let file = file_with(&pattern(sectors * 512));
    let mut device = block(readonly, vec![open(&file, !readonly)]);
    (Driver::new(&mut device), file, device)
}

fn put_header(driver: &Driver, kind: u32, sector: u64) {
    driver.write(HEADER, &kind.to_le_bytes());
    driver.write(HEADER + 4, &[0; 4]);
    driver.write(HEADER + 8, &sector.to_le_bytes());
    driver.write(STATUS, &[0xee]);
}

/// Sends a request with these data buffers and returns its status.
fn request(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> u8 {
    put_header(driver, kind, sector);
    let mut buffers = vec![Readable(HEADER, 16)];
    buffers.extend(data);
    buffers.push(Writable(STATUS, 1));
    assert_eq!(driver.submit(0, &buffers).len(), 1, "the request completes");
    driver.read(STATUS, 1)[0]
}

fn range(driver: &mut Driver, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
    driver.write(BUFFER, &sector.to_le_bytes());
    driver.write(BUFFER + 8, &sectors.to_le_bytes());
    driver.write(BUFFER + 12, &flags.to_le_bytes());
    request(driver, kind, 0, &[Readable(BUFFER, 16)])
}

#[test]
fn reads_scatter_into_the_buffers() {
    let (mut driver, file, _) = disk(16, true);
    let data = [Writable(BUFFER, 100), Writable(BUFFER + 0x1000, 924)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 3, &data), OK);
    let expected = &content(&file)[3 * 512..5 * 512];
    assert_eq!(driver.read(BUFFER, 100), expected[..100]);
    assert_eq!(driver.read(BUFFER + 0x1000, 924), expected[100..]);
}

#[test]
fn used_length_counts_data_and_status() {
    let (mut driver, _file, _) = disk(16, true);
    put_header(&driver, VIRTIO_BLK_T_IN, 0);
    let buffers = [Readable(HEADER, 16), Writable(BUFFER, 1024), Writable(STATUS, 1)];
    assert_eq!(driver.submit(0, &buffers), [Used { head: 0, written: 1025 }]);
    assert_eq!(driver.interrupt.status(), crate::virtio::interrupt::USED_BUFFER);
}

#[test]
fn writes_gather_and_reach_the_file() {
    let (mut driver, file, _) = disk(16, false);
    driver.write(BUFFER, &[7; 512]);
    let data = [Readable(BUFFER, 200), Readable(BUFFER + 200, 312)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 15, &data), OK);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    let mut expected = pattern(16 * 512);
    expected[15 * 512..].fill(7);
    assert_eq!(content(&file), expected);
}

#[test]
fn header_and_status_may_share_buffers_with_data() {
    let (mut driver, file, _) = disk(16, false);
    put_header(&driver, VIRTIO_BLK_T_OUT, 1);
    driver.write(HEADER + 16, &[9; 512]);
    let buffers = [Readable(HEADER, 5), Readable(HEADER + 5, 523), Writable(STATUS, 1)];
    assert_eq!(driver.submit(0, &buffers).len(), 1);
    assert_eq!(driver.read(STATUS, 1), [OK]);
    assert_eq!(content(&file)[512..1024], [9; 512]);

    put_header(&driver, VIRTIO_BLK_T_IN, 1);
    let buffers = [Readable(HEADER, 16), Writable(BUFFER, 513)];
    assert_eq!(driver.submit(0, &buffers)[0].written, 513);
    assert_eq!(driver.read(BUFFER + 512, 1), [OK]);
}

#[test]
fn an_indirect_table_works() {
    let (mut driver, file, _) = disk(16, true);
    put_header(&driver, VIRTIO_BLK_T_IN, 2);
    let table = DATA + 0x8000;
    let buffers = [Readable(HEADER, 16), Writable(BUFFER, 512), Writable(STATUS, 1)];
    driver.queues[0].add_indirect(table, &buffers);
    driver.kick(0);
    assert_eq!(driver.queues[0].take_used().len(), 1);
    assert_eq!(driver.read(BUFFER, 512), content(&file)[1024..1536]);
}

#[test]
fn files_follow_one_another_padded_with_zeros() {
    let (first, second) = (file_with(&[1; 5000]), file_with(&[2; 100]));
    let empty = file_with(&[]);
    let files = vec![open(&first, false), open(&empty, false), open(&second, false)];
    let mut device = block(true, files);
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 24);

    let mut driver = Driver::new(&mut device);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Writable(BUFFER, 12288)]), OK);
    let mut expected = vec![0; 12288];
    expected[..5000].fill(1);
    expected[8192..8292].fill(2);
    assert_eq!(driver.read(BUFFER, 12288), expected);
    // From within the padding, too.
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 10, &[Writable(BUFFER, 4096)]), OK);
    assert_eq!(driver.read(BUFFER, 4096), expected[5120..9216]);
}

#[test]
fn writes_cross_from_one_file_into_the_next() {
    let (first, second) = (file_with(&[0; 4096]), file_with(&[0; 4096]));
    let mut device = block(false, vec![open(&first, true), open(&second, true)]);
    let mut driver = Driver::new(&mut device);
    driver.write(BUFFER, &[5; 1024]);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 7, &[Readable(BUFFER, 1024)]), OK);
    assert_eq!(content(&first)[3584..], [5; 512]);
    assert_eq!(content(&second)[..512], [5; 512]);
}

#[test]
fn the_serial_number_is_padded_to_20_bytes() {
    let (mut driver, _file, _) = disk(8, true);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_GET_ID, 0, &[Writable(BUFFER, 20)]), OK);
    assert_eq!(driver.read(BUFFER, 20), *b"layers\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn discard_and_write_zeroes_read_as_zeros_and_keep_the_size() {
    let sectors = 2048;
    for (kind, flags) in
        [(VIRTIO_BLK_T_DISCARD, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 0), (VIRTIO_BLK_T_WRITE_ZEROES, 1)]
    {
        let (mut driver, file, _) = disk(sectors, false);
        file.as_file().sync_all().unwrap();
        let blocks_before = file.as_file().metadata().unwrap().blocks();
        assert_eq!(range(&mut driver, kind, 8, 1024, flags), OK);
        let mut expected = pattern(sectors * 512);
        expected[8 * 512..1032 * 512].fill(0);
        assert!(content(&file) == expected, "kind {kind} flags {flags}");
        let given_back = file.as_file().metadata().unwrap().blocks() < blocks_before;
        assert_eq!(given_back, (kind, flags) != (VIRTIO_BLK_T_WRITE_ZEROES, 0));
    }
}

#[test]
fn ranges_that_are_wrong_are_refused() {
    let (mut driver, file, _) = disk(16, false);
    let before = content(&file);
    for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(range(&mut driver, kind, 8, 9, 0), IO_ERROR);
        assert_eq!(range(&mut driver, kind, u64::MAX, 1, 0), IO_ERROR);
        assert_eq!(range(&mut driver, kind, u64::MAX / 512, u32::MAX, 0), IO_ERROR);
        assert_eq!(range(&mut driver, kind, 0, u32::MAX, 0), IO_ERROR);
        assert_eq!(range(&mut driver, kind, 0, 1, 2), UNSUPPORTED);
        assert_eq!(request(&mut driver, kind, 0, &[Readable(BUFFER, 15)]), IO_ERROR);
        assert_eq!(request(&mut driver, kind, 0, &[Readable(BUFFER, 32)]), IO_ERROR);
    }
    assert_eq!(range(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 1, 1), UNSUPPORTED);
    assert_eq!(content(&file), before);
}

#[test]
fn the_access_mode_of_the_files_must_fit() {
    let file = file_with(&[0; 4096]);
    let open_as = |readonly, file| SegmentedFile::new(vec![file], readonly).err();
    assert!(matches!(
        open_as(true, open(&file, true)),
        Some(OpenError::OpenForWriting { index: 0 })
    ));
    let not_for_writing =
        |file| matches!(open_as(false, file), Some(OpenError::NotOpenForWriting { index: 0 }));
    assert!(not_for_writing(open(&file, false)));
    assert!(not_for_writing(OpenOptions::new().write(true).open(file.path()).unwrap()));
    assert!(not_for_writing(OpenOptions::new().read(true).append(true).open(file.path()).unwrap()));
    assert!(matches!(SegmentedFile::new(vec![], true), Err(OpenError::NoFile)));
    assert!(matches!(
        open_as(true, File::open("/dev/zero").unwrap()),
        Some(OpenError::NotRegular { index: 0 })
    ));
    let odd = file_with(&[0; 100]);
    assert!(matches!(
        open_as(false, open(&odd, true)),
        Some(OpenError::Unaligned { index: 0, bytes: 100 })
    ));
}

#[test]
fn a_driver_without_flush_gets_a_write_through_disk() {
    let backend = Arc::new(FaultyBackend::default());
    let mut device = Block::with_backend("", false, backend.clone());
    let features = device.features() & !(1 << VIRTIO_BLK_F_FLUSH);
    let mut driver = Driver::with_features(&mut device, features);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[Readable(BUFFER, 512)]), OK);
    assert_eq!(*backend.flushes.lock().unwrap(), 1);
}

// Hostile case 18.

#[test]
fn a_sector_beyond_the_end_is_an_io_error() {
    let (mut driver, file, _) = disk(16, false);
    let before = (content(&file), driver.snapshot());
    for sector in [16, 15, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX] {
        let read = [Writable(BUFFER, 1024)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, sector, &read), IO_ERROR);
        let write = [Readable(BUFFER, 1024)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, sector, &write), IO_ERROR);
    }
    assert_eq!(content(&file), before.0);
    driver.assert_unchanged_except(&before.1, slice::from_ref(&(HEADER..STATUS + 1)));
}

#[test]
fn data_that_is_not_whole_sectors_or_too_long_is_an_io_error() {
    let (mut driver, _file, _) = disk(16, false);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Writable(BUFFER, 513)]), IO_ERROR);
    let huge = [Writable(BUFFER, 1 << 20); 33];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &huge), IO_ERROR);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let (mut driver, file, device) = disk(16, true);
    assert_ne!(device.features() & (1 << VIRTIO_BLK_F_RO), 0);
    let before = content(&file);
    driver.write(BUFFER, &[1; 512]);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[Readable(BUFFER, 512)]), IO_ERROR);
    assert_eq!(range(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 8, 0), IO_ERROR);
    assert_eq!(range(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 1), IO_ERROR);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert_eq!(content(&file), before);
}

#[test]
fn an_unknown_request_is_unsupported() {
    let (mut driver, _file, _) = disk(16, false);
    for kind in [2, 3, 5, 14, 15, 0x8000_0000, u32::MAX] {
        assert_eq!(request(&mut driver, kind, 0, &[]), UNSUPPORTED);
    }
}

// Hostile case 19.

#[test]
fn a_qcow2_header_written_by_the_guest_stays_plain_data() {
    let (mut driver, file, device) = disk(2048, false);
    drop((driver.reset(), device));
    let mut device = block(false, vec![open(&file, true)]);
    driver = Driver::new(&mut device);
    let mut sector = [0; 512];
    sector[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    sector[8..16].copy_from_slice(&0x1_0000_u64.to_be_bytes());
    driver.write(BUFFER, &sector);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &[Readable(BUFFER, 512)]), OK);
    drop((driver, device));

    let mut device = block(false, vec![open(&file, true)]);
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    let mut driver = Driver::new(&mut device);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Writable(BUFFER, 512)]), OK);
    assert_eq!(driver.read(BUFFER, 512), sector);
}

// Hostile case 20.

#[test]
fn a_truncated_file_is_an_io_error_and_does_not_grow() {
    let (mut driver, file, _) = disk(64, false);
    file.as_file().set_len(8192).unwrap();
    let read = [Writable(BUFFER, 4096)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 12, &read), IO_ERROR);
    let write = [Readable(BUFFER, 4096)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 12, &write), IO_ERROR);
    assert_eq!(range(&mut driver, VIRTIO_BLK_T_DISCARD, 16, 8, 0), IO_ERROR);
    assert_eq!(range(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 16, 8, 0), IO_ERROR);
    assert_eq!(content(&file), pattern(8192));
    // What is still there works.
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 8, &read), OK);
}

/// A disk of 1 MiB that fails with the errno it is told.
#[derive(Default)]
struct FaultyBackend {
    errno: Mutex<Option<i32>>,
    flushes: Mutex<u32>,
}

impl FaultyBackend {
    fn result(&self) -> io::Result<()> {
        self.errno.lock().unwrap().map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl Backend for FaultyBackend {
    fn bytes(&self) -> u64 {
        1 << 20
    }
    fn read(&self, _offset: u64, _target: &mut IoVecs) -> io::Result<()> {
        self.result()
    }
    fn write(&self, _offset: u64, _source: &mut IoVecs) -> io::Result<()> {
        self.result()
    }
    fn discard(&self, _offset: u64, _length: u64) -> io::Result<()> {
        self.result()
    }
    fn write_zeroes(&self, _offset: u64, _length: u64) -> io::Result<()> {
        self.result()
    }
    fn flush(&self) -> io::Result<()> {
        *self.flushes.lock().unwrap() += 1;
        self.result()
    }
}

#[test]
fn a_failing_host_disk_is_an_io_error_and_the_device_lives() {
    let backend = Arc::new(FaultyBackend::default());
    let mut device = Block::with_backend("", false, backend.clone());
    let mut driver = Driver::new(&mut device);
    for (errno, status) in
        [(libc::EIO, IO_ERROR), (libc::ENOSPC, IO_ERROR), (libc::EOPNOTSUPP, UNSUPPORTED)]
    {
        *backend.errno.lock().unwrap() = Some(errno);
        let read = [Writable(BUFFER, 512)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &read), status);
        let write = [Readable(BUFFER, 512)];
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_OUT, 0, &write), status);
        assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), status);
        assert_eq!(range(&mut driver, VIRTIO_BLK_T_DISCARD, 0, 8, 0), status);
        assert_eq!(range(&mut driver, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 0), status);
    }
    *backend.errno.lock().unwrap() = None;
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_FLUSH, 0, &[]), OK);
    assert!(!driver.interrupt.is_reset_needed());
}

// Hostile cases 1 to 12 as the block device meets them; `chain.rs` has the rest.

/// Runs `make_bad` on a fresh device, then checks that the queue is latched, memory and
/// file are as before, and a reset brings the device back.
fn assert_latched(name: &str, make_bad: impl FnOnce(&mut Driver)) {
    let (mut driver, file, mut device) = disk(16, false);
    put_header(&driver, VIRTIO_BLK_T_OUT, 0);
    let before = driver.snapshot();
    make_bad(&mut driver);
    driver.kick(0);
    assert!(driver.interrupt.is_reset_needed(), "{name}: latched");
    assert_eq!(driver.queues[0].take_used(), [], "{name}: nothing used");
    for _ in 0..100 {
        driver.kick(0);
    }
    assert_eq!(content(&file), pattern(16 * 512), "{name}: the file is unchanged");
    driver.assert_unchanged_except(&before, &[]);

    driver.reset();
    driver.activate(&mut device);
    let read = [Writable(BUFFER, 512)];
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &read), OK, "{name}: works again");
}

#[test]
fn broken_rings_latch_the_queue_until_the_reset() {
    let publish = |driver: &mut Driver| driver.queues[0].publish(0);
    assert_latched("self-loop", |driver| {
        driver.queues[0].put(0, HEADER, 16, NEXT, 0);
        publish(driver);
    });
    assert_latched("two-cycle", |driver| {
        driver.queues[0].put(0, HEADER, 16, NEXT, 1);
        driver.queues[0].put(1, BUFFER, 512, NEXT, 0);
        publish(driver);
    });
    assert_latched("next beyond the queue", |driver| {
        driver.queues[0].put(0, HEADER, 16, NEXT, QUEUE_SIZE);
        publish(driver);
    });
    assert_latched("head beyond the queue", |driver| driver.queues[0].publish(QUEUE_SIZE));
    assert_latched("head far beyond the queue", |driver| driver.queues[0].publish(u16::MAX));
    assert_latched("zero-length descriptor", |driver| {
        driver.queues[0].add(&[Readable(HEADER, 16), Writable(BUFFER, 0), Writable(STATUS, 1)]);
    });
    assert_latched("4 GiB length", |driver| {
        let huge = Writable(BUFFER, u32::MAX);
        driver.queues[0].add(&[Readable(HEADER, 16), huge, Writable(STATUS, 1)]);
    });
    assert_latched("address outside RAM", |driver| {
        let outside = Readable(RAM_END, 512);
        driver.queues[0].add(&[Readable(HEADER, 16), outside, Writable(STATUS, 1)]);
    });
    assert_latched("buffer that runs out of RAM", |driver| {
        let over = Readable(RAM_END - 511, 512);
        driver.queues[0].add(&[Readable(HEADER, 16), over, Writable(STATUS, 1)]);
    });
    assert_latched("address that wraps", |driver| {
        let wraps = Readable(u64::MAX - 100, 512);
        driver.queues[0].add(&[Readable(HEADER, 16), wraps, Writable(STATUS, 1)]);
    });
    assert_latched("available index that jumps", |driver| {
        driver.queues[0].set_available_index(QUEUE_SIZE + 1);
    });
    assert_latched("readable where writable is needed", |driver| {
        driver.queues[0].add(&[Readable(HEADER, 16), Readable(BUFFER, 512), Readable(STATUS, 1)]);
    });
    assert_latched("readable after writable", |driver| {
        driver.queues[0].add(&[Writable(STATUS, 1), Readable(HEADER, 16)]);
    });
    assert_latched("short header", |driver| {
        driver.queues[0].add(&[Readable(HEADER, 15), Writable(STATUS, 1)]);
    });
}

#[test]
fn broken_indirect_tables_latch_the_queue_until_the_reset() {
    let table = DATA; // where the zeroed header is: descriptors of zero bytes
    for (name, bytes, flags) in [
        ("empty table", 0, INDIRECT),
        ("odd table length", 40, INDIRECT),
        ("table longer than any chain", 16 * 1025, INDIRECT),
        ("huge table", u32::MAX, INDIRECT),
        ("huge table, a multiple of 16", !15, INDIRECT),
        ("indirect with a successor", 32, INDIRECT | NEXT),
    ] {
        assert_latched(name, |driver| {
            driver.queues[0].put(0, table, bytes, flags, 1);
            driver.queues[0].publish(0);
        });
    }
    assert_latched("table outside RAM", |driver| {
        driver.queues[0].put(0, RAM_END - 16, 32, INDIRECT, 0);
        driver.queues[0].publish(0);
    });
}

#[test]
fn indirect_that_was_not_negotiated_latches_the_queue() {
    let (_, file, mut device) = disk(16, false);
    let features = device.features() & !(1 << VIRTIO_RING_F_INDIRECT_DESC);
    let mut driver = Driver::with_features(&mut device, features);
    put_header(&driver, VIRTIO_BLK_T_OUT, 0);
    let buffers = [Readable(HEADER, 16), Readable(BUFFER, 512), Writable(STATUS, 1)];
    driver.queues[0].add_indirect(DATA + 0x8000, &buffers);
    driver.kick(0);
    assert!(driver.interrupt.is_reset_needed());
    assert_eq!(content(&file), pattern(16 * 512));
}

#[test]
fn a_buffer_that_ends_at_the_top_of_ram_works() {
    let (mut driver, file, _) = disk(16, true);
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Writable(RAM_END - 512, 512)]), OK);
    assert_eq!(driver.read(RAM_END - 512, 512), content(&file)[..512]);
}

#[test]
fn a_buffer_across_two_memory_regions_works() {
    let (mut driver, file, _) = disk(16, true);
    let address = REGION_BOUNDARY - 100;
    assert_eq!(request(&mut driver, VIRTIO_BLK_T_IN, 0, &[Writable(address, 1024)]), OK);
    assert_eq!(driver.read(address, 1024), content(&file)[..1024]);
}

#[test]
fn overlapping_buffers_are_defined() {
    // The header is read before the data overwrites it, the status is written last.
    let (mut driver, file, _) = disk(16, true);
    put_header(&driver, VIRTIO_BLK_T_IN, 1);
    let buffers = [Readable(HEADER, 16), Writable(HEADER, 512), Writable(HEADER + 100, 1)];
    assert_eq!(driver.submit(0, &buffers).len(), 1);
    let mut expected = content(&file)[512..1024].to_vec();
    expected[100] = OK;
    assert_eq!(driver.read(HEADER, 512), expected);
}

#[test]
fn a_descriptor_that_data_overwrites_is_used_as_it_was_read() {
    // The read's data lands on the descriptor table itself.
    let (mut driver, file, _) = disk(16, true);
    put_header(&driver, VIRTIO_BLK_T_IN, 0);
    let table = 0x1000;
    let buffers = [Readable(HEADER, 16), Writable(table, 512), Writable(STATUS, 1)];
    assert_eq!(driver.submit(0, &buffers), [Used { head: 0, written: 513 }]);
    assert_eq!(driver.read(table, 512), content(&file)[..512]);
    assert_eq!(driver.read(STATUS, 1), [OK]);
}

#[test]
fn a_kick_storm_without_buffers_is_not_listened_to() {
    let (mut driver, _file, _) = disk(16, true);
    let kicks = 2000;
    let mut wake_ups = 0;
    for _ in 0..kicks {
        driver.queues[0].notify.write(1).unwrap();
        wake_ups += driver.run_for(0);
    }
    assert!(wake_ups < kicks, "{wake_ups}");
    assert_eq!(driver.interrupt.status(), 0);
    assert!(!driver.interrupt.is_reset_needed());

    // A request in the midst of it is served soon.
    put_header(&driver, VIRTIO_BLK_T_IN, 0);
    driver.queues[0].add(&[Readable(HEADER, 16), Writable(BUFFER, 512), Writable(STATUS, 1)]);
    driver.queues[0].notify.write(1).unwrap();
    for _ in 0..2 {
        driver.run_for(1000);
    }
    assert_eq!(driver.queues[0].take_used().len(), 1);
}

#[test]
fn more_requests_than_one_wake_up_may_take_all_complete() {
    let (mut driver, _file, _) = disk(16, true);
    put_header(&driver, VIRTIO_BLK_T_IN, 0);
    let count = 80;
    for _ in 0..count {
        let buffers = [Readable(HEADER, 16), Writable(BUFFER, 512), Writable(STATUS, 1)];
        driver.queues[0].add(&buffers);
    }
    driver.queues[0].notify.write(1).unwrap();
    driver.run_for(0);
    assert_eq!(driver.queues[0].take_used().len(), BUDGET.chains);
    driver.run();
    assert_eq!(driver.queues[0].take_used().len(), count - BUDGET.chains);
}

fn limited(limiter: &Option<SharedLimiter>) -> (Driver, tempfile::NamedTempFile, Block) {
    let file = file_with(&pattern(16 * 512));
    let mut device = block(false, vec![open(&file, true)]).limited(limiter.clone());
    (Driver::new(&mut device), file, device)
}

/// Of all buffers of a request here.
const REQUEST_BYTES: u64 = 16 + 512 + 1;

/// So many requests at once, and another one only after minutes.
fn only(requests: u64) -> Option<SharedLimiter> {
    let bandwidth = Some(Rate { per_second: 1, burst: requests * REQUEST_BYTES });
    RateLimiter::new(RateLimit { bandwidth, operations: None })
}

fn add_read(driver: &mut Driver) {
    put_header(driver, VIRTIO_BLK_T_IN, 0);
    let chain = [Readable(HEADER, 16), Writable(BUFFER, 512), Writable(STATUS, 1)];
    driver.queues[0].add(&chain);
}

#[test]
fn requests_beyond_the_limit_wait_and_all_complete() {
    let operations = Some(Rate { per_second: 200, burst: 4 });
    let start = Instant::now();
    let limiter = RateLimiter::new(RateLimit { bandwidth: None, operations });
    let (mut driver, _file, _device) = limited(&limiter);
    for _ in 0..10 {
        add_read(&mut driver);
    }
    driver.kick(0);
    let mut used = driver.queues[0].take_used().len();
    let most = 4.0 + start.elapsed().as_secs_f64() * 200.0;
    assert!(used >= 4 && used as f64 <= most, "{used} at once");
    // A kick does not let a request pass.
    driver.kick(0);
    while used < 10 {
        assert_eq!(driver.run_for(10_000), 1, "the timer wakes the worker");
        used += driver.queues[0].take_used().len();
    }
    assert_eq!(driver.read(STATUS, 1), [OK]);
}

#[test]
fn a_request_larger_than_the_burst_passes_and_is_made_up_for() {
    let bandwidth = Some(Rate { per_second: 1 << 10, burst: 100 });
    let limiter = RateLimiter::new(RateLimit { bandwidth, operations: None });
    let (mut driver, _file, _device) = limited(&limiter);
    add_read(&mut driver);
    driver.kick(0);
    assert_eq!(driver.queues[0].take_used().len(), 1);
    add_read(&mut driver);
    driver.kick(0);
    assert_eq!(driver.queues[0].take_used().len(), 0);
    assert_eq!(driver.run_for(10_000), 1);
    assert_eq!(driver.queues[0].take_used().len(), 1);
}

// Hostile case 11, with a request that is held.
#[test]
fn a_kick_storm_while_a_request_waits_is_not_listened_to_and_frees_nothing() {
    let (mut driver, _file, _device) = limited(&only(1));
    add_read(&mut driver);
    add_read(&mut driver);
    driver.kick(0);
    assert_eq!(driver.queues[0].take_used().len(), 1);
    let mut wake_ups = 0;
    for _ in 0..1000 {
        driver.queues[0].notify.write(1).unwrap();
        wake_ups += driver.run_for(0);
    }
    assert!(wake_ups < 200, "{wake_ups}");
    assert_eq!(driver.queues[0].take_used(), []);
}

#[test]
fn two_disks_share_a_limit() {
    let limiter = only(3);
    let (mut first, _file, _device) = limited(&limiter);
    let (mut second, _other_file, _other_device) = limited(&limiter);
    for driver in [&mut first, &mut second] {
        add_read(driver);
        add_read(driver);
        driver.kick(0);
    }
    assert_eq!(first.queues[0].take_used().len(), 2);
    assert_eq!(second.queues[0].take_used().len(), 1);
}

#[test]
fn a_reset_neither_refills_the_bucket_nor_lets_a_waiting_request_go() {
    let (mut driver, file, mut device) = limited(&only(1));
    let write = [Readable(HEADER, 16), Readable(BUFFER, 512), Writable(STATUS, 1)];
    put_header(&driver, VIRTIO_BLK_T_OUT, 0);
    driver.write(BUFFER, &pattern(512));
    assert_eq!(driver.submit(0, &write).len(), 1);
    driver.write(BUFFER, &[0xee; 512]);
    assert_eq!(driver.submit(0, &write), []);
    driver.reset();
    driver.activate(&mut device);
    let before = driver.snapshot();
    driver.queues[0].add(&write);
    driver.kick(0);
    assert_eq!(driver.queues[0].take_used(), []);
    driver.assert_unchanged_except(&before, &[]);
    assert_eq!(content(&file), pattern(16 * 512));
}

#[test]
fn nothing_is_written_after_a_reset() {
    let (mut driver, file, _device) = disk(16, false);
    put_header(&driver, VIRTIO_BLK_T_IN, 0);
    driver.queues[0].add(&[Readable(HEADER, 16), Writable(BUFFER, 512), Writable(STATUS, 1)]);
    driver.queues[0].notify.write(1).unwrap();
    let before = driver.snapshot();
    driver.reset();
    driver.run();
    driver.assert_unchanged_except(&before, &[]);
    assert_eq!(driver.interrupt.status(), 0);
    assert_eq!(content(&file), pattern(16 * 512));
}

#[test]
fn the_config_space_is_as_the_spec_has_it() {
    let (_, _, device) = disk(16, false);
    let mut config = [0xff; 64];
    device.read_config(0, &mut config);
    let word = |offset: usize| u32::from_le_bytes(config[offset..offset + 4].try_into().unwrap());
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), 16);
    assert_eq!((word(8), word(12), word(20)), (0, 254, 512));
    assert_eq!((word(36), word(40), word(44)), (2 << 20, 1, 8));
    assert_eq!((word(48), word(52), word(56)), (2 << 20, 1, 1));
    assert_eq!(word(60), 0, "past the end");
}

#[derive(Clone, Debug)]
struct RandomRequest {
    kind: u32,
    sector: u64,
    buffers: Vec<(u64, u32, bool)>,
    flags: u16,
    next: u16,
}

fn random_request() -> impl Strategy<Value = RandomRequest> {
    let kind = prop_oneof![Just(0), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()];
    let sector = prop_oneof![0_u64..20, any::<u64>()];
    let address = prop_oneof![
        8 => DATA..RAM_END,
        1 => (RAM_END - 1024)..RAM_END,
        1 => any::<u64>(),
    ];
    let bytes =
        prop_oneof![8 => (1_u32..9).prop_map(|n| n * 512), 2 => 0_u32..40, 1 => any::<u32>()];
    let buffers = prop::collection::vec((address, bytes, any::<bool>()), 0..6);
    let raw_flags = prop_oneof![20 => Just(0), 1 => any::<u16>()];
    (kind, sector, buffers, raw_flags, any::<u16>()).prop_map(
        |(kind, sector, buffers, flags, next)| RandomRequest { kind, sector, buffers, flags, next },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the driver sends: no panic, no byte changed outside writable buffers, no
    /// file longer or shorter, and a read-only file as it was.
    #[test]
    fn random_requests_stay_in_their_bounds(
        requests in prop::collection::vec(random_request(), 1..8),
        readonly: bool,
    ) {
        let (mut driver, file, _) = disk(16, readonly);
        for request in requests {
            put_header(&driver, request.kind, request.sector);
            let before = driver.snapshot();
            let mut writable = Vec::new();
            let mut buffers = vec![Readable(HEADER, 16)];
            let (write, read): (Vec<_>, Vec<_>) =
                request.buffers.into_iter().partition(|(_, _, write)| *write);
            for (address, bytes, _) in read {
                buffers.push(Readable(address, bytes));
            }
            for (address, bytes, _) in write {
                buffers.push(Writable(address, bytes));
                writable.push(address..address.saturating_add(bytes.into()));
            }
            buffers.push(Writable(STATUS, 1));
            writable.push(STATUS..STATUS + 1);
            let head = driver.queues[0].add(&buffers);
            if request.flags != 0 {
                driver.queues[0].put(head, HEADER, 16, request.flags & !WRITE, request.next);
            }
            driver.kick(0);
            driver.queues[0].take_used();
            driver.assert_unchanged_except(&before, &writable);
        }
        let after = content(&file);
        prop_assert_eq!(after.len(), 16 * 512);
        if readonly {
            prop_assert_eq!(after, pattern(16 * 512));
        }
    }

    /// Reads are what the files hold, wherever they begin and however they are cut.
    #[test]
    fn reads_equal_the_concatenated_files(
        sizes in prop::collection::vec(0_usize..10_000, 1..5),
        sector in 0_u64..80,
        cuts in prop::collection::vec(1_u32..3000, 1..6),
    ) {
        let files: Vec<_> = sizes.iter().map(|size| file_with(&pattern(*size))).collect();
        let mut expected = Vec::new();
        for size in sizes {
            expected.extend(pattern(size));
            expected.resize(expected.len().next_multiple_of(4096), 0);
        }
        let mut device = block(true, files.iter().map(|file| open(file, false)).collect());
        let mut driver = Driver::new(&mut device);
        let total = cuts.iter().sum::<u32>().next_multiple_of(512);
        let mut buffers = Vec::new();
        let mut address = BUFFER;
        for cut in cuts.iter().copied().chain([total - cuts.iter().sum::<u32>()]) {
            if cut > 0 {
                buffers.push(Writable(address, cut));
                address += u64::from(cut);
            }
        }
        let start = sector as usize * 512;
        let status = request(&mut driver, VIRTIO_BLK_T_IN, sector, &buffers);
        if start + total as usize <= expected.len() {
            prop_assert_eq!(status, OK);
            prop_assert!(driver.read(BUFFER, total as usize) == expected[start..start + total as usize]);
        } else {
            prop_assert_eq!(status, IO_ERROR);
        }
    }
}
