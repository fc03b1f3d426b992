//! The 64-bit Linux boot protocol (`Documentation/arch/x86/boot.rst`): the zero page, a
//! GDT and identity-mapping page tables, for a bzImage or an ELF without a PVH note.

use std::ops::Range;

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{LoadError, layout};

/// Protocol 2.12.
pub const FIRST_WITH_XLOADFLAGS: u16 = 0x20c;
pub const XLF_KERNEL_64: u16 = 1;
/// Of the 64-bit entry point from the start of the loaded kernel.
pub const ENTRY_OFFSET: u64 = 0x200;

/// Selectors that the protocol prescribes (`__BOOT_CS`, `__BOOT_DS`), and a TSS.
pub const CODE_SELECTOR: u16 = 0x10;
pub const DATA_SELECTOR: u16 = 0x18;
pub const TSS_SELECTOR: u16 = 0x20;

/// Flat 64-bit code, flat data, and a busy TSS of the minimum length.
pub const GDT: [u64; 5] =
    [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Of a boot loader without an assigned number.
const UNDEFINED_LOADER: u8 = 0xff;
const E820_RAM: u32 = 1;

const PAGE_TABLE_BYTES: u64 = 0x1000;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;

/// Writes the zero page, the GDT and the page tables.
pub fn write(
    memory: &GuestMemoryMmap,
    size_bytes: u64,
    initramfs: Option<&Range<u64>>,
    header: Option<setup_header>,
    command_line_bytes: usize,
) -> Result<(), LoadError> {
    let zero_page = zero_page(size_bytes, initramfs, header, command_line_bytes);
    memory
        .write_obj(zero_page, GuestAddress(layout::ZERO_PAGE))
        .map_err(|source| failed("zero page", layout::ZERO_PAGE, source))?;
    put_words(memory, "GDT", layout::GDT, GDT)?;
    write_page_tables(memory)
}

fn zero_page(
    size_bytes: u64,
    initramfs: Option<&Range<u64>>,
    header: Option<setup_header>,
    command_line_bytes: usize,
) -> boot_params {
    let mut header = header.unwrap_or(setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        kernel_alignment: 0x100_0000,
        ..Default::default()
    });
    header.type_of_loader = UNDEFINED_LOADER;
    header.cmd_line_ptr = layout::COMMAND_LINE as u32;
    header.cmdline_size = command_line_bytes as u32;
    if let Some(range) = initramfs {
        // Below the gap, so both fit.
        header.ramdisk_image = range.start as u32;
        header.ramdisk_size = (range.end - range.start) as u32;
    }
    let mut page = boot_params { hdr: header, ..Default::default() };
    for (entry, range) in page.e820_table.iter_mut().zip(layout::usable_ranges(size_bytes)) {
        *entry =
            boot_e820_entry { addr: range.start, size: range.end - range.start, type_: E820_RAM };
        page.e820_entries += 1;
    }
    page
}

/// Maps the first GiB to itself with pages of 2 MiB. The kernel maps what it needs beyond
/// on its first page faults.
fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), LoadError> {
    let [level4, level3, level2] = [0, 1, 2].map(|n| layout::PAGE_TABLES + n * PAGE_TABLE_BYTES);
    put_words(memory, "page table", level4, [level3 | PRESENT_WRITABLE])?;
    put_words(memory, "page table", level3, [level2 | PRESENT_WRITABLE])?;
    let pages: [u64; 512] =
        std::array::from_fn(|n| (n as u64) << 21 | LARGE_PAGE | PRESENT_WRITABLE);
    put_words(memory, "page table", level2, pages)
}

fn put_words<const N: usize>(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    words: [u64; N],
) -> Result<(), LoadError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    super::write(memory, what, address, &bytes)
}

fn failed(what: &'static str, address: u64, source: vm_memory::GuestMemoryError) -> LoadError {
    LoadError::Write { what, address, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_page_tells_of_memory_initramfs_and_command_line() {
        let page = zero_page(5 << 30, Some(&(0x200_0000..0x200_0800)), None, 17);
        assert_eq!(page.e820_entries, 3);
        let (address, size) = (page.e820_table[2].addr, page.e820_table[2].size);
        assert_eq!((address, size), (4 << 30, 2 << 30));
        let header = page.hdr;
        let (image, bytes) = (header.ramdisk_image, header.ramdisk_size);
        assert_eq!((image, bytes), (0x200_0000, 0x800));
        let (line, line_bytes) = (header.cmd_line_ptr, header.cmdline_size);
        assert_eq!((u64::from(line), line_bytes), (layout::COMMAND_LINE, 17));
    }

    #[test]
    fn every_address_of_the_first_gib_maps_to_itself() {
        let memory = crate::memory::allocate(32 << 20).unwrap();
        write_page_tables(&memory).unwrap();
        let read = |address: u64| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
        let table = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        for address in [0_u64, 0x12_3456, 0x3fff_ffff] {
            let level3 = table(read(layout::PAGE_TABLES));
            let level2 = table(read(level3 + (address >> 30) * 8));
            let page = read(level2 + (address >> 21) * 8);
            assert_eq!(page & LARGE_PAGE, LARGE_PAGE);
            assert_eq!(table(page) & !0x1f_ffff | address & 0x1f_ffff, address);
        }
    }
}
