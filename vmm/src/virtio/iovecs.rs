//! A list of stretches of guest memory for vectored I/O.
//!
//! The guest may change this memory at any time, so nothing here makes a Rust reference
//! to it: system calls get raw pointers, copies are volatile.

use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemory, VolatileSlice};

use super::Memory;

/// Stretches of guest memory in order, consumed from the front.
///
/// Every pointer in it comes from `memory`, which it keeps alive.
pub struct IoVecs {
    memory: Memory,
    vecs: Vec<libc::iovec>,
    /// Index of the first one that is not consumed.
    first: usize,
    bytes: usize,
}

// SAFETY: the pointers are into `memory`, which is mapped for the whole process for as long
// as `self` lives; they are dereferenced only by volatile copies and by the kernel.
unsafe impl Send for IoVecs {}

/// An address range that is not, or not wholly, guest memory.
#[derive(Debug, PartialEq, Eq)]
pub struct NotInMemory;

impl IoVecs {
    pub fn new(memory: Memory) -> Self {
        Self { memory, vecs: Vec::new(), first: 0, bytes: 0 }
    }

    pub fn clear(&mut self) {
        self.vecs.clear();
        self.first = 0;
        self.bytes = 0;
    }

    /// Appends a range of guest memory; one that spans regions becomes several stretches.
    pub fn push(&mut self, address: GuestAddress, bytes: usize) -> Result<(), NotInMemory> {
        for slice in self.memory.get_slices(address, bytes) {
            let slice = slice.map_err(|_| NotInMemory)?;
            let base = slice.ptr_guard_mut().as_ptr().cast();
            self.vecs.push(libc::iovec { iov_base: base, iov_len: slice.len() });
            self.bytes += slice.len();
        }
        Ok(())
    }

    /// Bytes that are left.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Calls `io` with the next stretches, of at most `max_bytes` in all and at most as
    /// many as one system call takes. Consumes nothing.
    pub fn with_front<R>(&mut self, max_bytes: usize, io: impl FnOnce(&[libc::iovec]) -> R) -> R {
        self.with_part(0, max_bytes, io)
    }

    /// The same for what follows the next `skip` bytes.
    pub fn with_part<R>(
        &mut self,
        mut skip: usize,
        max_bytes: usize,
        io: impl FnOnce(&[libc::iovec]) -> R,
    ) -> R {
        let mut start = self.first;
        while start < self.vecs.len() && skip >= self.vecs[start].iov_len {
            skip -= self.vecs[start].iov_len;
            start += 1;
        }
        let mut end = start;
        let mut bytes = 0;
        while end < self.vecs.len().min(start + libc::UIO_MAXIOV as usize)
            && bytes < max_bytes.saturating_add(skip)
        {
            bytes += self.vecs[end].iov_len;
            end += 1;
        }
        let vecs = &mut self.vecs[start..end];
        let (Some(first), Some(last)) = (vecs.first().copied(), vecs.last().copied()) else {
            return io(&[]);
        };
        // Shortened for the call, at the end before the front: they may be the same one.
        let excess = bytes.saturating_sub(max_bytes.saturating_add(skip));
        let count = vecs.len();
        vecs[count - 1].iov_len -= excess;
        vecs[0].iov_base = first.iov_base.cast::<u8>().wrapping_add(skip).cast();
        vecs[0].iov_len -= skip;
        let result = io(vecs);
        vecs[count - 1] = last;
        vecs[0] = first;
        result
    }

    /// Drops what lies beyond the next `bytes`.
    pub fn truncate(&mut self, bytes: usize) {
        while self.bytes > bytes
            && let Some(last) = self.vecs[self.first..].last_mut()
        {
            let cut = last.iov_len.min(self.bytes - bytes);
            last.iov_len -= cut;
            self.bytes -= cut;
            if last.iov_len == 0 {
                self.vecs.pop();
            }
        }
    }

    /// Consumes `bytes`, or what is left if that is less.
    pub fn advance(&mut self, bytes: usize) {
        self.consume(bytes, |_, _| ());
    }

    /// Copies from the front into `target`, as far as there is anything left, and consumes
    /// what was copied. Returns the number of bytes.
    pub fn read(&mut self, target: &mut [u8]) -> usize {
        self.consume(target.len(), |done, slice| {
            slice.copy_to(&mut target[done..done + slice.len()]);
        })
    }

