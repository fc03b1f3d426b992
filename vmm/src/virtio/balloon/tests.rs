use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemory};

use super::{
    pages::{MAX_PAGE_NUMBERS, PAGE_BYTES},
    *,
};
use crate::virtio::{
    interrupt::CONFIG_CHANGE,
    testing::{
        Buffer::{Readable, Writable},
        DATA, Driver, RAM_END, REGION_BOUNDARY, Used,
    },
};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

/// Where tests put their page numbers.
const NUMBERS: u64 = DATA;
/// The first page that tests give away.
const FIRST: u32 = ((DATA + 0x1_0000) / PAGE_BYTES) as u32;

/// A driver whose memory is all ones from the first page on.
fn driver() -> (Driver, Balloon) {
    let mut device = Balloon::new();
    let driver = Driver::new(&mut device);
    let start = u64::from(FIRST) * PAGE_BYTES;
    driver.write(start, &vec![1; (RAM_END - start) as usize]);
    (driver, device)
}

fn put_numbers(driver: &Driver, numbers: &[u32]) -> u32 {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    driver.write(NUMBERS, &bytes);
    bytes.len() as u32
}

fn inflate(driver: &mut Driver, numbers: &[u32]) {
    let bytes = put_numbers(driver, numbers);
    assert_eq!(driver.submit(INFLATE, &[Readable(NUMBERS, bytes)]).len(), 1);
    assert!(!driver.interrupt.is_reset_needed());
}

/// The pages from [`FIRST`] on that read as zeros.
fn zero_pages(driver: &Driver) -> Vec<u32> {
    let last = (RAM_END / PAGE_BYTES) as u32;
    (FIRST..last)
        .filter(|page| {
            let bytes = driver.read(u64::from(*page) * PAGE_BYTES, PAGE_BYTES as usize);
            assert!(bytes == [0; 4096] || bytes == [1; 4096], "page {page} is zero or untouched");
            bytes[0] == 0
        })
        .collect()
}

/// Whether the host holds a page of memory for this guest page.
fn is_resident(driver: &Driver, page: u32) -> bool {
    let address = GuestAddress(u64::from(page) * PAGE_BYTES);
    let host = driver.memory.get_host_address(address).unwrap();
    let mut resident = 0;
    // SAFETY: the page is mapped, and the vector has a byte for it.
    let result = unsafe { libc::mincore(host.cast(), PAGE_BYTES as usize, &mut resident) };
    assert_eq!(result, 0);
    resident & 1 != 0
}

#[test]
fn inflated_pages_go_back_to_the_host() {
    let (mut driver, _device) = driver();
    assert!(is_resident(&driver, FIRST));
    inflate(&mut driver, &[FIRST, FIRST + 1, FIRST + 5]);
    assert!(!is_resident(&driver, FIRST) && !is_resident(&driver, FIRST + 5));
    assert_eq!(zero_pages(&driver), [FIRST, FIRST + 1, FIRST + 5]);
}

#[test]
fn deflated_pages_are_usable_again() {
    let (mut driver, _device) = driver();
    inflate(&mut driver, &[FIRST]);
    let bytes = put_numbers(&driver, &[FIRST]);
    let used = driver.submit(DEFLATE, &[Readable(NUMBERS, bytes)]);
    assert_eq!(used, [Used { head: 0, written: 0 }]);
    driver.write(u64::from(FIRST) * PAGE_BYTES, &[1; 4096]);
    assert!(zero_pages(&driver).is_empty());
}

#[test]
fn reported_pages_go_back_to_the_host() {
    let (mut driver, _device) = driver();
    let start = u64::from(FIRST) * PAGE_BYTES;
    let buffers = [Writable(start, 8192), Writable(start + 0x10_000, 4096)];
    assert_eq!(driver.submit(REPORTING, &buffers), [Used { head: 0, written: 0 }]);
    assert!(!is_resident(&driver, FIRST));
    assert_eq!(zero_pages(&driver), [FIRST, FIRST + 1, FIRST + 16]);
}

#[test]
fn the_target_and_the_actual_size_pass_through_the_config_space() {
    let (driver, mut device) = driver();
    let handle = device.handle();
    handle.set_target_pages(0x1234);
    assert_eq!(driver.interrupt.status(), CONFIG_CHANGE);
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [0x34, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);

    device.write_config(4, &7_u32.to_le_bytes());
    assert_eq!(handle.state(), BalloonState { target_pages: 0x1234, actual_pages: 7 });
    for (offset, data) in [(0, &[9; 4][..]), (4, &[9; 2]), (4, &[9; 8]), (6, &[9; 4])] {
        device.write_config(offset, data);
    }
    assert_eq!(handle.state().actual_pages, 7);
}

