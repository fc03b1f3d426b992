//! What a vCPU is before its first instruction: its features, its topology, its
//! registers.

pub mod cpuid;
pub mod registers;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, Msrs, kvm_lapic_state, kvm_msr_entry};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::boot::Entry;

#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("{action} of vCPU {vcpu}")]
    Kvm {
        action: &'static str,
        vcpu: u8,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("ask KVM which CPU features it can give a guest")]
    SupportedCpuid(#[source] kvm_ioctls::Error),
    #[error("the CPU description has {entries} entries, more than KVM takes")]
    TooManyCpuidEntries { entries: usize },
    #[error("KVM refused the model-specific register {index:#x} of vCPU {vcpu}")]
    MsrRefused { vcpu: u8, index: u32 },
}

/// Describes the CPUs of VMs on this host.
pub struct CpuModel {
    supported: Vec<kvm_bindings::kvm_cpuid_entry2>,
    tsc_deadline: bool,
    vcpus: u8,
}

impl CpuModel {
    /// The host's CPU as far as KVM can give it to a guest, `vcpus` times.
    pub fn of_host(kvm: &Kvm, vcpus: u8) -> Result<Self, CpuError> {
        let supported =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(CpuError::SupportedCpuid)?;
        Ok(Self {
            supported: supported.as_slice().to_vec(),
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
            vcpus,
        })
    }

    /// Sets up vCPU number `vcpu`; the first one to enter the kernel at `entry`, the
    /// others to wait until the kernel starts them (INIT, SIPI).
    pub fn configure(&self, fd: &VcpuFd, vcpu: u8, entry: &Entry) -> Result<(), CpuError> {
        self.set_cpuid(fd, vcpu)?;
        set_msrs(fd, vcpu)?;
        set_local_interrupts(fd, vcpu)?;
        if vcpu == 0 {
            registers::set_entry(fd, entry)?;
        }
        Ok(())
    }

    fn set_cpuid(&self, fd: &VcpuFd, vcpu: u8) -> Result<(), CpuError> {
        let entries = cpuid::for_vcpu(&self.supported, vcpu, self.vcpus, self.tsc_deadline);
        let cpuid = kvm_bindings::CpuId::from_entries(&entries)
            .map_err(|_| CpuError::TooManyCpuidEntries { entries: entries.len() })?;
        fd.set_cpuid2(&cpuid).map_err(failed("set the CPUID", vcpu))
    }
}

fn failed(action: &'static str, vcpu: u8) -> impl Fn(kvm_ioctls::Error) -> CpuError {
    move |source| CpuError::Kvm { action, vcpu, source }
}

const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled; memory that none of them describes is write-back.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// The registers whose reset value is not what firmware would leave. KVM has zeroed the
/// others.
fn set_msrs(fd: &VcpuFd, vcpu: u8) -> Result<(), CpuError> {
    let registers = [(IA32_MISC_ENABLE, FAST_STRINGS), (IA32_MTRR_DEF_TYPE, MTRR_WRITE_BACK)];
    let entries = registers.map(|(index, data)| kvm_msr_entry { index, data, reserved: 0 });
    let msrs = Msrs::from_entries(&entries).expect("two entries are below KVM's limit");
    let set = fd.set_msrs(&msrs).map_err(failed("set the model-specific registers", vcpu))?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => Err(CpuError::MsrRefused { vcpu, index: refused.index }),
    }
}

/// Offsets in the local APIC's registers (Intel SDM 3A, table 11-1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVER_NMI: u32 = 4 << 8;
const DELIVER_EXTERNAL: u32 = 7 << 8;

/// Wires LINT0 to the legacy interrupt controller and LINT1 to NMI, as the MP table says.
fn set_local_interrupts(fd: &VcpuFd, vcpu: u8) -> Result<(), CpuError> {
    let mut apic = fd.get_lapic().map_err(failed("read the local APIC", vcpu))?;
    put_register(&mut apic, LVT_LINT0, DELIVER_EXTERNAL);
    put_register(&mut apic, LVT_LINT1, DELIVER_NMI);
    fd.set_lapic(&apic).map_err(failed("set the local APIC", vcpu))
}

fn put_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (to, byte) in apic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}
