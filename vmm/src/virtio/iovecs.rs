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
        let vecs = &mut self.vecs[self.first..];
        let mut count = 0;
        let mut bytes = 0;
        while count < vecs.len().min(libc::UIO_MAXIOV as usize) && bytes < max_bytes {
            bytes += vecs[count].iov_len;
            count += 1;
        }
        let excess = bytes.saturating_sub(max_bytes);
        if excess > 0 {
            vecs[count - 1].iov_len -= excess;
        }
        let result = io(&vecs[..count]);
        if excess > 0 {
            vecs[count - 1].iov_len += excess;
        }
        result
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
