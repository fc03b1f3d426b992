//! An init that reads and writes its disk past the guest's page cache, says so on the disk,
//! and resets.

use std::{
    alloc::{Layout, alloc_zeroed},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    ptr, slice,
};

use caisson_benches::isolation::{DISK_BYTES, DONE, RANDOM_BYTES, RANDOM_READS, SEQUENTIAL_BYTES};

/// A sector, a page: what direct I/O wants buffers aligned to.
const ALIGNMENT: usize = 4096;

fn main() {
    if let Err(error) = exercise() {
        // Nobody may see it: the missing mark on the disk tells the bench.
        eprintln!("block-init: {error}");
    }
    // SAFETY: reboot touches no memory of this process.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
}

fn exercise() -> io::Result<()> {
    std::fs::create_dir_all("/dev")?;
    let (source, target) = (c"devtmpfs".as_ptr(), c"/dev".as_ptr());
    // SAFETY: the strings are constants, and no data is passed. The kernel may have mounted it
    // already, which is as good.
    unsafe { libc::mount(source, target, source, 0, ptr::null()) };
    let mut options = OpenOptions::new();
    let disk = options.read(true).write(true).custom_flags(libc::O_DIRECT).open("/dev/vda")?;
    let buffer = buffer(SEQUENTIAL_BYTES);
    for offset in (0..DISK_BYTES).step_by(SEQUENTIAL_BYTES) {
        disk.read_exact_at(buffer, offset)?;
    }
    for offset in (0..DISK_BYTES).step_by(SEQUENTIAL_BYTES) {
        disk.write_all_at(buffer, offset)?;
    }
    read_randomly(&disk, &mut buffer[..RANDOM_BYTES])?;
    // The mark is the end of the last block.
    let last = &mut buffer[..ALIGNMENT];
    last[ALIGNMENT - DONE.len()..].copy_from_slice(DONE);
    disk.write_all_at(last, DISK_BYTES - ALIGNMENT as u64)?;
    disk.sync_data()
}

fn read_randomly(disk: &File, buffer: &mut [u8]) -> io::Result<()> {
    let blocks = DISK_BYTES / buffer.len() as u64;
    let mut state = 1_u64;
    for _ in 0..RANDOM_READS {
        // Knuth's MMIX generator; its high bits are the good ones.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let block = (state >> 33) % blocks;
        disk.read_exact_at(buffer, block * buffer.len() as u64)?;
    }
    Ok(())
}

/// Never freed: the program ends with a reset.
fn buffer(bytes: usize) -> &'static mut [u8] {
    let layout = Layout::from_size_align(bytes, ALIGNMENT).expect("a power of two, and small");
    // SAFETY: the layout is not empty; the memory is zeroed, as long as the slice, and of
    // nobody else.
    unsafe {
        let memory = alloc_zeroed(layout);
        assert!(!memory.is_null(), "the guest has {bytes} bytes");
        slice::from_raw_parts_mut(memory, bytes)
    }
}
