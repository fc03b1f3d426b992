//! Requests to a block device as the driver writes them (virtio 1.2 §5.2.6).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::virtio::{
    chain::Chain,
    device_queue::QueueError,
    iovecs::{GuestByte, IoVecs},
};

pub(super) const SECTOR_BYTES: u64 = 512;

/// Most data that one request may carry. Linux asks for at most a few MiB unless told
/// otherwise; the cap bounds the time that a request keeps the I/O thread.
pub(super) const MAX_DATA_BYTES: usize = 32 << 20;

/// Most bytes that one discard or write-zeroes may cover.
pub(super) const MAX_RANGE_BYTES: u64 = 1 << 30;

/// The last byte of a request, for the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A request whose place on the disk was checked. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fills the chain's writable buffers.
    Read {
        offset: u64,
    },
    /// Takes the chain's readable buffers.
    Write {
        offset: u64,
    },
    Flush,
    /// Writes the serial number to the chain's writable buffers.
    GetId,
    Discard {
        offset: u64,
        length: u64,
    },
    WriteZeroes {
        offset: u64,
        length: u64,
        unmap: bool,
    },
}

/// The disk that requests are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    pub(super) readonly: bool,
}

/// The fixed part before the data: type, reserved, sector.
const HEADER_BYTES: usize = 16;
/// A discard or write-zeroes segment: sector, number of sectors, flags.
const RANGE_BYTES: usize = 16;

/// Takes the header off the front and the status byte off the end of a chain: what is left
/// is data. Buffers may be cut anywhere (virtio 1.2 §2.7.4).
pub(super) fn open(chain: &mut Chain) -> Result<(Header, GuestByte), QueueError> {
    let mut header = [0; HEADER_BYTES];
    if chain.readable.read(&mut header) != HEADER_BYTES {
        return Err(QueueError::Layout);
    }
    let status = chain.writable.pop_last_byte().ok_or(QueueError::Layout)?;
    Ok((Header::from_bytes(header), status))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Self {
        let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
        Self { kind: u32::from_le_bytes([a, b, c, d]), sector: u64::from_le_bytes(sector) }
    }

    /// The request that this header and the data make, or why it is refused.
    pub(super) fn parse(self, chain: &mut Chain, disk: Disk) -> Result<Request, Status> {
        match self.kind {
            VIRTIO_BLK_T_IN => {
                let offset = self.data_offset(chain.writable.bytes(), disk)?;
                Ok(Request::Read { offset })
            }
            VIRTIO_BLK_T_OUT => {
                disk.check_writable()?;
                let offset = self.data_offset(chain.readable.bytes(), disk)?;
                Ok(Request::Write { offset })
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
            VIRTIO_BLK_T_DISCARD => {
                disk.check_writable()?;
                match Range::read(&mut chain.readable, disk)? {
                    // virtio 1.2 §5.2.6.2: a discard with the unmap flag is unsupported.
                    Range { flags: 0, offset, length } => Ok(Request::Discard { offset, length }),
                    _ => Err(Status::Unsupported),
                }
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                disk.check_writable()?;
                let Range { offset, length, flags } = Range::read(&mut chain.readable, disk)?;
                if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
                    return Err(Status::Unsupported);
                }
                Ok(Request::WriteZeroes { offset, length, unmap: flags != 0 })
            }
            _ => Err(Status::Unsupported),
        }
    }

    fn data_offset(self, data_bytes: usize, disk: Disk) -> Result<u64, Status> {
        let whole_sectors = (data_bytes as u64).is_multiple_of(SECTOR_BYTES);
        if !whole_sectors || data_bytes > MAX_DATA_BYTES {
            return Err(Status::IoError);
        }
        disk.offset(self.sector, data_bytes as u64)
    }
}

impl Disk {
    fn check_writable(self) -> Result<(), Status> {
        if self.readonly { Err(Status::IoError) } else { Ok(()) }
    }

    /// The byte offset of `sector`, if `length` bytes from there are on the disk.
    fn offset(self, sector: u64, length: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR_BYTES).ok_or(Status::IoError)?;
        let end = offset.checked_add(length).ok_or(Status::IoError)?;
        if end > self.bytes { Err(Status::IoError) } else { Ok(offset) }
    }
}

/// The one segment of a discard or write-zeroes request (§5.2.6, `max_discard_seg` is 1).
struct Range {
    offset: u64,
    length: u64,
    flags: u32,
}

impl Range {
    fn read(data: &mut IoVecs, disk: Disk) -> Result<Self, Status> {
        let mut bytes = [0; RANGE_BYTES];
        if data.bytes() != RANGE_BYTES || data.read(&mut bytes) != RANGE_BYTES {
            return Err(Status::IoError);
        }
        let [sector @ .., a, b, c, d, e, f, g, h] = bytes;
        let length = u64::from(u32::from_le_bytes([a, b, c, d])) * SECTOR_BYTES;
        if length > MAX_RANGE_BYTES {
            return Err(Status::IoError);
        }
        let offset = disk.offset(u64::from_le_bytes(sector), length)?;
        Ok(Self { offset, length, flags: u32::from_le_bytes([e, f, g, h]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sectors and lengths around every edge, against arithmetic that cannot overflow.
    #[test]
    fn only_ranges_on_the_disk_have_an_offset() {
        let near =
            |edge: u64| (0..4).flat_map(move |n| [edge.wrapping_sub(n), edge.wrapping_add(n)]);
        for bytes in [0, 512, 4096, 1 << 40, i64::MAX as u64 / 4096 * 4096] {
            let disk = Disk { bytes, readonly: false };
            let edges = [0, bytes / SECTOR_BYTES, 1 << 32, u64::MAX / SECTOR_BYTES, 1 << 63];
            let lengths = [0, 512, 1024, MAX_RANGE_BYTES, u64::MAX / 512 * 512];
            for sector in edges.into_iter().flat_map(near) {
                for length in lengths {
                    let offset = u128::from(sector) * u128::from(SECTOR_BYTES);
                    let fits = offset + u128::from(length) <= u128::from(bytes);
                    let expected = if fits { Ok(offset as u64) } else { Err(Status::IoError) };
                    assert_eq!(disk.offset(sector, length), expected, "{sector:#x} {length:#x}");
                }
            }
        }
    }
}