    /// Copies `source` to the front, as far as there is room, and consumes it. Returns the
    /// number of bytes.
    pub fn write(&mut self, source: &[u8]) -> usize {
        self.consume(source.len(), |done, slice| {
            slice.copy_from(&source[done..done + slice.len()]);
        })
    }

    /// Writes zeros to the front and consumes them. Returns the number of bytes.
    pub fn write_zeros(&mut self, bytes: usize) -> usize {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut done = 0;
        while done < bytes {
            let written = self.write(&ZEROS[..ZEROS.len().min(bytes - done)]);
            if written == 0 {
                break;
            }
            done += written;
        }
        done
    }

    /// Takes the last byte off the end.
    pub fn pop_last_byte(&mut self) -> Option<GuestByte> {
        let last = self.vecs[self.first..].last_mut()?;
        last.iov_len -= 1;
        let pointer = last.iov_base.cast::<u8>().wrapping_add(last.iov_len);
        if last.iov_len == 0 {
            self.vecs.pop();
        }
        self.bytes -= 1;
        Some(GuestByte { pointer, _memory: Arc::clone(&self.memory) })
    }

    /// Hands the front to `copy` in stretches, each with the number of bytes before it.
    fn consume(
        &mut self,
        bytes: usize,
        mut copy: impl FnMut(usize, VolatileSlice<'_, ()>),
    ) -> usize {
        let mut done = 0;
        while done < bytes {
            let Some(vec) = self.vecs.get_mut(self.first) else { break };
            let taken = vec.iov_len.min(bytes - done);
            // SAFETY: the stretch lies in `self.memory`, which outlives the slice; it is
            // only used for volatile copies.
            copy(done, unsafe { VolatileSlice::new(vec.iov_base.cast(), taken) });
            done += taken;
            vec.iov_base = vec.iov_base.cast::<u8>().wrapping_add(taken).cast();
            vec.iov_len -= taken;
            if vec.iov_len == 0 {
                self.first += 1;
            }
        }
        self.bytes -= done;
        done
    }
}

/// One writable byte of guest memory.
pub struct GuestByte {
    pointer: *mut u8,
    _memory: Memory,
}

impl GuestByte {
    pub fn write(self, value: u8) {
        // SAFETY: the byte lies in the memory that `self` keeps mapped.
        unsafe { self.pointer.write_volatile(value) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::{DATA, RAM_END, memory};

    /// Stretches of these lengths, back to back from [`DATA`] on.
    fn iovecs(memory: &Memory, lengths: &[usize]) -> IoVecs {
        let mut iovecs = IoVecs::new(Arc::clone(memory));
        let mut address = DATA;
        for length in lengths {
            iovecs.push(GuestAddress(address), *length).unwrap();
            address += *length as u64;
        }
        iovecs
    }

    /// What a call would see, as (offset from [`DATA`], length).
    fn seen(memory: &Memory, vecs: &[libc::iovec]) -> Vec<(usize, usize)> {
        let base = memory.get_host_address(GuestAddress(DATA)).unwrap() as usize;
        vecs.iter().map(|vec| (vec.iov_base as usize - base, vec.iov_len)).collect()
    }

    #[test]
    fn a_range_outside_memory_is_refused() {
        let mut iovecs = IoVecs::new(memory());
        assert_eq!(iovecs.push(GuestAddress(RAM_END - 1), 2), Err(NotInMemory));
        assert_eq!(iovecs.push(GuestAddress(u64::MAX), 2), Err(NotInMemory));
    }

    #[test]
    fn the_last_byte_comes_off_the_end() {
        let memory = memory();
        let mut iovecs = iovecs(&memory, &[2, 1]);
        iovecs.pop_last_byte().unwrap().write(3);
        iovecs.pop_last_byte().unwrap().write(2);
        assert_eq!(iovecs.bytes(), 1);
        iovecs.pop_last_byte().unwrap().write(1);
        assert!(iovecs.pop_last_byte().is_none());
        let mut bytes = [0; 3];
        vm_memory::Bytes::read_slice(&*memory, &mut bytes, GuestAddress(DATA)).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
    }

    /// Every list of up to three short stretches, with every part of it, and parts whose
    /// bounds are at the end of the numbers.
    #[test]
    fn all_small_parts_are_what_the_flat_bytes_say() {
        let memory = memory();
        let edges = || (0..=7).chain([usize::MAX - 1, usize::MAX]);
        for code in 0..4_usize.pow(3) {
            let lengths: Vec<usize> = [code % 4, code / 4 % 4, code / 16]
                .into_iter()
                .filter(|length| *length > 0)
                .collect();
            let total = lengths.iter().sum::<usize>();
            let mut iovecs = iovecs(&memory, &lengths);
            for (skip, max) in edges().flat_map(|skip| edges().map(move |max| (skip, max))) {
                let expected: Vec<usize> = (skip.min(total)..total).take(max).collect();
                let found = iovecs.with_part(skip, max, |vecs| -> Vec<usize> {
                    seen(&memory, vecs).iter().flat_map(|(at, len)| *at..at + len).collect()
                });
                assert_eq!(found, expected, "{lengths:?} {skip} {max}");
            }
            for bound in edges() {
                let mut cut = self::iovecs(&memory, &lengths);
                cut.truncate(bound);
                assert_eq!(cut.bytes(), total.min(bound));
                cut.advance(bound);
                assert_eq!(cut.bytes(), 0);
                assert_eq!(cut.read(&mut [0; 4]), 0);
            }
        }
    }

    /// Ranges that end around every edge of memory, with lengths up to the largest.
    #[test]
    fn only_ranges_in_memory_are_taken() {
        let memory = memory();
        let edges = [0, 1, crate::virtio::testing::REGION_BOUNDARY, RAM_END, u64::MAX];
        let lengths = [1, 2, RAM_END as usize, RAM_END as usize + 1, usize::MAX - 1, usize::MAX];
        for (edge, before) in edges.into_iter().flat_map(|edge| (0..3).map(move |n| (edge, n))) {
            let Some(start) = edge.checked_sub(before) else { continue };
            for length in lengths {
                let inside = start.checked_add(length as u64).is_some_and(|end| end <= RAM_END);
                let mut iovecs = IoVecs::new(Arc::clone(&memory));
                let pushed = iovecs.push(GuestAddress(start), length);
                assert_eq!(pushed.is_ok(), inside, "{start:#x} {length:#x}");
                assert!(!inside || iovecs.bytes() == length);
            }
        }
    }

    proptest! {
        #[test]
        fn a_part_is_what_the_flat_bytes_say(
            lengths in prop::collection::vec(1_usize..50, 0..6),
            consumed in 0_usize..100,
            skip in 0_usize..100,
            max in 0_usize..100,
        ) {
            let memory = memory();
            let mut iovecs = iovecs(&memory, &lengths);
            let total = lengths.iter().sum::<usize>();
            iovecs.advance(consumed);
            let begin = (consumed + skip).min(total);
            let expected: Vec<usize> = (begin..total).take(max).collect();
            let flat = |vecs: &[libc::iovec]| -> Vec<usize> {
                seen(&memory, vecs).iter().flat_map(|(start, len)| *start..start + len).collect()
            };
            for _ in 0..2 {
                prop_assert_eq!(&iovecs.with_part(skip, max, flat), &expected);
            }
            prop_assert_eq!(iovecs.bytes(), total.saturating_sub(consumed));
        }

        #[test]
        fn reads_writes_and_truncations_keep_count(
            lengths in prop::collection::vec(1_usize..50, 0..6),
            written in 0_usize..200,
            kept in 0_usize..200,
        ) {
            let memory = memory();
            let total = lengths.iter().sum::<usize>();
            let source: Vec<u8> = (0..written).map(|n| n as u8 + 1).collect();
            let done = iovecs(&memory, &lengths).write(&source);
            prop_assert_eq!(done, written.min(total));
            let mut reader = iovecs(&memory, &lengths);
            reader.truncate(kept);
            prop_assert_eq!(reader.bytes(), kept.min(total));
            let mut target = vec![0; written];
            let read = reader.read(&mut target);
            prop_assert_eq!(read, written.min(total).min(kept));
            prop_assert_eq!(&target[..read], &source[..read]);
        }
    }
}
