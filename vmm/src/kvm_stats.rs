//! What KVM itself counts of a vCPU: the exits that it handles without the vmm (KVM API
//! §4.133, KVM_GET_STATS_FD, since Linux 5.14).

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd},
        unix::fs::FileExt,
    },
};

use kvm_ioctls::VcpuFd;

/// The counters that a report has, with `kvm_` before their names.
const REPORTED: [&str; 7] =
    ["exits", "halt_exits", "insn_emulation", "io_exits", "irq_exits", "mmio_exits", "pf_taken"];

/// `_IO(KVMIO, 0xce)`
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

const HEADER_BYTES: usize = 24;
/// Of a descriptor, before its name.
const DESCRIPTOR_BYTES: usize = 16;
/// More than any kernel has, of all descriptors together.
const MAX_BYTES: usize = 64 << 10;

/// The counters of one vCPU.
#[derive(Debug)]
pub struct VcpuStats(File);

impl VcpuStats {
    /// `None` if the host's kernel is too old.
    pub fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the call takes no argument; a result that is not negative is a new file
        // descriptor that nothing else owns.
        unsafe {
            let fd = libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0);
            (fd >= 0).then(|| Self(File::from_raw_fd(fd)))
        }
    }

    /// Adds the counters to `sums`.
    pub fn add_to(&self, sums: &mut BTreeMap<String, u64>) -> io::Result<()> {
        let mut header = [0; HEADER_BYTES];
        self.0.read_exact_at(&mut header, 0)?;
        // Flags, and the id, are of no use here.
        let [_, name_bytes, count, _, descriptors, data] =
            std::array::from_fn(|index| number(&header, index * 4) as usize);
        let stride = DESCRIPTOR_BYTES + name_bytes;
        let bytes = count.checked_mul(stride).filter(|&bytes| bytes <= MAX_BYTES);
        let mut block = vec![0; bytes.ok_or(io::ErrorKind::InvalidData)?];
        self.0.read_exact_at(&mut block, descriptors as u64)?;
        for descriptor in block.chunks_exact(stride) {
            let name = &descriptor[DESCRIPTOR_BYTES..];
            let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
            if let Some(name) = REPORTED.iter().find(|wanted| wanted.as_bytes() == name) {
                let mut value = [0; 8];
                let offset = data as u64 + u64::from(number(descriptor, 8));
                self.0.read_exact_at(&mut value, offset)?;
                *sums.entry(format!("kvm_{name}")).or_default() += u64::from_ne_bytes(value);
            }
        }
        Ok(())
    }
}

/// The 32-bit number at `offset`, which the caller knows to be there.
fn number(bytes: &[u8], offset: usize) -> u32 {
    let bytes = bytes[offset..offset + 4].try_into().expect("a range of 4 is 4 bytes");
    u32::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_a_vcpu_can_be_read() {
        let Ok(kvm) = kvm_ioctls::Kvm::new() else {
            eprintln!("SKIP: /dev/kvm cannot be opened");
            return;
        };
        let vm = kvm.create_vm().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let Some(stats) = VcpuStats::open(&vcpu) else {
            eprintln!("SKIP: this kernel's KVM has no statistics files");
            return;
        };
        let mut sums = BTreeMap::from([("kvm_exits".to_owned(), 7)]);
        stats.add_to(&mut sums).unwrap();
        assert_eq!(sums["kvm_exits"], 7, "a vCPU that never ran has no exits: {sums:?}");
        assert!(sums.contains_key("kvm_mmio_exits"), "{sums:?}");
    }
}
