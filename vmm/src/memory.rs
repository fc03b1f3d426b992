//! The guest's memory: anonymous, private, and not touched before it is needed.

use std::{fs::File, io, os::fd::AsRawFd, ptr, sync::Arc};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{
    Address, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollection,
    GuestRegionMmap, MmapRegion,
};

use crate::{boot::layout, virtio::Memory};

/// Guest and host addresses agree modulo this, so that one entry of the nested page
/// table maps a transparent huge page.
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("reserve {bytes} bytes of address space for guest memory")]
    Map {
        bytes: usize,
        #[source]
        source: io::Error,
    },
    #[error("describe a mapping of {bytes} bytes at guest address {start:#x}")]
    Region {
        start: u64,
        bytes: usize,
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    #[error("the region of {bytes} bytes at {start:#x} ends beyond the address space")]
    Overflow { start: u64, bytes: usize },
    #[error("put the regions of guest memory in order")]
    Collection(#[source] vm_memory::GuestRegionCollectionError),
    #[error("give KVM the {bytes} bytes of guest memory at {start:#x}")]
    Slot {
        start: u64,
        bytes: u64,
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Memory of `size_bytes`, split around the MMIO gap below 4 GiB.
///
/// Pages are private, zero, and made on first touch; nothing is prefaulted.
pub fn allocate(size_bytes: u64) -> Result<Memory, MemoryError> {
    let regions = layout::ram_ranges(size_bytes)
        .into_iter()
        .map(|range| region(range.start, (range.end - range.start) as usize))
        .collect::<Result<Vec<_>, _>>()?;
    let memory: GuestMemoryMmap =
        GuestRegionCollection::from_regions(regions).map_err(MemoryError::Collection)?;
    Ok(Arc::new(memory))
}

fn region(start: u64, bytes: usize) -> Result<GuestRegionMmap, MemoryError> {
    let host = map_aligned(bytes).map_err(|source| MemoryError::Map { bytes, source })?;
    let (prot, flags) = (PROT, FLAGS);
    // SAFETY: `map_aligned` has just made this mapping of `bytes` bytes, and nothing else
    // refers to it or ever unmaps it.
    let mapping = unsafe { MmapRegion::build_raw(host, bytes, prot, flags) }
        .map_err(|source| MemoryError::Region { start, bytes, source })?;
    GuestRegionMmap::new(mapping, GuestAddress(start)).ok_or(MemoryError::Overflow { start, bytes })
}

const PROT: i32 = libc::PROT_READ | libc::PROT_WRITE;
const FLAGS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// An anonymous mapping of `bytes` at a multiple of [`HUGE_PAGE_BYTES`]. It stays until
/// the process ends, which is when the VM ends.
fn map_aligned(bytes: usize) -> io::Result<*mut u8> {
    let reserved = bytes + HUGE_PAGE_BYTES;
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing
    // that exists.
    let address = unsafe { libc::mmap(ptr::null_mut(), reserved, PROT, FLAGS, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let head = address.align_offset(HUGE_PAGE_BYTES);
    let tail = HUGE_PAGE_BYTES - head;
    // SAFETY: head and tail are the two ends of the mapping made above, outside the
    // `bytes` in the middle that are returned; `head` is less than `HUGE_PAGE_BYTES`.
    unsafe {
        let aligned = address.add(head);
        if head > 0 {
            libc::munmap(address, head);
        }
        libc::munmap(aligned.add(bytes), tail);
        // Whether pages are huge is left to the host's policy. Advice only, so a refusal
        // does not matter.
        libc::madvise(aligned, bytes, libc::MADV_DONTDUMP);
        Ok(aligned.cast())
    }
}

/// Puts the `bytes` of `file` at `offset` in the place of those at `start`, without copying:
/// the pages are the file's until they are written.
///
/// # Safety
/// The bytes are whole pages of guest memory and of the file, and nothing refers to them.
pub unsafe fn replace(start: *mut u8, bytes: usize, file: &File, offset: u64) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: as the caller says; the mapping that is replaced is guest memory, which lives
    // as long as the process, as this one does.
    unsafe {
        let at = libc::mmap(start.cast(), bytes, PROT, flags, file.as_raw_fd(), offset);
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Advice only, so a refusal does not matter.
        libc::madvise(at, bytes, libc::MADV_DONTDUMP);
    }
    Ok(())
}

/// Makes `memory` the guest's physical memory.
pub fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr().raw_value();
        let bytes = region.len();
        let description = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start,
            memory_size: bytes,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is never unmapped, so the VM cannot outlive it.
        unsafe { vm.set_user_memory_region(description) }.map_err(|source| MemoryError::Slot {
            start,
            bytes,
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_is_aligned_zero_and_of_the_size_asked() {
        let memory = allocate(64 << 20).unwrap();
        let region = memory.iter().next().unwrap();
        assert_eq!(region.len(), 64 << 20);
        assert_eq!(region.as_ptr() as usize % HUGE_PAGE_BYTES, 0);
        let last: u64 = memory.read_obj(GuestAddress((64 << 20) - 8)).unwrap();
        assert_eq!(last, 0);
        assert!(memory.read_obj::<u64>(GuestAddress((64 << 20) - 7)).is_err());
    }

    #[test]
    fn memory_skips_the_gap() {
        let memory = allocate(5 << 30).unwrap();
        let starts: Vec<u64> = memory.iter().map(|region| region.start_addr().0).collect();
        assert_eq!(starts, [0, 4 << 30]);
        assert_eq!(memory.iter().map(GuestMemoryRegion::len).sum::<u64>(), 5 << 30);
        assert!(memory.read_obj::<u8>(GuestAddress(layout::MMIO_GAP_START)).is_err());
        memory.write_obj(7_u8, GuestAddress(4 << 30)).unwrap();
    }
}
