//! The registers with which the first vCPU enters the kernel.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use super::{CpuError, failed};
use crate::boot::{Entry, layout, linux64};

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// Bit 1 is always set; interrupts are off.
const RFLAGS: u64 = 1 << 1;

pub fn set_entry(fd: &VcpuFd, entry: &Entry) -> Result<(), CpuError> {
    let mut special = fd.get_sregs().map_err(failed("read the system registers", 0))?;
    let general = match *entry {
        Entry::Pvh { address } => {
            enter_protected_mode(&mut special);
            kvm_regs { rip: address, rbx: layout::START_INFO, rflags: RFLAGS, ..Default::default() }
        }
        Entry::Linux64 { address, .. } => {
            enter_long_mode(&mut special);
            kvm_regs {
                rip: address,
                rsi: layout::ZERO_PAGE,
                rsp: layout::BOOT_STACK,
                rbp: layout::BOOT_STACK,
                rflags: RFLAGS,
                ..Default::default()
            }
        }
    };
    fd.set_sregs(&special).map_err(failed("set the system registers", 0))?;
    fd.set_regs(&general).map_err(failed("set the registers", 0))
}

/// As the PVH protocol wants it: flat 32-bit segments, no paging. The kernel loads a GDT
/// of its own before it loads a segment.
fn enter_protected_mode(special: &mut kvm_sregs) {
    special.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE;
    set_segments(special, 0x8, 0x10, 0x18);
    special.cs.db = 1;
    special.cs.l = 0;
}

/// As the 64-bit boot protocol wants it: the GDT and page tables of [`linux64`].
fn enter_long_mode(special: &mut kvm_sregs) {
    special.gdt.base = layout::GDT;
    special.gdt.limit = (linux64::GDT.len() * 8 - 1) as u16;
    special.cr3 = layout::PAGE_TABLES;
    special.cr4 |= CR4_PAE;
    special.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    special.efer |= EFER_LONG_MODE;
    set_segments(special, linux64::CODE_SELECTOR, linux64::DATA_SELECTOR, linux64::TSS_SELECTOR);
    special.cs.db = 0;
    special.cs.l = 1;
}

fn set_segments(special: &mut kvm_sregs, code: u16, data: u16, tss: u16) {
    const EXECUTE_READ_ACCESSED: u8 = 0xb;
    const READ_WRITE_ACCESSED: u8 = 0x3;
    const BUSY_TSS: u8 = 0xb;
    let flat =
        kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    special.cs = kvm_segment { selector: code, type_: EXECUTE_READ_ACCESSED, ..flat };
    let data = kvm_segment { selector: data, type_: READ_WRITE_ACCESSED, ..flat };
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = kvm_segment {
        selector: tss,
        type_: BUSY_TSS,
        limit: 0x67,
        present: 1,
        ..Default::default()
    };
}
