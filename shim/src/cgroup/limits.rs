//! What a VM may take of the host, and the files that say so.

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxResources, LinuxThrottleDevice};

use super::hierarchy::{Controller, Version};
use crate::sandbox::VmSize;

/// Beside guest memory: the vmm's own (some MiB, with the program), what the kernel keeps for
/// its sockets and threads, and the page cache through which its disks are read and written,
/// which the kernel shrinks before it runs out.
const OVERHEAD_BYTES: u64 = 64 << 20;

/// Of a file that the guest knows: the kernel's file, name and inode, and the file server's
/// own note.
pub(super) const OPEN_FILE_BYTES: u64 = 2 << 10;

/// Page tables, one of the process and one of KVM: each takes 8 bytes for 4 KiB of guest
/// memory where that is not in huge pages, that is 1/512; the same again for KVM's own lists.
const PAGE_TABLE_SHARE: u64 = 128;

/// Threads beside the vCPUs: control, block, io, KVM's own worker, four of the file server,
/// and some to spare.
const OTHER_THREADS: u64 = 16;

const DEFAULT_PERIOD_USEC: u64 = 100_000;

/// How much a setting matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The user's spec asks for this.
    Asked(&'static str),
    /// Where the file is there.
    IfThere,
}

/// One value for one file of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) controller: Controller,
    pub(super) file: &'static str,
    pub(super) value: String,
    pub(super) need: Need,
}

fn setting(controller: Controller, file: &'static str, value: String, need: Need) -> Setting {
    Setting { controller, file, value, need }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) memory_bytes: u64,
    pub(super) pids: u64,
    pub(super) cpu: CpuLimits,
    io: IoLimits,
}

impl Limits {
    pub(super) fn of(resources: Option<&LinuxResources>, size: &VmSize) -> Self {
        let guest_bytes = u64::from(size.memory_mib) << 20;
        let cpu = resources.and_then(|resources| resources.cpu().as_ref());
        let io = resources.and_then(|resources| resources.block_io().as_ref());
        Self {
            memory_bytes: guest_bytes + OVERHEAD_BYTES + guest_bytes / PAGE_TABLE_SHARE,
            pids: u64::from(size.vcpus) + OTHER_THREADS,
            cpu: cpu.map(CpuLimits::of).unwrap_or_default(),
            io: io.map(IoLimits::of).unwrap_or_default(),
        }
    }

    /// What the user's spec wants of a controller, if anything. Not memory and processes:
    /// the size of the VM and the guest's kernel bound those of a container.
    pub(super) fn asked(&self, controller: Controller) -> Option<&'static str> {
        match controller {
            Controller::Cpu => (self.cpu != CpuLimits::default()).then_some(CPU),
            Controller::Io => (self.io != IoLimits::default()).then_some(BLOCK_IO),
            Controller::Memory | Controller::Pids => None,
        }
    }

    pub(super) fn memory(&self, version: Version) -> Vec<Setting> {
        let files = match version {
            Version::Two => [("memory.max", self.memory_bytes), ("memory.swap.max", 0)],
            // The second is of memory and swap together.
            Version::One => [
                ("memory.limit_in_bytes", self.memory_bytes),
                ("memory.memsw.limit_in_bytes", self.memory_bytes),
            ],
        };
        files
            .map(|(file, bytes)| {
                setting(Controller::Memory, file, bytes.to_string(), Need::IfThere)
            })
            .into()
    }

    pub(super) fn pids(&self) -> Vec<Setting> {
        vec![setting(Controller::Pids, "pids.max", self.pids.to_string(), Need::IfThere)]
    }

    pub(super) fn io(&self, version: Version) -> Vec<Setting> {
        self.io.settings(version)
    }
}

const CPU: &str = "linux.resources.cpu";
const BLOCK_IO: &str = "linux.resources.blockIO";

/// CPU time of a VM; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuLimits {
    /// Microseconds, or none at all, in each period of microseconds.
    quota: Option<(Option<u64>, u64)>,
    /// Version 1's measure, 2 to 262144.
    shares: Option<u64>,
}

