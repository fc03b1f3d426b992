//! Limits: the runtime-spec's names, which are cgroup v1's, into cgroup v2.

use std::collections::BTreeMap;

use caisson_agent_protocol::plan::Resources;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{PlanError, devices, invalid, unsupported};
use crate::cgroup::CpuLimits;

const DEFAULT_PERIOD_USEC: u64 = 100_000;

/// The limits of a new container in a VM of this many CPUs.
pub(super) fn create(limits: &LinuxResources, vcpus: u8) -> Result<Resources, PlanError> {
    refuse_what_a_vm_lacks(limits)?;
    let mut resources = Resources {
        pids: limits
            .pids()
            .as_ref()
            .map(|pids| pids.limit())
            .filter(|&limit| limit > 0)
            .map(i64::unsigned_abs),
        unified: unified(limits)?,
        devices: devices::rules(limits.devices())?,
        ..Default::default()
    };
    if let Some(cpu) = limits.cpu() {
        apply_cpu(cpu, vcpus, &mut resources)?;
    }
    if let Some(memory) = limits.memory() {
        apply_memory(memory, None, &mut resources)?;
    }
    Ok(resources)
}

/// New limits for a running container; `json` is the runtime-spec's `LinuxResources`. A
/// limit of -1 is lifted, one that is absent stays.
pub fn update(json: &[u8], vcpus: u8) -> Result<Resources, PlanError> {
    let limits = parse(json)?;
    let mut resources = create(&limits, vcpus)?;
    // What the guest's kernel reads as "max".
    let lifted = Some(u64::MAX);
    if limits.pids().as_ref().is_some_and(|pids| pids.limit() < 0) {
        resources.pids = lifted;
    }
    if let Some(memory) = limits.memory() {
        apply_memory(memory, lifted, &mut resources)?;
    }
    // The device list of a running container does not change.
    resources.devices.clear();
    Ok(resources)
}

/// The CPU limits of an update that has been checked, if it has any.
pub fn cpu_limits(json: &[u8]) -> Result<Option<CpuLimits>, PlanError> {
    let limits: LinuxResources = parse(json)?;
    Ok(limits.cpu().as_ref().map(CpuLimits::of))
}

fn parse(json: &[u8]) -> Result<LinuxResources, PlanError> {
    serde_json::from_slice(json)
        .map_err(|source| PlanError::Parse { what: "the update's resources".to_owned(), source })
}

fn apply_cpu(cpu: &LinuxCpu, vcpus: u8, resources: &mut Resources) -> Result<(), PlanError> {
    if cpu.realtime_runtime().is_some_and(|runtime| runtime != 0) {
        let problem = "realtime scheduling has no cgroup v2 controller";
        return Err(unsupported("linux.resources.cpu.realtimeRuntime", problem));
    }
    resources.cpu_weight = cpu.shares().filter(|&shares| shares > 0).map(weight_of_shares);
    if let Some((quota, period)) = quota_and_period(cpu)? {
        resources.cpu_quota_usec = quota;
        resources.cpu_period_usec = Some(period);
    }
    for (file, value) in [
        ("cpu.max.burst", cpu.burst().filter(|&burst| burst > 0).map(|burst| burst.to_string())),
        ("cpu.idle", cpu.idle().filter(|&idle| idle != 0).map(|idle| idle.to_string())),
    ] {
        if let Some(value) = value {
            resources.unified.insert(file.to_owned(), value);
        }
    }
    // The set names the host's CPUs. Within the VM's numbers it can be kept; otherwise the
    // VM's size (see `cpuset_size`) is what is left of its meaning.
    if let Some(set) = cpu.cpus().as_ref().filter(|set| !set.trim().is_empty()) {
        let ranges = cpu_ranges("linux.resources.cpu.cpus", set)?;
        if ranges.iter().all(|range| range.1 < u32::from(vcpus)) {
            resources.cpuset_cpus = Some(set.trim().to_owned());
        }
    }
    if let Some(set) = cpu.mems().as_ref().filter(|set| !set.trim().is_empty()) {
        let ranges = cpu_ranges("linux.resources.cpu.mems", set)?;
        if ranges.iter().all(|range| range.1 == 0) {
            resources.cpuset_mems = Some(set.trim().to_owned());
        }
    }
    Ok(())
}

/// `unlimited` is what a limit of -1 becomes.
fn apply_memory(
    memory: &LinuxMemory,
    unlimited: Option<u64>,
    resources: &mut Resources,
) -> Result<(), PlanError> {
    // 0 is how engines write "not set".
    let bytes = |limit: Option<i64>| match limit {
        None | Some(0) => None,
        Some(limit) if limit < 0 => unlimited,
        Some(limit) => Some(limit.unsigned_abs()),
    };
    resources.memory_bytes = bytes(memory.limit());
    resources.memory_reservation_bytes = bytes(memory.reservation());
    resources.swap_bytes = match (memory.swap(), memory.limit()) {
        (None | Some(0), _) => None,
        (Some(total), _) if total < 0 => unlimited,
        // v1 counts memory and swap together, v2 swap alone.
        (Some(total), Some(limit)) if limit > 0 && total >= limit => {
            Some((total - limit).unsigned_abs())
        }
        (Some(total), limit) => {
            let problem =
                format!("{total} is no total of a memory limit of {} and swap", limit.unwrap_or(0));
            return Err(invalid("linux.resources.memory.swap", problem));
        }
    };
    if memory.disable_oom_killer().unwrap_or(false) {
        log::warn!("disableOOMKiller has no counterpart in cgroup v2 and is ignored");
    }
    Ok(())
}

