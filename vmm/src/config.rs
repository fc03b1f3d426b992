//! What a parent writes to start a vmm: the file that `--config-fd` names, as JSON.
//!
//! A parent opens everything and passes file descriptors; the vmm opens no path but
//! those it needs for its own jail. [`crate::spec::VmSpec`] is what a valid config
//! becomes.

mod mac_address;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::mac_address::{MacAddress, ParseMacError};

/// The number of an inherited file descriptor.
pub type Fd = i32;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// For messages and thread names; at most 128 bytes.
    pub id: String,
    /// 1..=32.
    pub vcpus: u8,
    /// Guest memory in MiB, 32..=65536.
    pub memory_mib: u32,
    /// `/dev/kvm`, opened read-write.
    pub kvm: Fd,
    /// An uncompressed ELF `vmlinux` or a bzImage.
    pub kernel: Fd,
    /// A cpio archive.
    pub initramfs: Option<Fd>,
    #[serde(default)]
    pub boot_pages: BootPages,
    /// The kernel's command line, without the devices: the vmm appends those.
    pub cmdline: String,
    #[serde(default)]
    pub block: Vec<BlockConfig>,
    /// What all disks together may do.
    #[serde(default)]
    pub disk_limit: RateLimit,
    #[serde(default)]
    pub net: Vec<NetConfig>,
    pub vsock: Option<VsockConfig>,
    #[serde(default)]
    pub fs: Option<FsConfig>,
    #[serde(default)]
    pub rng: bool,
    /// A balloon with free page reporting.
    #[serde(default)]
    pub balloon: bool,
    /// Where the serial console's output goes; nowhere without it.
    pub console: Option<Fd>,
    /// A connected stream socket for [`crate::control`] messages.
    pub control: Option<Fd>,
    pub jail: Option<JailConfig>,
}

/// How kernel and initramfs come into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootPages {
    /// Copied. Quick where guest memory has huge pages; otherwise each page of 4 KiB is a
    /// fault before the first instruction.
    #[default]
    Copied,
    /// Mapped privately: nothing is done for a page before the guest touches it, and what
    /// the guest only reads is one page for all VMs, the host's cache of the file. Whoever
    /// replaces the file must rename a new one over it: VMs see a change in place.
    Mapped,
}

impl BootPages {
    /// The quicker way on this host, by its policy of huge pages.
    pub fn of_host() -> Self {
        let policy = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
        match policy {
            Ok(policy) if policy.contains("[always]") => Self::Copied,
            _ => Self::Mapped,
        }
    }
}

/// One virtio-blk device over one or more raw files, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// The virtio serial number, at most 20 bytes.
    pub serial: String,
    pub readonly: bool,
    /// Each file's size is rounded up to 4096; the rest reads as zeros. Opened read-only
    /// for a read-only device, read-write otherwise; the vmm checks (`F_GETFL`).
    pub files: Vec<Fd>,
}

/// One virtio-net device over a tap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// A tap made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, open read-write.
    pub tap: Fd,
    /// The guest's address; frames from another are dropped.
    pub mac: MacAddress,
    /// 68..=65535.
    pub mtu: u16,
    /// The addresses that the guest may send from; any if there are none.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// What the guest may receive.
    #[serde(default)]
    pub receive_limit: RateLimit,
    /// What it may send.
    #[serde(default)]
    pub transmit_limit: RateLimit,
}

/// How much a device may do: on average, and at once after a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes; 4096 to 2^40 a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Rate>,
    /// Requests or frames; 1 to 10^9 a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Rate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    pub per_second: u64,
    /// 1 to 2^40. What is larger by itself passes, and is made up for afterwards.
    pub burst: u64,
}

/// virtio-vsock, bridged to Unix sockets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's CID, 3 or more.
    pub cid: u32,
    /// A listening Unix stream socket. A connection that sends `CONNECT <port>\n` is
    /// bridged to that port in the guest and answered `OK <host port>\n`; a refused one
    /// is closed.
    pub listener: Fd,
    /// Host ports that the guest may connect to, each once, and the connected Unix
    /// stream socket that it reaches. Every other is reset.
    #[serde(default)]
    pub host_ports: Vec<HostPort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostPort {
    pub port: u32,
    pub socket: Fd,
}

/// virtio-fs, served by another process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FsConfig {
    /// What the guest mounts it by: 1 to 36 bytes, printable ASCII.
    pub tag: String,
    /// A connected Unix socket of type SOCK_SEQPACKET. Each FUSE request is one message to
    /// the server, each reply one from it.
    pub server: Fd,
}

/// What the vmm confines itself to before the first guest instruction. Without it (only
/// for a developer at a terminal) just the seccomp filters are installed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JailConfig {
    /// Not 0.
    pub uid: u32,
    pub gid: u32,
    /// Files that may be open at once (RLIMIT_NOFILE), the inherited ones included.
    pub max_open_files: u64,
    /// The parent has started the vmm as the first process of a pid namespace
    /// (`caisson_jail::pid_namespace::spawn`); the vmm checks it.
    #[serde(default)]
    pub pid_namespace: bool,
}
