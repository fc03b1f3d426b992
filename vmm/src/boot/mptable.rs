//! The MultiProcessor table: how the guest finds its CPUs and interrupt lines without
//! ACPI (Intel MultiProcessor Specification 1.4, §4).

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout;

const SPEC_1_4: u8 = 4;
const ISA_BUS: u8 = 0;
/// As KVM's APICs report themselves.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;

const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

const HEADER_BYTES: usize = 44;
const POINTER_BYTES: usize = 16;

/// Writes the table for `vcpus` CPUs whose APIC ids count from 0, and the IRQs that
/// devices use. A kernel programs the pins that it is told of, each write of which is an
/// exit.
pub fn write(memory: &GuestMemoryMmap, vcpus: u8, irqs: &[u8]) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(vcpus, irqs), GuestAddress(layout::MP_TABLE))
}

/// The floating pointer structure and, behind it, the configuration table.
fn table(vcpus: u8, irqs: &[u8]) -> Vec<u8> {
    let (entries, count) = entries(vcpus, irqs);
    let address = layout::MP_TABLE as u32 + POINTER_BYTES as u32;
    let mut bytes = pointer(address);
    bytes.extend(header(&entries, count));
    bytes.extend(entries);
    debug_assert!(bytes.len() as u64 <= layout::MP_TABLE_BYTES);
    bytes
}

/// MP Floating Pointer Structure (§4.1).
fn pointer(table: u32) -> Vec<u8> {
    let mut bytes = b"_MP_".to_vec();
    bytes.extend(table.to_le_bytes());
    // Its length in units of 16 bytes, the revision, the checksum, no feature bytes.
    bytes.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    bytes[10] = checksum(&bytes);
    bytes
}

/// MP Configuration Table Header (§4.2).
fn header(entries: &[u8], count: u16) -> Vec<u8> {
    let length = (HEADER_BYTES + entries.len()) as u16;
    let mut bytes = b"PCMP".to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([SPEC_1_4, 0]);
    bytes.extend(b"CAISSON microVM     ");
    // No OEM table.
    bytes.extend([0; 6]);
    bytes.extend(count.to_le_bytes());
    bytes.extend(layout::LOCAL_APIC.to_le_bytes());
    // No extended table.
    bytes.extend([0; 4]);
    bytes[7] = checksum(&[&bytes, entries].concat());
    bytes
}

/// Base MP Configuration Table Entries (§4.3), and how many they are.
fn entries(vcpus: u8, irqs: &[u8]) -> (Vec<u8>, u16) {
    let mut bytes = Vec::new();
    for apic_id in 0..vcpus {
        let flags = if apic_id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        bytes.extend([PROCESSOR, apic_id, LOCAL_APIC_VERSION, flags]);
        // Signature and features: the kernel asks CPUID.
        bytes.extend([0; 16]);
    }
    bytes.extend([BUS, ISA_BUS]);
    bytes.extend(b"ISA   ");

    let ioapic_id = vcpus;
    bytes.extend([IOAPIC, ioapic_id, IOAPIC_VERSION, ENABLED]);
    bytes.extend(layout::IOAPIC.to_le_bytes());

    // Every IRQ is the pin of that number, edge-triggered as on ISA: what KVM's irqfd
    // delivers.
    for &irq in irqs {
        bytes.extend([IO_INTERRUPT, VECTORED, 0, 0, ISA_BUS, irq, ioapic_id, irq]);
    }
    bytes.extend([LOCAL_INTERRUPT, EXTERNAL, 0, 0, ISA_BUS, 0, 0, 0]);
    bytes.extend([LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let count = u16::from(vcpus) + 2 + irqs.len() as u16 + 2;
    (bytes, count)
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_IRQS: [u8; layout::IOAPIC_PINS as usize] = {
        let mut irqs = [0; layout::IOAPIC_PINS as usize];
        let mut irq = 0;
        while irq < irqs.len() {
            irqs[irq] = irq as u8;
            irq += 1;
        }
        irqs
    };

    #[test]
    fn both_checksums_are_right_and_the_table_fits() {
        for vcpus in 1..=32 {
            let bytes = table(vcpus, &ALL_IRQS);
            assert!(bytes.len() as u64 <= layout::MP_TABLE_BYTES, "{vcpus} vCPUs");
            assert_eq!(checksum(&bytes[..POINTER_BYTES]), 0);
            assert_eq!(checksum(&bytes[POINTER_BYTES..]), 0);
        }
    }

    #[test]
    fn lengths_and_counts_agree_with_the_entries() {
        let bytes = table(4, &[4, 5, 6]);
        let header = &bytes[POINTER_BYTES..POINTER_BYTES + HEADER_BYTES];
        assert_eq!(&header[..4], b"PCMP");
        let length = u16::from_le_bytes([header[4], header[5]]);
        assert_eq!(length as usize, bytes.len() - POINTER_BYTES);

        let mut entries = &bytes[POINTER_BYTES + HEADER_BYTES..];
        let mut count = 0;
        while let Some(&kind) = entries.first() {
            entries = &entries[if kind == PROCESSOR { 20 } else { 8 }..];
            count += 1;
        }
        assert_eq!(u16::from_le_bytes([header[34], header[35]]), count);
    }

    #[test]
    fn one_cpu_boots_and_the_ioapic_has_an_id_of_its_own() {
        let (entries, _) = entries(3, &[4]);
        let cpus: Vec<_> = entries[..60].chunks(20).map(|cpu| (cpu[1], cpu[3])).collect();
        assert_eq!(cpus, [(0, ENABLED | BOOT_PROCESSOR), (1, ENABLED), (2, ENABLED)]);
        assert_eq!(entries[60 + 8..60 + 10], [IOAPIC, 3]);
    }
}
