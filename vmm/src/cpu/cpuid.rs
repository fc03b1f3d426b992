//! What CPUID tells the guest (Intel SDM 2A, AMD APM 3): the host's CPU as KVM supports
//! it, with the guest's own topology: one socket, one thread a core, APIC ids from 0.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The entries for vCPU number `vcpu` of `vcpus`.
pub fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    vcpu: u8,
    vcpus: u8,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> =
        supported.iter().copied().filter(|entry| !is_topology(entry.function)).collect();
    for entry in &mut entries {
        adjust(entry, vcpu, vcpus, tsc_deadline);
    }
    let highest = supported.iter().find(|entry| entry.function == 0).map_or(0, |leaf| leaf.eax);
    for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        if highest >= leaf {
            entries.extend(topology(leaf, vcpu, vcpus));
        }
    }
    entries
}

const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;

fn is_topology(leaf: u32) -> bool {
    leaf == LEAF_TOPOLOGY || leaf == LEAF_TOPOLOGY_V2
}

const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;
const MULTI_THREADING: u32 = 1 << 28;
const CLFLUSH_64_BYTES: u32 = 8 << 8;

fn adjust(entry: &mut kvm_cpuid_entry2, vcpu: u8, vcpus: u8, tsc_deadline: bool) {
    let (id, last) = (u32::from(vcpu), u32::from(vcpus) - 1);
    match entry.function {
        // Features: EBX is APIC id, number of APIC ids, CLFLUSH size, brand.
        0x1 => {
            entry.ebx = id << 24 | (last + 1) << 16 | CLFLUSH_64_BYTES | entry.ebx & 0xff;
            entry.ecx |= HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, MULTI_THREADING, last > 0);
        }
        // Intel's caches: EAX 31:26 is cores in the package, 25:14 who shares this one.
        0x4 => {
            let level = entry.eax >> 5 & 7;
            entry.eax = entry.eax & 0x3fff | last << 26 | sharers(level, last) << 14;
        }
        // Performance counters: none, so that the guest does not probe them.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // AMD's sizes: ECX 7:0 is cores, 15:12 the bits of an APIC id that number them.
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | id_bits(vcpus) << 12 | last,
        // AMD's caches, shared as Intel's.
        0x8000_001d => {
            let level = entry.eax >> 5 & 7;
            entry.eax = entry.eax & 0x3fff | sharers(level, last) << 14;
        }
        // AMD's APIC id, core id with one thread each, node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id, 0),
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

/// How many others share a cache of this level: all the last level, nobody the first two.
fn sharers(level: u32, last: u32) -> u32 {
    if level >= 3 { last } else { 0 }
}

/// Bits that number `vcpus` APIC ids.
fn id_bits(vcpus: u8) -> u32 {
    vcpus.next_power_of_two().trailing_zeros()
}

/// Extended topology: level 0 is threads of a core, level 1 cores of the package.
fn topology(leaf: u32, vcpu: u8, vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let level = |index: u32, id_shift: u32, count: u32, kind: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: id_shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: u32::from(vcpu),
        ..Default::default()
    };
    [level(0, 0, 1, THREAD), level(1, id_bits(vcpus), u32::from(vcpus), CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    fn supported() -> Vec<kvm_cpuid_entry2> {
        let vendor = kvm_cpuid_entry2 { eax: 0x1f, ..leaf(0, 0) };
        let l2 = kvm_cpuid_entry2 { eax: 2 << 5 | 0xffff_c000, ..leaf(4, 2) };
        let l3 = kvm_cpuid_entry2 { eax: 3 << 5 | 0xffff_c000, ..leaf(4, 3) };
        let counters = kvm_cpuid_entry2 { eax: 0x0730_0404, ..leaf(0xa, 0) };
        let host_topology = kvm_cpuid_entry2 { edx: 77, ..leaf(0xb, 0) };
        let sizes = kvm_cpuid_entry2 { ecx: 0xffff, ..leaf(0x8000_0008, 0) };
        vec![vendor, leaf(1, 0), l2, l3, counters, host_topology, sizes, leaf(0x8000_001e, 0)]
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = entries.iter().filter(|e| e.function == function && e.index == index);
        let entry = *found.next().expect("the leaf is there");
        assert!(found.next().is_none(), "leaf {function:#x}.{index} is there once");
        entry
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_everywhere() {
        for vcpu in 0..5 {
            let entries = for_vcpu(&supported(), vcpu, 5, true);
            let id = u32::from(vcpu);
            assert_eq!(find(&entries, 1, 0).ebx >> 24, id);
            assert_eq!(find(&entries, 0xb, 0).edx, id);
            assert_eq!(find(&entries, 0x1f, 1).edx, id);
            assert_eq!(find(&entries, 0x8000_001e, 0).eax, id);
        }
    }

    #[test]
    fn the_topology_is_cores_of_one_package() {
        let entries = for_vcpu(&supported(), 0, 5, true);
        assert_eq!(find(&entries, 1, 0).ebx >> 16 & 0xff, 5);
        let cores = find(&entries, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx), (3, 5, 0x201));
        assert_eq!(find(&entries, 0x8000_0008, 0).ecx, 3 << 12 | 0xf00 | 4);
        assert_eq!(find(&entries, 4, 2).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&entries, 4, 3).eax >> 14 & 0xfff, 4);
    }

    #[test]
    fn features_of_a_vm_are_set_and_counters_hidden() {
        let entries = for_vcpu(&supported(), 0, 1, true);
        let features = find(&entries, 1, 0);
        assert_eq!(features.ecx, HYPERVISOR | TSC_DEADLINE);
        assert_eq!(features.edx & MULTI_THREADING, 0);
        assert_eq!(find(&entries, 0xa, 0).eax, 0);
        assert_eq!(find(&for_vcpu(&supported(), 0, 1, false), 1, 0).ecx, HYPERVISOR);
    }
}
