//! A descriptor chain, read once and checked (virtio 1.2 §2.7).
//!
//! `virtio_queue::DescriptorChain` ends silently where a chain is malformed, and follows
//! indirect tables that were not negotiated. Here a chain is whole or an error, each
//! descriptor is copied once, and its buffers are known to lie in guest memory.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use super::{
    Memory,
    iovecs::{IoVecs, NotInMemory},
};

/// Longest chain accepted, indirect descriptors included. Drivers stay below their queue's
/// size; Linux allows itself more with an indirect table.
pub const MAX_DESCRIPTORS: u16 = 1024;

const DESCRIPTOR_BYTES: u32 = size_of::<Descriptor>() as u32;

/// A buffer chain that the driver made available.
pub struct Chain {
    pub(super) head: u16,
    /// What the device may read.
    pub readable: IoVecs,
    /// What the device may write.
    pub writable: IoVecs,
}

/// How a driver broke the rules for chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("descriptor {index} is beyond a table of {size}")]
    IndexOutOfRange { index: u16, size: u16 },
    #[error("descriptor table entry at {address:#x} is not in guest memory")]
    TableNotInMemory { address: u64 },
    #[error("buffer of {bytes} bytes at {address:#x} is not in guest memory")]
    BufferNotInMemory { address: u64, bytes: u32 },
    #[error("a descriptor of zero bytes")]
    EmptyBuffer,
    #[error("a chain that loops, or has more descriptors than {limit}")]
    TooLong { limit: u16 },
    #[error("a chain of more than 4 GiB")]
    TooManyBytes,
    #[error("a device-readable descriptor after a device-writable one")]
    ReadableAfterWritable,
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    #[error("an indirect descriptor that is nested or has a successor")]
    IndirectMisplaced,
    #[error("an indirect table of {bytes} bytes")]
    IndirectTableSize { bytes: u32 },
}

/// The descriptor table of a queue, or an indirect one.
#[derive(Clone, Copy)]
pub struct Table {
    pub address: GuestAddress,
    pub size: u16,
}

impl Chain {
    pub fn new(memory: &Memory) -> Self {
        Self {
            head: 0,
            readable: IoVecs::new(memory.clone()),
            writable: IoVecs::new(memory.clone()),
        }
    }

    /// Bytes of all buffers that are left.
    pub fn bytes(&self) -> usize {
        self.readable.bytes() + self.writable.bytes()
    }

    /// Replaces `self` by the chain that starts at `head` of `table`.
    pub fn load(
        &mut self,
        memory: &Memory,
        mut table: Table,
        head: u16,
        indirect_allowed: bool,
    ) -> Result<(), ChainError> {
        self.head = head;
        self.readable.clear();
        self.writable.clear();
        let mut index = head;
        let mut nested = false;
        let mut limit = table.size.min(MAX_DESCRIPTORS);
        let mut left = limit;
        loop {
            left = left.checked_sub(1).ok_or(ChainError::TooLong { limit })?;
            let descriptor = table.descriptor(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                if !indirect_allowed {
                    return Err(ChainError::IndirectNotNegotiated);
                }
                if nested || descriptor.has_next() {
                    return Err(ChainError::IndirectMisplaced);
                }
                table = Table::indirect(&descriptor)?;
                nested = true;
                index = 0;
                limit = table.size;
                left = limit;
                continue;
            }
            self.push(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    fn push(&mut self, descriptor: &Descriptor) -> Result<(), ChainError> {
        let (address, bytes) = (descriptor.addr(), descriptor.len());
        if bytes == 0 {
            return Err(ChainError::EmptyBuffer);
        }
        // virtio 1.2 §2.7.5.2: at most 2^32 bytes in total.
        if self.bytes() + bytes as usize > u32::MAX as usize {
            return Err(ChainError::TooManyBytes);
        }
        let list = if descriptor.is_write_only() {
            &mut self.writable
        } else if self.writable.bytes() > 0 {
            return Err(ChainError::ReadableAfterWritable);
        } else {
            &mut self.readable
        };
        list.push(address, bytes as usize).map_err(|NotInMemory| ChainError::BufferNotInMemory {
            address: address.raw_value(),
            bytes,
        })
    }
}

impl Table {
    fn descriptor(&self, memory: &Memory, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.size {
            return Err(ChainError::IndexOutOfRange { index, size: self.size });
        }
        let error = ChainError::TableNotInMemory { address: self.address.raw_value() };
        let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
        let address = self.address.checked_add(offset).ok_or(error)?;
        memory.read_obj(address).map_err(|_| error)
    }

    /// The table that an indirect descriptor refers to (virtio 1.2 §2.7.5.3).
    fn indirect(descriptor: &Descriptor) -> Result<Self, ChainError> {
        let bytes = descriptor.len();
        let error = ChainError::IndirectTableSize { bytes };
        if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(error);
        }
        let size = u16::try_from(bytes / DESCRIPTOR_BYTES).map_err(|_| error)?;
        if size > MAX_DESCRIPTORS {
            return Err(error);
        }
        Ok(Self { address: descriptor.addr(), size })
    }
}