/// v1's shares, 2 to 262144, onto v2's weight, 1 to 10000, as systemd and runc do.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The quota (`None` is none) and period in microseconds, if either is given.
fn quota_and_period(cpu: &LinuxCpu) -> Result<Option<(Option<u64>, u64)>, PlanError> {
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    if quota.is_none() && period.is_none() {
        return Ok(None);
    }
    let period = period.unwrap_or(DEFAULT_PERIOD_USEC);
    if !(1000..=1_000_000).contains(&period) {
        let problem = format!("{period} is not from 1000 to 1000000 microseconds");
        return Err(invalid("linux.resources.cpu.period", problem));
    }
    match quota {
        None => Ok(Some((None, period))),
        Some(quota) if quota < 0 => Ok(Some((None, period))),
        Some(quota) if quota < 1000 => {
            let problem = format!("{quota} is below 1000 microseconds");
            Err(invalid("linux.resources.cpu.quota", problem))
        }
        Some(quota) => Ok(Some((Some(quota.unsigned_abs()), period))),
    }
}

/// How many CPUs the quota can keep busy.
pub(super) fn quota_cpus(cpu: &LinuxCpu) -> Result<Option<u64>, PlanError> {
    let limit = quota_and_period(cpu)?;
    Ok(limit.and_then(|(quota, period)| Some(quota?.div_ceil(period))))
}

/// How many CPUs the set has.
pub(super) fn cpuset_size(cpu: &LinuxCpu) -> Result<Option<u64>, PlanError> {
    let Some(set) = cpu.cpus().as_ref().filter(|set| !set.trim().is_empty()) else {
        return Ok(None);
    };
    let ranges = cpu_ranges("linux.resources.cpu.cpus", set)?;
    Ok(Some(ranges.iter().map(|range| u64::from(range.1 - range.0) + 1).sum()))
}

/// `0-2,5` as inclusive ranges.
fn cpu_ranges(field: &str, set: &str) -> Result<Vec<(u32, u32)>, PlanError> {
    let bad = || invalid(field, format!("{set:?} is no list like 0-2,5"));
    set.trim()
        .split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let first = first.trim().parse().map_err(|_| bad())?;
            let last = last.trim().parse().map_err(|_| bad())?;
            // More CPUs than any kernel has is a mistake, and its count a burden.
            if first <= last && last < 8192 { Ok((first, last)) } else { Err(bad()) }
        })
        .collect()
}

fn unified(limits: &LinuxResources) -> Result<BTreeMap<String, String>, PlanError> {
    let mut unified = BTreeMap::new();
    for (file, value) in limits.unified().iter().flatten() {
        let field = format!("linux.resources.unified {file:?}");
        let good =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._".contains(&byte);
        if !file.bytes().all(good) || !file.contains('.') || file.starts_with('.') {
            return Err(invalid(field, "is no name of a cgroup v2 file"));
        }
        // Those move processes and controllers; the agent does that.
        if file.starts_with("cgroup.") {
            return Err(invalid(field, "is not a limit"));
        }
        if value.contains('\0') {
            return Err(invalid(field, "its value holds a NUL"));
        }
        unified.insert(file.clone(), value.clone());
    }
    Ok(unified)
}

fn refuse_what_a_vm_lacks(limits: &LinuxResources) -> Result<(), PlanError> {
    // The other block I/O limits are kept on the host, by the VM's cgroup.
    let block = limits.block_io().as_ref();
    let weighted =
        block.is_some_and(|block| block.weight_device().iter().flatten().next().is_some());
    // Kubernetes writes limits of 0 for page sizes that a pod does not use.
    let huge = limits.hugepage_limits().iter().flatten().any(|limit| limit.limit() > 0);
    let class = limits.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|id| id != 0)
            || network.priorities().iter().flatten().next().is_some()
    });
    let rdma = limits.rdma().iter().flatten().next().is_some();
    let refusals = [
        (weighted, "blockIO.weightDevice", "weights by device are not supported"),
        (huge, "hugepageLimits", "huge pages are not supported"),
        (class, "network", "network classes and priorities have no cgroup v2 controller"),
        (rdma, "rdma", "a microVM has no RDMA devices"),
    ];
    match refusals.into_iter().find(|(present, ..)| *present) {
        Some((_, field, problem)) => Err(unsupported(format!("linux.resources.{field}"), problem)),
        None => Ok(()),
    }
}