#[test]
fn a_new_target_without_a_driver_waits_for_one() {
    let (mut driver, device) = driver();
    driver.reset();
    device.handle().set_target_pages(5);
    assert_eq!(driver.interrupt.status(), 0);
    assert_eq!(device.handle().state().target_pages, 5);
}

// Hostile case 25.

#[test]
fn page_numbers_outside_ram_are_ignored() {
    let (mut driver, _device) = driver();
    let end = (RAM_END / PAGE_BYTES) as u32;
    inflate(&mut driver, &[end, end + 1, u32::MAX, u32::MAX - 1, FIRST]);
    assert_eq!(zero_pages(&driver), [FIRST]);
}

#[test]
fn a_run_that_leaves_ram_gives_back_what_is_ram() {
    let (mut driver, _device) = driver();
    let end = (RAM_END / PAGE_BYTES) as u32;
    inflate(&mut driver, &[end - 2, end - 1, end, end + 1]);
    assert_eq!(zero_pages(&driver), [end - 2, end - 1]);
}

#[test]
fn duplicate_page_numbers_are_harmless() {
    let (mut driver, _device) = driver();
    inflate(&mut driver, &[FIRST; 300]);
    assert_eq!(zero_pages(&driver), [FIRST]);
}

#[test]
fn of_a_huge_list_only_the_beginning_is_read() {
    let (mut driver, _device) = driver();
    let mut numbers = vec![u32::MAX; MAX_PAGE_NUMBERS];
    numbers.push(FIRST);
    inflate(&mut driver, &numbers);
    assert!(zero_pages(&driver).is_empty());
}

#[test]
fn an_odd_list_ends_at_its_last_whole_number() {
    let (mut driver, _device) = driver();
    put_numbers(&driver, &[FIRST, FIRST + 1]);
    driver.submit(INFLATE, &[Readable(NUMBERS, 7)]);
    assert_eq!(zero_pages(&driver), [FIRST]);
}

#[test]
fn a_report_that_is_not_whole_pages_gives_back_those_within() {
    let (mut driver, _device) = driver();
    let start = u64::from(FIRST) * PAGE_BYTES;
    driver.submit(REPORTING, &[Writable(start + 1, 3 * 4096), Writable(start + 0x10_000, 4095)]);
    assert_eq!(zero_pages(&driver), [FIRST + 1, FIRST + 2]);
}

#[test]
fn a_report_outside_ram_latches_the_queue() {
    let (mut driver, _device) = driver();
    driver.submit(REPORTING, &[Writable(RAM_END - 4096, 8192)]);
    assert!(driver.interrupt.is_reset_needed());
    assert!(zero_pages(&driver).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Exactly the named pages that are RAM go back, in whatever order they are named.
    #[test]
    fn exactly_the_named_pages_go_back(
        numbers in prop::collection::vec(
            prop_oneof![6 => FIRST..(RAM_END / PAGE_BYTES) as u32 + 4, 1 => any::<u32>()],
            0..200,
        ),
        sorted: bool,
    ) {
        let (mut driver, _device) = driver();
        let mut expected: Vec<u32> = numbers.clone();
        // The rings and the numbers themselves lie below the first page.
        prop_assume!(numbers.iter().all(|number| *number >= FIRST));
        expected.retain(|number| u64::from(*number) < RAM_END / PAGE_BYTES);
        expected.sort_unstable();
        expected.dedup();
        let mut numbers = numbers;
        if sorted {
            numbers.sort_unstable();
        }
        for chunk in numbers.chunks(50) {
            inflate(&mut driver, chunk);
        }
        prop_assert_eq!(zero_pages(&driver), expected);
    }
}

#[test]
fn pages_on_both_sides_of_a_region_boundary_go_back_together() {
    let (mut driver, _device) = driver();
    let boundary = (REGION_BOUNDARY / PAGE_BYTES) as u32;
    inflate(&mut driver, &[boundary + 1, boundary, boundary - 1]);
    assert_eq!(zero_pages(&driver), [boundary - 1, boundary, boundary + 1]);
}
