//! A disk made of raw files, one after the other.
//!
//! Each file is padded to [`ALIGNMENT`] with zeros, so that one device carries any number
//! of images that the guest can find again. The format of a file is never guessed: its
//! bytes are the disk's bytes.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

use crate::{interrupted::retry, virtio::iovecs::IoVecs};

/// Each file begins at a multiple of this many bytes.
pub const ALIGNMENT: u64 = 4096;

/// What a block device reads from and writes to. Ranges are within [`Backend::bytes`].
pub trait Backend: Send + Sync {
    /// The size of the disk, a multiple of [`ALIGNMENT`].
    fn bytes(&self) -> u64;
    /// Fills all of `target`.
    fn read(&self, offset: u64, target: &mut IoVecs) -> io::Result<()>;
    /// Writes all of `source`.
    fn write(&self, offset: u64, source: &mut IoVecs) -> io::Result<()>;
    /// Gives the range's space back to the host; it reads as zeros.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Makes the range read as zeros and keeps its space.
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Returns when all that was written is on stable storage.
    fn flush(&self) -> io::Result<()>;
}

/// Why files cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("a disk needs at least one file")]
    NoFile,
    #[error("inspect file {index} of the disk")]
    Inspect { index: usize, source: io::Error },
    #[error("file {index} of the disk is not a regular file: use an image file")]
    NotRegular { index: usize },
    #[error("file {index} of a read-only disk is open for writing: open it read-only")]
    OpenForWriting { index: usize },
    #[error(
        "file {index} of a writable disk is not open for reading and writing, or only for \
         appending: open it O_RDWR"
    )]
    NotOpenForWriting { index: usize },
    #[error(
        "file {index} of a writable disk has {bytes} bytes: grow it to a multiple of {ALIGNMENT}"
    )]
    Unaligned { index: usize, bytes: u64 },
    #[error("the files of the disk have more than 2^63 bytes in all")]
    TooLarge,
}

pub struct SegmentedFile {
    segments: Vec<Segment>,
    bytes: u64,
}

struct Segment {
    file: File,
    /// Where it begins on the disk.
    start: u64,
    /// The size of the file when the disk was made.
    bytes: u64,
}

impl SegmentedFile {
    /// Checks that the files can be neither more nor less than what `readonly` says.
    pub fn new(files: Vec<File>, readonly: bool) -> Result<Self, OpenError> {
        if files.is_empty() {
            return Err(OpenError::NoFile);
        }
        let mut segments = Vec::with_capacity(files.len());
        let mut start = 0_u64;
        for (index, file) in files.into_iter().enumerate() {
            check_access(&file, readonly, index)?;
            let metadata =
                file.metadata().map_err(|source| OpenError::Inspect { index, source })?;
            if !metadata.is_file() {
                return Err(OpenError::NotRegular { index });
            }
            let bytes = metadata.len();
            if !readonly && !bytes.is_multiple_of(ALIGNMENT) {
                return Err(OpenError::Unaligned { index, bytes });
            }
            let end = bytes
                .checked_next_multiple_of(ALIGNMENT)
                .and_then(|padded| start.checked_add(padded))
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or(OpenError::TooLarge)?;
            segments.push(Segment { file, start, bytes });
            start = end;
        }
        Ok(Self { segments, bytes: start })
    }

    /// The segment that holds the disk's byte `offset`, which is on the disk.
    fn segment(&self, offset: u64) -> &Segment {
        let next = self.segments.partition_point(|segment| segment.start <= offset);
        &self.segments[next - 1]
    }