impl CpuLimits {
    /// Of the runtime-spec's limits, which have been checked.
    pub fn of(cpu: &LinuxCpu) -> Self {
        let period = cpu.period().filter(|&period| period > 0).unwrap_or(DEFAULT_PERIOD_USEC);
        let quota = cpu.quota().filter(|&quota| quota != 0);
        Self {
            quota: quota.map(|quota| (u64::try_from(quota).ok(), period)),
            shares: cpu.shares().filter(|&shares| shares > 0),
        }
    }

    pub(super) fn settings(&self, version: Version) -> Vec<Setting> {
        let mut settings = Vec::new();
        let mut set = |file, value| {
            settings.push(setting(Controller::Cpu, file, value, Need::Asked(CPU)));
        };
        match (version, self.quota) {
            (_, None) => {}
            (Version::Two, Some((quota, period))) => {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                set("cpu.max", format!("{quota} {period}"));
            }
            (Version::One, Some((quota, period))) => {
                set("cpu.cfs_period_us", period.to_string());
                set("cpu.cfs_quota_us", quota.map_or("-1".to_owned(), |quota| quota.to_string()));
            }
        }
        match (version, self.shares.map(|shares| shares.clamp(2, 262_144))) {
            (_, None) => {}
            // As systemd and runc map them.
            (Version::Two, Some(shares)) => {
                set("cpu.weight", (1 + (shares - 2) * 9999 / 262_142).to_string());
            }
            (Version::One, Some(shares)) => set("cpu.shares", shares.to_string()),
        }
        settings
    }
}

/// Limits on the host's block devices, on which the VM's disks lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct IoLimits {
    /// 10 to 1000.
    weight: Option<u64>,
    throttles: Vec<Throttle>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Throttle {
    kind: Kind,
    /// `major:minor`
    device: String,
    rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ReadBytes,
    WriteBytes,
    ReadOperations,
    WriteOperations,
}

impl IoLimits {
    fn of(io: &LinuxBlockIo) -> Self {
        let throttles = |kind, devices: &Option<Vec<LinuxThrottleDevice>>| {
            let throttle = move |device: &LinuxThrottleDevice| Throttle {
                kind,
                device: format!("{}:{}", device.major(), device.minor()),
                rate: device.rate(),
            };
            devices.iter().flatten().map(throttle).collect::<Vec<_>>()
        };
        Self {
            weight: io.weight().filter(|&weight| weight > 0).map(|w| u64::from(w).clamp(10, 1000)),
            throttles: [
                throttles(Kind::ReadBytes, io.throttle_read_bps_device()),
                throttles(Kind::WriteBytes, io.throttle_write_bps_device()),
                throttles(Kind::ReadOperations, io.throttle_read_iops_device()),
                throttles(Kind::WriteOperations, io.throttle_write_iops_device()),
            ]
            .concat(),
        }
    }

    fn settings(&self, version: Version) -> Vec<Setting> {
        let mut settings = Vec::new();
        let mut set = |file, value| {
            settings.push(setting(Controller::Io, file, value, Need::Asked(BLOCK_IO)));
        };
        if let Some(weight) = self.weight {
            match version {
                // 10 to 1000 onto 1 to 10000.
                Version::Two => set("io.weight", (1 + (weight - 10) * 9999 / 990).to_string()),
                Version::One => set("blkio.weight", weight.to_string()),
            }
        }
        for Throttle { kind, device, rate } in &self.throttles {
            match version {
                Version::Two => set("io.max", format!("{device} {}={rate}", kind.key())),
                Version::One => set(kind.file(), format!("{device} {rate}")),
            }
        }
        settings
    }
}

impl Kind {
    fn key(self) -> &'static str {
        match self {
            Self::ReadBytes => "rbps",
            Self::WriteBytes => "wbps",
            Self::ReadOperations => "riops",
            Self::WriteOperations => "wiops",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Self::ReadBytes => "blkio.throttle.read_bps_device",
            Self::WriteBytes => "blkio.throttle.write_bps_device",
            Self::ReadOperations => "blkio.throttle.read_iops_device",
            Self::WriteOperations => "blkio.throttle.write_iops_device",
        }
    }
}
