//! A kernel or initramfs file, read at positions of our own.
//!
//! The file was inherited, and its offset is shared with whoever else has it open, so it
//! is neither used nor moved.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::AsRawFd, unix::fs::FileExt},
};

use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, bitmap::BitmapSlice};

pub struct Image<'a> {
    file: &'a File,
    position: u64,
    size: u64,
}

impl<'a> Image<'a> {
    pub fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, position: 0, size: file.metadata()?.len() })
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
    /// Reads from the page cache straight into guest memory.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        to: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = i64::try_from(self.position)
            .map_err(|_| VolatileMemoryError::IOError(io::ErrorKind::InvalidInput.into()))?;
        let guard = to.ptr_guard_mut();
        // SAFETY: the guard holds `to.len()` bytes of guest memory that may be written;
        // no reference to them exists.
        let bytes = unsafe {
            libc::pread64(self.file.as_raw_fd(), guard.as_ptr().cast(), to.len(), offset)
        };
        let bytes = usize::try_from(bytes)
            .map_err(|_| VolatileMemoryError::IOError(io::Error::last_os_error()))?;
        to.bitmap().mark_dirty(0, bytes);
        Ok(self.advance(bytes))
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
        let mut image = Image::new(&file).unwrap();
        image.seek(SeekFrom::End(-6)).unwrap();
        image.seek(SeekFrom::Current(1)).unwrap();
        memory.read_exact_volatile_from(GuestAddress(0), &mut image, 5).unwrap();
        assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(0)).unwrap(), *b"56789");
        assert!(image.seek(SeekFrom::Current(-11)).is_err());
        assert_eq!(file.stream_position().unwrap(), 10);
    }
}
