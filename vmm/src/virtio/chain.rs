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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };

    use super::*;
    use crate::virtio::testing::{DATA, RAM_END, memory};

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    const TABLE: u64 = 0x1000;
    const INNER: u64 = 0x8000;

    /// (address, bytes, flags, next)
    type Raw = (u64, u32, u16, u16);

    fn put(memory: &Memory, table: u64, descriptors: &[Raw]) {
        for (address, (guest, bytes, flags, next)) in (table..).step_by(16).zip(descriptors) {
            let descriptor = Descriptor::new(*guest, *bytes, *flags, *next);
            memory.write_obj(descriptor, GuestAddress(address)).unwrap();
        }
    }

    fn load(memory: &Memory, size: u16, head: u16) -> Result<Chain, ChainError> {
        let mut chain = Chain::new(memory);
        let table = Table { address: GuestAddress(TABLE), size };
        chain.load(memory, table, head, true).map(|()| chain)
    }

    fn error(descriptors: &[Raw]) -> ChainError {
        let memory = memory();
        put(&memory, TABLE, descriptors);
        load(&memory, 4, 0).err().expect("the chain is wrong")
    }

    #[test]
    fn readable_and_writable_buffers_are_told_apart() {
        let memory = memory();
        let chain =
            [(DATA, 10, NEXT, 2), (0, 0, 0, 0), (DATA, 5, NEXT | WRITE, 3), (DATA, 6, WRITE, 0)];
        put(&memory, TABLE, &chain);
        let chain = load(&memory, 4, 0).unwrap();
        assert_eq!((chain.readable.bytes(), chain.writable.bytes()), (10, 11));
    }

    #[test]
    fn an_indirect_table_may_follow_direct_descriptors() {
        let memory = memory();
        put(&memory, TABLE, &[(DATA, 10, NEXT, 1), (INNER, 48, INDIRECT, 0)]);
        put(&memory, INNER, &[(DATA, 1, NEXT, 2), (0, 0, 0, 0), (DATA, 2, WRITE, 0)]);
        let chain = load(&memory, 4, 0).unwrap();
        assert_eq!((chain.readable.bytes(), chain.writable.bytes()), (11, 2));
    }

    #[test]
    fn an_indirect_table_inside_an_indirect_table_is_refused() {
        let memory = memory();
        put(&memory, TABLE, &[(INNER, 32, INDIRECT, 0)]);
        put(&memory, INNER, &[(DATA, 1, NEXT, 1), (INNER, 32, INDIRECT, 0)]);
        assert_eq!(load(&memory, 4, 0).err(), Some(ChainError::IndirectMisplaced));
    }

    #[test]
    fn a_loop_inside_an_indirect_table_is_refused() {
        let memory = memory();
        put(&memory, TABLE, &[(INNER, 32, INDIRECT, 0)]);
        put(&memory, INNER, &[(DATA, 1, NEXT, 1), (DATA, 1, NEXT, 0)]);
        assert_eq!(load(&memory, 4, 0).err(), Some(ChainError::TooLong { limit: 2 }));
        put(&memory, INNER, &[(DATA, 1, NEXT, 2)]);
        let error = ChainError::IndexOutOfRange { index: 2, size: 2 };
        assert_eq!(load(&memory, 4, 0).err(), Some(error));
    }

    #[test]
    fn errors_name_what_is_wrong() {
        assert_eq!(error(&[(DATA, 1, NEXT, 0)]), ChainError::TooLong { limit: 4 });
        assert_eq!(error(&[(DATA, 1, NEXT, 4)]), ChainError::IndexOutOfRange { index: 4, size: 4 });
        assert_eq!(error(&[(DATA, 0, 0, 0)]), ChainError::EmptyBuffer);
        assert_eq!(
            error(&[(RAM_END, 1, 0, 0)]),
            ChainError::BufferNotInMemory { address: RAM_END, bytes: 1 }
        );
        assert_eq!(
            error(&[(DATA, 1, NEXT | WRITE, 1), (DATA, 1, 0, 0)]),
            ChainError::ReadableAfterWritable
        );
        assert_eq!(error(&[(INNER, 40, INDIRECT, 0)]), ChainError::IndirectTableSize { bytes: 40 });
        assert_eq!(
            error(&[(RAM_END - 8, 16, INDIRECT, 0)]),
            ChainError::TableNotInMemory { address: RAM_END - 8 }
        );
        assert_eq!(
            error(&[(u64::MAX - 7, 32, INDIRECT, 0)]),
            ChainError::TableNotInMemory { address: u64::MAX - 7 }
        );
    }

    #[test]
    fn a_chain_of_more_than_4_gib_is_refused() {
        let memory = memory();
        put(&memory, TABLE, &[(INNER, 16 * 1024, INDIRECT, 0)]);
        // Each is the whole of RAM: 2 MiB.
        let whole: Vec<Raw> = (1..=1024).map(|next| (0, RAM_END as u32, NEXT, next)).collect();
        put(&memory, INNER, &whole);
        // 1024 of them are 2 GiB, and the last leads nowhere.
        let error = ChainError::TooLong { limit: 1024 };
        assert_eq!(load(&memory, 4, 0).err(), Some(error));
        let mut chain = Chain::new(&memory);
        let huge = Descriptor::new(DATA, u32::MAX, 0, 0);
        chain.readable.push(GuestAddress(DATA), 1).unwrap();
        assert_eq!(chain.push(&huge), Err(ChainError::TooManyBytes));
    }

    #[test]
    fn a_descriptor_that_is_rewritten_after_it_was_read_changes_nothing() {
        let memory = memory();
        put(&memory, TABLE, &[(DATA, 4, 0, 0)]);
        memory.write_slice(b"good", GuestAddress(DATA)).unwrap();
        let mut chain = load(&memory, 4, 0).unwrap();
        put(&memory, TABLE, &[(RAM_END, u32::MAX, NEXT, 9)]);
        let mut bytes = [0; 8];
        assert_eq!(chain.readable.read(&mut bytes), 4);
        assert_eq!(&bytes[..4], b"good");
    }

    /// Every table of three descriptors with every combination of flags and successors:
    /// loading ends, and no descriptor is in a chain twice.
    #[test]
    fn all_small_tables_are_loaded_or_refused() {
        let memory = memory();
        let mut chain = Chain::new(&memory);
        let table = Table { address: GuestAddress(TABLE), size: 3 };
        let variants = 8 * 4;
        let (mut good, mut bad) = (0, 0);
        for code in 0..variants * variants * variants {
            let mut rest = code;
            let descriptors: [Raw; 3] = std::array::from_fn(|index| {
                let (flags, next) = (rest % 8, rest / 8 % 4);
                rest /= variants;
                // As an indirect table it is this one again.
                let (address, bytes) =
                    if flags & INDIRECT != 0 { (TABLE, 48) } else { (DATA, 1 << index) };
                (address, bytes, flags, next)
            });
            put(&memory, TABLE, &descriptors);
            for head in 0..4 {
                match chain.load(&memory, table, head, code % 2 == 0) {
                    Ok(()) => {
                        good += 1;
                        // Its length has one bit for each descriptor: none was added twice.
                        assert!(chain.bytes() < 8, "{descriptors:?}");
                        assert!(chain.bytes() > 0);
                    }
                    Err(_) => bad += 1,
                }
            }
        }
        assert!(good > 1000 && bad > 1000, "{good} {bad}");
    }

    proptest! {
        #[test]
        fn any_bytes_as_descriptors_are_loaded_or_refused(
            table in prop::collection::vec(any::<u8>(), 16 * 8),
            flags in prop::collection::vec(0_u16..8, 8),
            head: u16,
        ) {
            let memory = memory();
            memory.write_slice(&table, GuestAddress(TABLE)).unwrap();
            for (index, flags) in (0..).zip(flags) {
                memory.write_obj(flags, GuestAddress(TABLE + index * 16 + 12)).unwrap();
            }
            let _ = load(&memory, 8, head);
            let _ = load(&memory, 8, head % 8);
        }
    }
}
