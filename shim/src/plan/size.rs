//! How large a VM a container gets.

use oci_spec::runtime::Spec;

use super::{
    Annotations, PlanError,
    annotations::{MAX_MEMORY_MIB, MAX_VCPUS},
    resources,
};
use crate::sandbox::VmSize;

/// Memory of a container without a limit, in MiB. Only what is touched is taken.
pub const DEFAULT_MEMORY_MIB: u32 = 1024;

/// What the guest's kernel, page tables and agent need beside the container's limit.
const OVERHEAD_MIB: u64 = 64;

/// Guest memory comes in huge pages.
const UNIT_MIB: u64 = 2;

/// What the host can give.
#[derive(Clone, Copy, Debug)]
pub struct HostSize {
    pub cpus: usize,
}

impl HostSize {
    pub fn of_this_host() -> Self {
        Self { cpus: std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

/// The VM for `spec`: what an annotation says, else what the limits need, else the
/// default.
pub fn vm_size(spec: &Spec, host: HostSize) -> Result<VmSize, PlanError> {
    let annotations = Annotations::parse(spec.annotations())?;
    let limits = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let cpu = limits.and_then(|limits| limits.cpu().as_ref());
    let vcpus = match annotations.vcpus {
        Some(vcpus) => u64::from(vcpus),
        None => match cpu.map(resources::quota_cpus).transpose()?.flatten() {
            Some(cpus) => cpus,
            None => cpu.map(resources::cpuset_size).transpose()?.flatten().unwrap_or(1),
        },
    };
    let most = host.cpus.clamp(1, usize::from(MAX_VCPUS)) as u64;
    let memory_mib = match annotations.memory_mib {
        Some(mib) => mib,
        None => {
            let memory = limits.and_then(|limits| limits.memory().as_ref());
            match memory.and_then(|memory| memory.limit()).filter(|&limit| limit > 0) {
                Some(limit) => memory_for(limit.unsigned_abs()),
                None => DEFAULT_MEMORY_MIB,
            }
        }
    };
    let vcpus = u8::try_from(vcpus.clamp(1, most)).expect("clamped to MAX_VCPUS");
    Ok(VmSize { vcpus, memory_mib, disk_limit: annotations.disk_limit })
}

fn memory_for(limit_bytes: u64) -> u32 {
    let mib = limit_bytes.div_ceil(1 << 20) + OVERHEAD_MIB;
    let mib = mib.next_multiple_of(UNIT_MIB).min(u64::from(MAX_MEMORY_MIB));
    u32::try_from(mib).expect("at most MAX_MEMORY_MIB")
}
