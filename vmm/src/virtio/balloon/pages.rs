//! Gives pages of guest memory back to the host.

use vm_memory::{GuestAddress, GuestMemory};

use crate::virtio::{Memory, iovecs::IoVecs};

/// The balloon's page, and the host's.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Most page numbers taken from one chain; Linux sends 256. The rest is ignored.
pub(super) const MAX_PAGE_NUMBERS: usize = 4096;

/// Guest pages, gathered so that neighbours go back by one system call.
pub(super) struct Ranges<'a> {
    memory: &'a Memory,
    /// First page number and number of pages.
    pending: (u64, u64),
}

impl<'a> Ranges<'a> {
    pub(super) fn new(memory: &'a Memory) -> Self {
        Self { memory, pending: (0, 0) }
    }

    /// Gives back the pages with the numbers (32 bits, little-endian) in `numbers`.
    pub(super) fn read_page_numbers(&mut self, numbers: &mut IoVecs) {
        let mut number = [0; 4];
        for _ in 0..MAX_PAGE_NUMBERS {
            if numbers.read(&mut number) < number.len() {
                break;
            }
            self.add(u32::from_le_bytes(number).into());
        }
    }

    /// Linux takes pages off its free lists, often downwards.
    fn add(&mut self, number: u64) {
        let (first, count) = self.pending;
        if count > 0 && number == first + count {
            self.pending.1 += 1;
        } else if count > 0 && number + 1 == first {
            self.pending = (number, count + 1);
        } else {
            self.give_back();
            self.pending = (number, 1);
        }
    }

    /// Gives back what was gathered, as far as it is RAM.
    pub(super) fn give_back(&mut self) {
        let (first, count) = std::mem::take(&mut self.pending);
        let (start, bytes) = (GuestAddress(first * PAGE_BYTES), (count * PAGE_BYTES) as usize);
        if count > 0 && self.memory.check_range(start, bytes) {
            for slice in self.memory.get_slices(start, bytes).flatten() {
                discard(slice.ptr_guard_mut().as_ptr() as usize, slice.len());
            }
        } else if count > 1 {
            // A run that is RAM only in part.
            for number in first..first + count {
                self.pending = (number, 1);
                self.give_back();
            }
        }
    }
}

/// Gives back the whole pages in `buffers`.
pub(super) fn give_back_buffers(buffers: &mut IoVecs) {
    while buffers.bytes() > 0 {
        let done = buffers.with_front(usize::MAX, |vecs| {
            for vec in vecs {
                discard(vec.iov_base as usize, vec.iov_len);
            }
            vecs.iter().map(|vec| vec.iov_len).sum()
        });
        buffers.advance(done);
    }
}

/// Gives the whole pages in a range of mapped guest memory back to the host.
fn discard(start: usize, bytes: usize) {
    let page = PAGE_BYTES as usize;
    let first = start.next_multiple_of(page);
    let end = (start + bytes) / page * page;
    if first < end {
        // SAFETY: the range is guest memory, to which no Rust reference exists; that it
        // turns to zeros is no more than the guest could do by itself.
        let result =
            unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_DONTNEED) };
        // It fails for memory that is locked or of huge pages only: then it stays.
        debug_assert_eq!(result, 0);
    }
}
