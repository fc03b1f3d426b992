//! Where things are in the guest's physical address space.
//!
//! ```text
//! 0x0000_0500  GDT                         (64-bit boot)
//! 0x0000_6000  hvm_start_info, modules     (PVH)
//! 0x0000_7000  memory map, or zero page    (PVH, or 64-bit boot)
//! 0x0000_9000  page tables                 (64-bit boot)
//! 0x0002_0000  command line
//! 0x0009_fc00  MP table
//! 0x0010_0000  RAM up to the gap: the kernel where it wants to be, the initramfs behind
//! 0xc000_0000  MMIO gap ─┐ 0xd000_0000 virtio-mmio, 0xfec0_0000 IOAPIC,
//! 0x1_0000_0000 more RAM ┘ 0xfee0_0000 local APIC, 0xfffb_c000 KVM's own pages
//! ```

use std::{iter, ops::Range};

pub const GDT: u64 = 0x500;
pub const START_INFO: u64 = 0x6000;
pub const MODULES: u64 = 0x6040;
pub const MEMORY_MAP: u64 = 0x7000;
pub const ZERO_PAGE: u64 = 0x7000;
pub const BOOT_STACK: u64 = 0x8ff0;
pub const PAGE_TABLES: u64 = 0x9000;
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The largest command line that x86 Linux takes (COMMAND_LINE_SIZE), its NUL included.
pub const COMMAND_LINE_BYTES: usize = 2048;

/// The last KiB of conventional memory, where the MP specification (§4) has an operating
/// system look.
pub const MP_TABLE: u64 = 0x9_fc00;
pub const MP_TABLE_BYTES: u64 = 0x400;

pub const HIGH_MEMORY: u64 = 0x10_0000;

pub const MMIO_GAP_START: u64 = 0xc000_0000;
pub const MMIO_GAP_END: u64 = 1 << 32;

/// The registers of the first virtio-mmio device; each has a page.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
pub const VIRTIO_MMIO_BYTES: u64 = 0x1000;

pub const IOAPIC: u32 = 0xfec0_0000;
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Input pins of KVM's IOAPIC.
pub const IOAPIC_PINS: u8 = 24;

/// A page for real mode and three for the TSS, which KVM needs on older Intel CPUs.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
pub const KVM_TSS: usize = 0xfffb_d000;

/// IRQ of the serial port COM1.
pub const SERIAL_IRQ: u8 = 4;

/// IRQs for virtio devices: those above the legacy devices', without the RTC's 8.
fn virtio_irqs() -> impl Iterator<Item = u8> {
    (5..IOAPIC_PINS).filter(|&irq| irq != 8)
}

/// Where a virtio-mmio device is, and which IRQ it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioSlot {
    pub address: u64,
    pub irq: u8,
}

/// The places for virtio devices, in the order in which the guest finds them.
pub fn virtio_slots() -> impl Iterator<Item = VirtioSlot> {
    let address = |index| VIRTIO_MMIO + index * VIRTIO_MMIO_BYTES;
    (0..).map(address).zip(virtio_irqs()).map(|(address, irq)| VirtioSlot { address, irq })
}

/// The ranges of RAM in a guest with `size_bytes` of it.
pub fn ram_ranges(size_bytes: u64) -> Vec<Range<u64>> {
    let low = 0..size_bytes.min(MMIO_GAP_START);
    let high = MMIO_GAP_END..MMIO_GAP_END + size_bytes.saturating_sub(MMIO_GAP_START);
    [low, high].into_iter().filter(|range| !range.is_empty()).collect()
}

/// The RAM that the kernel may use: everything but the MP table and what PCs have
/// between it and 1 MiB.
pub fn usable_ranges(size_bytes: u64) -> Vec<Range<u64>> {
    let low = iter::once(0..MP_TABLE);
    let rest = ram_ranges(size_bytes).into_iter();
    low.chain(rest.map(|range| range.start.max(HIGH_MEMORY)..range.end)).collect()
}

/// Where RAM below the gap ends; nothing that the boot protocols point to with 32 bits
/// may lie beyond.
pub fn low_ram_end(size_bytes: u64) -> u64 {
    size_bytes.min(MMIO_GAP_START)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_at_the_gap_and_keeps_its_size() {
        for size in [32 << 20, 3 << 30] {
            assert!(ram_ranges(size).into_iter().eq(iter::once(0..size)));
        }
        assert_eq!(ram_ranges(5 << 30), [0..3 << 30, 4 << 30..6 << 30]);
    }

    #[test]
    fn the_kernel_may_not_use_the_mp_table() {
        for size in [32 << 20, 5 << 30] {
            for range in usable_ranges(size) {
                assert!(range.end <= MP_TABLE || range.start >= MP_TABLE + MP_TABLE_BYTES);
            }
        }
    }

    #[test]
    fn device_pages_lie_in_the_gap() {
        let slots: Vec<_> = virtio_slots().collect();
        assert_eq!(slots[0], VirtioSlot { address: 0xd000_0000, irq: 5 });
        for slot in &slots {
            assert!(slot.address >= MMIO_GAP_START);
            assert!(slot.address + VIRTIO_MMIO_BYTES <= u64::from(IOAPIC));
            assert!(slot.irq != SERIAL_IRQ && slot.irq != 8 && slot.irq < IOAPIC_PINS);
        }
    }
}