    /// Calls `each` with every part of the range: its segment, and the offset and length in
    /// that file.
    fn for_each_part(
        &self,
        mut offset: u64,
        mut length: u64,
        mut each: impl FnMut(&Segment, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        while length > 0 {
            let segment = self.segment(offset);
            let within = offset - segment.start;
            let part = length.min(segment.bytes.saturating_sub(within));
            if part == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            each(segment, within, part)?;
            offset += part;
            length -= part;
        }
        Ok(())
    }
}

impl Backend for SegmentedFile {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, mut offset: u64, target: &mut IoVecs) -> io::Result<()> {
        while target.bytes() > 0 {
            let segment = self.segment(offset);
            let within = offset - segment.start;
            let done = if within < segment.bytes {
                segment.read_some(within, target)?
            } else {
                target.write_zeros(bytes_to_usize(segment.padded_bytes().saturating_sub(within)))
            };
            if done == 0 {
                // The file was truncated, or the range is not on the disk.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += done as u64;
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, source: &mut IoVecs) -> io::Result<()> {
        self.for_each_part(offset, source.bytes() as u64, Segment::check_not_truncated)?;
        while source.bytes() > 0 {
            let segment = self.segment(offset);
            offset += segment.write_some(offset - segment.start, source)? as u64;
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.for_each_part(offset, length, |segment, within, part| {
            segment.check_not_truncated(within, part)?;
            segment.fallocate(libc::FALLOC_FL_PUNCH_HOLE, within, part)
        })
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.for_each_part(offset, length, |segment, within, part| {
            segment.check_not_truncated(within, part)?;
            match segment.fallocate(libc::FALLOC_FL_ZERO_RANGE, within, part) {
                // tmpfs has no ZERO_RANGE: free the space, then take it again.
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    segment.fallocate(libc::FALLOC_FL_PUNCH_HOLE, within, part)?;
                    segment.fallocate(0, within, part)
                }
                result => result,
            }
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.segments.iter().try_for_each(|segment| segment.file.sync_data())
    }
}

impl Segment {
    fn padded_bytes(&self) -> u64 {
        self.bytes.next_multiple_of(ALIGNMENT)
    }

    /// Reads what one system call reads; 0 at the end of a truncated file.
    fn read_some(&self, within: u64, target: &mut IoVecs) -> io::Result<usize> {
        let done = target.with_front(bytes_to_usize(self.bytes - within), |vecs| {
            retry(|| {
                // SAFETY: the kernel writes to `vecs`, guest memory that is mapped, and to
                // nothing else; no reference to it exists.
                unsafe {
                    libc::preadv64(self.fd(), vecs.as_ptr(), vecs.len() as i32, within as i64)
                }
            })
        })?;
        target.advance(done);
        Ok(done)
    }

    /// Writes what one system call writes, and at least a byte.
    fn write_some(&self, within: u64, source: &mut IoVecs) -> io::Result<usize> {
        let done = source.with_front(bytes_to_usize(self.bytes - within), |vecs| {
            retry(|| {
                // SAFETY: the kernel only reads `vecs`, guest memory that is mapped.
                unsafe {
                    libc::pwritev64(self.fd(), vecs.as_ptr(), vecs.len() as i32, within as i64)
                }
            })
        })?;
        if done == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        source.advance(done);
        Ok(done)
    }

    /// A write past the end of a file that was truncated would make it grow again, with
    /// zeros where there was data.
    fn check_not_truncated(&self, within: u64, length: u64) -> io::Result<()> {
        if self.file.metadata()?.len() < within + length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn fallocate(&self, mode: i32, within: u64, length: u64) -> io::Result<()> {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: it takes no pointers.
        retry(|| unsafe {
            libc::fallocate64(self.fd(), mode, within as i64, length as i64) as isize
        })
        .map(|_| ())
    }

    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Checks the flags that a file was opened with, so that a read-only disk is read-only even
/// if the device were wrong.
fn check_access(file: &File, readonly: bool, index: usize) -> Result<(), OpenError> {
    // SAFETY: F_GETFL takes no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(OpenError::Inspect { index, source: io::Error::last_os_error() });
    }
    let access = flags & (libc::O_ACCMODE | libc::O_PATH);
    if readonly && access != libc::O_RDONLY {
        return Err(OpenError::OpenForWriting { index });
    }
    if !readonly && (access != libc::O_RDWR || flags & libc::O_APPEND != 0) {
        return Err(OpenError::NotOpenForWriting { index });
    }
    Ok(())
}

fn bytes_to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::testing::{DATA, memory};

    /// Up to three files of every size around the alignment, read around every edge,
    /// against the bytes in one row.
    #[test]
    fn all_small_disks_read_as_their_bytes_in_a_row() {
        const SIZES: [usize; 5] = [0, 1, 4095, 4096, 4097];
        let memory = memory();
        for code in 0..SIZES.len().pow(3) {
            let sizes = [code % 5, code / 5 % 5, code / 25].map(|index| SIZES[index]);
            let mut flat = Vec::new();
            let files = (1_u8..).zip(sizes).map(|(tag, size)| {
                let content = vec![tag; size];
                flat.extend(&content);
                flat.resize(flat.len().next_multiple_of(ALIGNMENT as usize), 0);
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all(&content).unwrap();
                File::open(file.path()).unwrap()
            });
            let disk = SegmentedFile::new(files.collect(), true).unwrap();
            assert_eq!(disk.bytes(), flat.len() as u64);
            for offset in [0, 1, 4094, 4095, 4096, 8191, 8192] {
                for length in [1, 2, 4096, 4098, 12_288] {
                    let Some(expected) = flat.get(offset..offset + length) else { continue };
                    memory.write_slice(&[0xee; 12_290], GuestAddress(DATA)).unwrap();
                    let mut target = IoVecs::new(Arc::clone(&memory));
                    target.push(GuestAddress(DATA), length).unwrap();
                    disk.read(offset as u64, &mut target).unwrap();
                    let mut found = vec![0; length + 1];
                    memory.read_slice(&mut found, GuestAddress(DATA)).unwrap();
                    assert!(found[..length] == *expected, "{sizes:?} {offset} {length}");
                    assert_eq!(found[length], 0xee, "a byte too many");
                }
            }
        }
    }
}
