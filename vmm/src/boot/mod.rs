//! Puts a kernel into guest memory, and what its boot protocol wants around it.

pub mod command_line;
pub mod image;
pub mod layout;
pub mod linux64;
pub mod mptable;
pub mod pvh;

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use linux_loader::loader::{
    BzImage, Elf, Error as LoaderError, KernelLoader, PvhBootCapability, bootparam::setup_header,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::config::BootPages;
use image::Image;

const PAGE_BYTES: u64 = 4096;
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("read the {what}")]
    Read {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("load the kernel, which must be an ELF vmlinux or a bzImage that fits guest memory")]
    Kernel(#[source] LoaderError),
    #[error("the bzImage has no 64-bit entry (boot protocol {version:#x}); build it for x86-64")]
    No64BitEntry { version: u16 },
    #[error(
        "the initramfs of {bytes} bytes does not fit between the kernel's end at {kernel_end:#x} \
         and the end of low memory at {low_ram_end:#x}; give the VM more memory"
    )]
    InitramfsTooLarge { bytes: u64, kernel_end: u64, low_ram_end: u64 },
    #[error("write the {what} at {address:#x}")]
    Write {
        what: &'static str,
        address: u64,
        #[source]
        source: GuestMemoryError,
    },
}

/// How the first vCPU enters the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry {
    /// In protected mode, by the PVH note of an ELF.
    Pvh { address: u64 },
    /// In long mode, by the 64-bit boot protocol; an ELF has no setup header.
    Linux64 { address: u64, header: Option<setup_header> },
}

/// What is in guest memory, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    pub entry: Entry,
    pub initramfs: Option<Range<u64>>,
}

/// Loads the kernel where it wants to be, and the initramfs behind it.
pub fn load(
    memory: &GuestMemoryMmap,
    size_bytes: u64,
    kernel: &File,
    initramfs: Option<&File>,
    pages: BootPages,
) -> Result<Loaded, LoadError> {
    let (entry, kernel_end) = load_kernel(memory, kernel, pages)?;
    let initramfs = initramfs
        .map(|file| {
            load_initramfs(memory, file, pages, kernel_end, layout::low_ram_end(size_bytes))
        })
        .transpose()?;
    Ok(Loaded { entry, initramfs })
}

/// Writes the command line, the MP table, and the structures of the boot protocol.
pub fn write_boot_data(
    memory: &GuestMemoryMmap,
    size_bytes: u64,
    vcpus: u8,
    irqs: &[u8],
    loaded: &Loaded,
    command_line: &[u8],
) -> Result<(), LoadError> {
    write(memory, "command line", layout::COMMAND_LINE, command_line)?;
    mptable::write(memory, vcpus, irqs).map_err(|source| LoadError::Write {
        what: "MP table",
        address: layout::MP_TABLE,
        source,
    })?;
    let initramfs = loaded.initramfs.as_ref();
    match loaded.entry {
        Entry::Pvh { .. } => pvh::write(memory, size_bytes, initramfs),
        Entry::Linux64 { header, .. } => {
            linux64::write(memory, size_bytes, initramfs, header, command_line.len())
        }
    }
}

/// The entry, and where the memory ends that the kernel needs before it has its own
/// allocator.
fn load_kernel(
    memory: &GuestMemoryMmap,
    file: &File,
    pages: BootPages,
) -> Result<(Entry, u64), LoadError> {
    let mut magic = [0; 4];
    let failed = |source| LoadError::Read { what: "kernel", source };
    file.read_exact_at(&mut magic, 0).map_err(failed)?;
    let mut image = Image::new(file, pages).map_err(failed)?;
    let floor = Some(GuestAddress(layout::HIGH_MEMORY));

    if magic == ELF_MAGIC {
        let result = Elf::load(memory, None, &mut image, floor).map_err(LoadError::Kernel)?;
        let entry = match result.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(address) => Entry::Pvh { address: address.0 },
            _ => Entry::Linux64 { address: result.kernel_load.0, header: None },
        };
        return Ok((entry, result.kernel_end));
    }
    let result = BzImage::load(memory, None, &mut image, floor).map_err(LoadError::Kernel)?;
    let header = result.setup_header.unwrap_or_default();
    if header.version < linux64::FIRST_WITH_XLOADFLAGS
        || header.xloadflags & linux64::XLF_KERNEL_64 == 0
    {
        return Err(LoadError::No64BitEntry { version: header.version });
    }
    // It decompresses itself to here.
    let unpacked_end = header.pref_address.saturating_add(u64::from(header.init_size));
    let address = result.kernel_load.0 + linux64::ENTRY_OFFSET;
    Ok((Entry::Linux64 { address, header: Some(header) }, result.kernel_end.max(unpacked_end)))
}

/// Loads the initramfs right behind the kernel: what lies together shares huge pages.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    file: &File,
    pages: BootPages,
    kernel_end: u64,
    low_ram_end: u64,
) -> Result<Range<u64>, LoadError> {
    let failed = |source| LoadError::Read { what: "initramfs", source };
    let mut image = Image::new(file, pages).map_err(failed)?;
    let bytes = image.size();
    let too_large = LoadError::InitramfsTooLarge { bytes, kernel_end, low_ram_end };
    let start = kernel_end.max(layout::HIGH_MEMORY).checked_next_multiple_of(PAGE_BYTES);
    let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
    let Some(range) = range.filter(|range| range.end <= low_ram_end) else {
        return Err(too_large);
    };
    memory
        .read_exact_volatile_from(GuestAddress(range.start), &mut image, bytes as usize)
        .map_err(|source| LoadError::Write { what: "initramfs", address: range.start, source })?;
    Ok(range)
}

fn write(
    memory: &GuestMemoryMmap,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), LoadError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|source| LoadError::Write {
        what,
        address,
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const SIZE: u64 = 32 << 20;
    const COPIED: BootPages = BootPages::Copied;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn the_initramfs_follows_the_kernel() {
        let memory = crate::memory::allocate(SIZE).unwrap();
        let range =
            load_initramfs(&memory, &file(&[7; 5000]), COPIED, (16 << 20) + 1, SIZE).unwrap();
        let start = (16 << 20) + 4096;
        assert_eq!(range, start..start + 5000);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(range.end - 1)).unwrap(), 7);
    }

    #[test]
    fn an_initramfs_may_end_low_memory() {
        let memory = crate::memory::allocate(SIZE).unwrap();
        let bytes = file(&[7; 8192]);
        let range = load_initramfs(&memory, &bytes, COPIED, SIZE - 8192, SIZE).unwrap();
        assert_eq!(range.end, SIZE);
        for kernel_end in [SIZE - 8191, SIZE, u64::MAX] {
            assert!(load_initramfs(&memory, &bytes, COPIED, kernel_end, SIZE).is_err());
        }
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_refused() {
        let memory = crate::memory::allocate(SIZE).unwrap();
        let error =
            load_initramfs(&memory, &file(&[7; 5000]), COPIED, SIZE - 4096, SIZE).unwrap_err();
        assert!(matches!(error, LoadError::InitramfsTooLarge { bytes: 5000, .. }), "{error}");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = crate::memory::allocate(SIZE).unwrap();
        for bytes in [
            &b""[..],
            b"#!/bin/sh\n",
            &[0; 4096],
            b"\x7fELF",
            &[b"\x7fELF", &[0xff; 200][..]].concat(),
        ] {
            assert!(load(&memory, SIZE, &file(bytes), None, COPIED).is_err());
        }
    }
}
