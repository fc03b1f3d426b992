//! A container as the agent builds it: the OCI bundle, already validated and resolved
//! against this VM by the shim. The agent decides nothing that stands here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::network::InterfacePlan;

/// The whole plan of one container. Sent once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 128 bytes; names the cgroup and directories.
    pub id: String,
    pub rootfs: RootfsPlan,
    pub process: ProcessPlan,
    pub stdio: StdioPorts,
    pub namespaces: Namespaces,
    /// Interfaces of the VM that move into the container's own network namespace, beside its
    /// `lo`. They come back to the VM with the namespace's end.
    pub interfaces: Vec<InterfacePlan>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// In order, after the root filesystem.
    pub mounts: Vec<MountPlan>,
    /// Small files that the engine generated (`/etc/hosts`), bound over their paths.
    pub files: Vec<FilePlan>,
    /// Device nodes beside the runtime-spec's default ones.
    pub devices: Vec<DevicePlan>,
    /// Replaced by an empty read-only file or directory (runtime-spec `maskedPaths`).
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    /// `net.core.somaxconn` → value, in the container's namespaces.
    pub sysctls: BTreeMap<String, String>,
    pub resources: Resources,
}

/// Where the root filesystem comes from.
///
/// The VM's block devices carry their role as virtio serial number: `layers` (read-only)
/// and `scratch` (writable). A device may hold several images one after the other; the
/// agent cuts it into partitions with `BLKPG_ADD_PARTITION`, so that any number of layers
/// needs one device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// EROFS images, bottom layer first.
    pub layers: Vec<Extent>,
    /// An ext4 filesystem for the overlay's upper and work directories. `None`: a tmpfs.
    pub writable: Option<Extent>,
    /// Mount the root read-only (runtime-spec `root.readonly`).
    pub readonly: bool,
}

/// A stretch of a block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The virtio-blk serial number: `layers` or `scratch`.
    pub device: String,
    /// Bytes from the start of the device, a multiple of 4096.
    pub offset: u64,
    /// Bytes, a multiple of 4096.
    pub length: u64,
}

/// One process: the container's first, or an exec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessPlan {
    /// At least one.
    pub args: Vec<String>,
    /// `NAME=value` each; what has no `=` is left out.
    pub env: Vec<String>,
    /// Absolute; made if it does not exist, by a container's first process.
    pub cwd: String,
    pub user: UserPlan,
    /// A pty as the three standard streams; its bytes go over the stdin and stdout ports.
    pub terminal: Option<TerminalSize>,
    pub capabilities: Capabilities,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    /// Seccomp programs in the order of their installation; each a list of
    /// `struct sock_filter` as (code, jt, jf, k).
    pub seccomp: Vec<SeccompProgram>,
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// Who runs the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserPlan {
    /// As the runtime-spec has it: numbers only.
    Ids { uid: u32, gid: u32, additional_gids: Vec<u32>, umask: Option<u32> },
    /// As an image or `--user` names it, `user[:group]` with names or numbers, looked up
    /// in the container's `/etc/passwd` and `/etc/group` as Docker does.
    Name { user: String, additional_groups: Vec<String> },
}

/// Capability sets as bit masks (bit n is capability number n, `linux/capability.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// `setrlimit(2)`; `resource` is the kernel's number (`RLIMIT_NOFILE` is 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeccompProgram {
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    pub instructions: Vec<(u16, u8, u8, u32)>,
}

/// Vsock ports in the guest, one for each stream that is wanted. `None` is `/dev/null`.
/// With a terminal `stderr` is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdioPorts {
    pub stdin: Option<u32>,
    pub stdout: Option<u32>,
    pub stderr: Option<u32>,
}

/// Which namespaces are the container's own. What is not is the VM's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// The container whose pid namespace to join; `Own` makes a new one.
    pub pid: PidNamespace,
    pub ipc: bool,
    pub uts: bool,
    pub cgroup: bool,
    pub network: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidNamespace {
    Own,
    Of { container: String },
}

/// A mount of a kernel filesystem or a tmpfs, or a bind within the container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MountPlan {
    /// `proc`, `sysfs`, `tmpfs`, `devpts`, `mqueue`, `cgroup2`, `bind`, `virtiofs`.
    pub fstype: String,
    /// Of a `virtiofs`: which of the host's directories and files, by its index in decimal.
    pub source: String,
    /// Absolute, resolved beneath the root; made if it does not exist.
    pub destination: String,
    /// `MS_*` flags to set.
    pub flags: u64,
    /// The filesystem's own options, comma-separated. Of a `virtiofs`: nothing or [`COPY_UP`].
    pub data: String,
}

/// The option of a `virtiofs` whose directory, if it is empty, gets what the image has at the
/// destination.
pub const COPY_UP: &str = "copyup";

/// A file with this content at `path`, not writable past its own tmpfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlan {
    pub path: String,
    pub mode: u32,
    pub content: String,
    pub readonly: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    Char,
    Block,
    Fifo,
}

/// cgroup v2 limits; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub memory_bytes: Option<u64>,
    /// `memory.low`.
    pub memory_reservation_bytes: Option<u64>,
    /// `memory.swap.max`, swap alone.
    pub swap_bytes: Option<u64>,
    /// `cpu.max`: quota and period in microseconds.
    pub cpu_quota_usec: Option<u64>,
    pub cpu_period_usec: Option<u64>,
    /// `cpu.weight`, 1..=10000.
    pub cpu_weight: Option<u64>,
    /// `cpuset.cpus` and `cpuset.mems`.
    pub cpuset_cpus: Option<String>,
    pub cpuset_mems: Option<String>,
    pub pids: Option<u64>,
    /// Further `file → value` pairs (runtime-spec `unified`).
    pub unified: BTreeMap<String, String>,
    /// Device access beyond the default devices; empty allows only those.
    pub devices: Vec<DeviceRule>,
}

/// One line of the device list (runtime-spec `linux.resources.devices`), later ones win.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    pub allow: bool,
    /// `None` is every kind.
    pub kind: Option<DeviceKind>,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}
