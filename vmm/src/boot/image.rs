//! A kernel or initramfs file, read at positions of our own.
//!
//! The file was inherited, and its offset is shared with whoever else has it open, so it
//! is neither used nor moved.
//!
//! Whole pages may be mapped, privately, instead of copied ([`BootPages`]): the guest's
//! first touch brings a page of the host's page cache, its first write a page of its own.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, bitmap::BitmapSlice};

use super::PAGE_BYTES;
use crate::{config::BootPages, memory};

pub struct Image<'a> {
    file: &'a File,
    pages: BootPages,
    position: u64,
    size: u64,
}

impl<'a> Image<'a> {
    pub fn new(file: &'a File, pages: BootPages) -> io::Result<Self> {
        Ok(Self { file, pages, position: 0, size: file.metadata()?.len() })
    }

    /// Bytes in the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn advance(&mut self, bytes: usize) -> usize {
        self.position += bytes as u64;
        bytes
    }
}

impl Read for Image<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read_at(buffer, self.position)?;
        Ok(self.advance(bytes))
    }
}

impl Seek for Image<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::End(offset) => (self.size, offset),
            SeekFrom::Current(offset) => (self.position, offset),
        };
        self.position = base.checked_add_signed(offset).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Image<'_> {
    /// Maps the pages that are to be mapped, and reads the rest. Fills `to` unless the
    /// file ends.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        to: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = to.ptr_guard_mut();
        let start = guard.as_ptr();
        let mapped = match self.pages {
            BootPages::Copied => 0,
            BootPages::Mapped => self.whole_pages(start, to.len()),
        };
        // SAFETY: the guard's bytes are guest memory that may be replaced, to which no
        // reference exists; `whole_pages` are of them and of the file.
        unsafe { memory::replace(start, mapped, self.file, self.position) }
            .map_err(VolatileMemoryError::IOError)?;
        let mut done = self.advance(mapped);
        while done < to.len() {
            // SAFETY: these are the guard's last `to.len() - done` bytes, which may be
            // written.
            let bytes = unsafe { self.read_at(start.add(done), to.len() - done) };
            match bytes.map_err(VolatileMemoryError::IOError)? {
                0 => break,
                bytes => done += self.advance(bytes),
            }
        }
        to.bitmap().mark_dirty(0, done);
        Ok(done)
    }
}

impl Image<'_> {
    /// How many bytes at `start` are whole pages of memory, and of the file at its
    /// position: a page beyond the file's end would kill who touches it.
    fn whole_pages(&self, start: *const u8, length: usize) -> usize {
        let in_file = self.size.saturating_sub(self.position);
        let aligned = start.addr().is_multiple_of(PAGE_BYTES as usize)
            && self.position.is_multiple_of(PAGE_BYTES);
        let bytes = if aligned { in_file.min(length as u64) } else { 0 };
        (bytes - bytes % PAGE_BYTES) as usize
    }

    /// # Safety
    /// The `length` bytes at `to` may be written, and nothing refers to them.
    unsafe fn read_at(&self, to: *mut u8, length: usize) -> io::Result<usize> {
        let offset = i64::try_from(self.position).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as the caller says.
        let bytes = unsafe { libc::pread64(self.file.as_raw_fd(), to.cast(), length, offset) };
        usize::try_from(bytes).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn reads_do_not_move_the_shared_offset() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let memory = crate::memory::allocate(1 << 20).unwrap();
        let mut image = Image::new(&file, BootPages::Mapped).unwrap();
        image.seek(SeekFrom::End(-6)).unwrap();
        image.seek(SeekFrom::Current(1)).unwrap();
        memory.read_exact_volatile_from(GuestAddress(0), &mut image, 5).unwrap();
        assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(0)).unwrap(), *b"56789");
        assert!(image.seek(SeekFrom::Current(-11)).is_err());
        assert_eq!(file.stream_position().unwrap(), 10);
    }
    /// `length` bytes at `position` of the file, in guest memory.
    fn loaded(
        file: &File,
        pages: BootPages,
        position: u64,
        at: u64,
        length: usize,
    ) -> (crate::virtio::Memory, u64) {
        let memory = crate::memory::allocate(1 << 20).unwrap();
        let mut image = Image::new(file, pages).unwrap();
        image.seek(SeekFrom::Start(position)).unwrap();
        memory.read_exact_volatile_from(GuestAddress(at), &mut image, length).unwrap();
        (memory, image.position)
    }

    fn three_pages() -> (File, Vec<u8>) {
        let bytes: Vec<u8> = (0..3 * PAGE_BYTES).map(|at| (at / 16) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    #[test]
    fn pages_and_their_rest_are_the_files() {
        let (file, bytes) = three_pages();
        let page = PAGE_BYTES as usize;
        for (position, at, length) in [
            (0, 0x2000, 3 * page),
            (0, 0x2000, 2 * page + 5),
            (page as u64, 0x3000, page),
            // Aligned in the file or in memory alone.
            (0, 0x2010, 2 * page),
            (16, 0x2000, 2 * page),
            (3 * page as u64 - 7, 0x2ff9, 7),
            (0, 0x2000, 0),
        ] {
            for pages in [BootPages::Copied, BootPages::Mapped] {
                let case = format!("{pages:?} {position} {at:#x} {length}");
                let (memory, end) = loaded(&file, pages, position, at, length);
                let mut found = vec![0; length];
                memory.read_slice(&mut found, GuestAddress(at)).unwrap();
                assert_eq!(found, bytes[position as usize..][..length], "{case}");
                assert_eq!(end, position + length as u64, "{case}");
                // Nothing around it: the kernel's zeroes begin there.
                let after = memory.read_obj::<u64>(GuestAddress(at + length as u64)).unwrap();
                assert_eq!(after, 0, "{case}");
                assert_eq!(memory.read_obj::<u64>(GuestAddress(at - 8)).unwrap(), 0, "{case}");
            }
        }
    }

    #[test]
    fn the_guests_writes_stay_its_own() {
        let (file, bytes) = three_pages();
        let (memory, _) = loaded(&file, BootPages::Mapped, 0, 0, bytes.len());
        memory.write_slice(&vec![0xff; bytes.len()], GuestAddress(0)).unwrap();
        let mut found = vec![0; bytes.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert_eq!(found, bytes);
    }

    #[test]
    fn a_file_that_ends_too_early_is_an_error() {
        let (file, bytes) = three_pages();
        let memory = crate::memory::allocate(1 << 20).unwrap();
        let length = bytes.len() + 1;
        for pages in [BootPages::Copied, BootPages::Mapped] {
            let mut image = Image::new(&file, pages).unwrap();
            assert!(memory.read_exact_volatile_from(GuestAddress(0), &mut image, length).is_err());
        }
    }
}
