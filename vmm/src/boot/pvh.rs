//! The PVH boot protocol (Xen `docs/misc/pvh`): a start-of-day structure whose address is
//! in EBX when the kernel is entered in 32-bit protected mode.

use std::ops::Range;

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{LoadError, layout};

const MAGIC: u32 = 0x336e_c578;
const VERSION_WITH_MEMORY_MAP: u32 = 1;
/// XEN_HVM_MEMMAP_TYPE_RAM
const RAM: u32 = 1;

/// Writes the start info, the module list and the memory map.
pub fn write(
    memory: &GuestMemoryMmap,
    size_bytes: u64,
    initramfs: Option<&Range<u64>>,
) -> Result<(), LoadError> {
    let ranges = layout::usable_ranges(size_bytes);
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION_WITH_MEMORY_MAP,
        nr_modules: initramfs.is_some().into(),
        modlist_paddr: if initramfs.is_some() { layout::MODULES } else { 0 },
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: ranges.len() as u32,
        ..Default::default()
    };
    put(memory, "PVH start info", layout::START_INFO, info)?;
    if let Some(range) = initramfs {
        let module = hvm_modlist_entry {
            paddr: range.start,
            size: range.end - range.start,
            ..Default::default()
        };
        put(memory, "PVH module list", layout::MODULES, module)?;
    }
    let mut address = layout::MEMORY_MAP;
    for range in ranges {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: RAM,
            reserved: 0,
        };
        put(memory, "PVH memory map", address, entry)?;
        address += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}

fn put<T: ByteValued>(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    value: T,
) -> Result<(), LoadError> {
    memory.write_obj(value, GuestAddress(address)).map_err(|source| LoadError::Write {
        what,
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_covers_memory_on_both_sides_of_the_gap() {
        let memory = crate::memory::allocate(5 << 30).unwrap();
        write(&memory, 5 << 30, Some(&(0x100_0000..0x100_1234))).unwrap();
        let info: hvm_start_info = memory.read_obj(GuestAddress(layout::START_INFO)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.memmap_entries), (MAGIC, 1, 3));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x100_0000, 0x1234));
        let last = info.memmap_paddr + 2 * size_of::<hvm_memmap_table_entry>() as u64;
        let last: hvm_memmap_table_entry = memory.read_obj(GuestAddress(last)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (4 << 30, 2 << 30, RAM));
    }

    #[test]
    fn structures_do_not_overlap() {
        assert!(layout::START_INFO + size_of::<hvm_start_info>() as u64 <= layout::MODULES);
        assert!(layout::MODULES + size_of::<hvm_modlist_entry>() as u64 <= layout::MEMORY_MAP);
    }
}
