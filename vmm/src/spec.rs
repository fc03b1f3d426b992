//! A VM that can be built: [`VmConfig`] with every value in range and every file
//! descriptor checked and owned.

mod adopt;
pub mod limit;
pub mod net;

use std::{
    collections::BTreeSet,
    fs::File,
    os::{
        fd::OwnedFd,
        unix::net::{UnixListener, UnixStream},
    },
};

pub use adopt::{FdError, Files};
use caisson_jail::{Jail, pid_namespace};
use limit::LimitError;
use net::NetError;
pub use net::NetSpec;

use crate::{
    boot::{
        command_line::{self, CommandLineError},
        layout::{self, VirtioSlot},
    },
    config::{BlockConfig, BootPages, FsConfig, JailConfig, RateLimit, VmConfig, VsockConfig},
};

/// One virtio-blk device.
#[derive(Debug)]
pub struct BlockSpec {
    /// At most 20 bytes, ASCII.
    pub serial: String,
    pub readonly: bool,
    /// At least one; regular files, open for reading, and for writing unless `readonly`.
    pub files: Vec<File>,
}

/// virtio-vsock, bridged to Unix sockets.
#[derive(Debug)]
pub struct VsockSpec {
    /// The guest's CID, 3 or more.
    pub cid: u32,
    /// Where the host connects to reach a port of the guest.
    pub listener: UnixListener,
    /// Host ports that the guest may connect to, each number once.
    pub host_ports: Vec<HostPortSpec>,
}

/// A port of the host and the stream behind it.
#[derive(Debug)]
pub struct HostPortSpec {
    pub port: u32,
    pub socket: UnixStream,
}

/// The longest tag of a virtio-fs device (virtio 1.2 §5.11.4).
pub const FS_TAG_BYTES: usize = 36;

/// virtio-fs and the socket of its server.
#[derive(Debug)]
pub struct FsSpec {
    /// 1 to [`FS_TAG_BYTES`] bytes, printable ASCII.
    pub tag: String,
    /// Connected, and keeps messages apart.
    pub server: OwnedFd,
}

/// Everything a VM is built from.
#[derive(Debug)]
pub struct VmSpec {
    pub id: String,
    /// 1..=32
    pub vcpus: u8,
    /// 32 MiB to 64 GiB.
    pub memory_bytes: u64,
    pub kvm: OwnedFd,
    pub kernel: File,
    pub initramfs: Option<File>,
    pub boot_pages: BootPages,
    /// Complete, with its devices and a NUL.
    pub command_line: Vec<u8>,
    /// One for each virtio device: the disks, then networks, vsock, fs, rng and balloon.
    pub slots: Vec<VirtioSlot>,
    pub block: Vec<BlockSpec>,
    /// Of all disks together.
    pub disk_limit: RateLimit,
    pub net: Vec<NetSpec>,
    pub vsock: Option<VsockSpec>,
    pub fs: Option<FsSpec>,
    pub rng: bool,
    pub balloon: bool,
    pub console: Option<File>,
}

/// Why a config makes no VM.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("the id has {bytes} bytes or a control character; it needs 1 to 128 printable ones")]
    Id { bytes: usize },
    #[error("{0} vCPUs; a VM has 1 to 32")]
    Vcpus(u8),
    #[error("{0} MiB of memory; a VM has 32 to 65536")]
    Memory(u32),
    #[error("{devices} virtio devices; there are interrupt lines for {max}")]
    Devices { devices: usize, max: usize },
    #[error("the block device has the serial {0:?}; it needs 1 to 20 printable ASCII characters")]
    BlockSerial(String),
    #[error("two block devices have the serial {0:?}")]
    BlockSerialTwice(String),
    #[error("the block device {0:?} has no file")]
    BlockEmpty(String),
    #[error("limit of the {what}")]
    Limit { what: &'static str, source: LimitError },
    #[error("network device")]
    Net(#[from] NetError),
    #[error("the vsock CID {0} is reserved; a guest has 3 to 4294967294")]
    Cid(u32),
    #[error("the vsock host port {0} is named twice or reserved")]
    HostPort(u32),
    #[error("the tag {0:?} of the file system; it needs 1 to 36 printable ASCII characters")]
    FsTag(String),
    #[error("the jail's user {uid} and group {gid} must not be root's")]
    JailRoot { uid: u32, gid: u32 },
    #[error(
        "the jail says that the vmm is the first of its pid namespace, but its pid is {pid}; the parent must start it in a new one"
    )]
    JailNotFirst { pid: u32 },
    #[error("command line")]
    CommandLine(#[from] CommandLineError),
    #[error("file descriptor of the {what}")]
    Fd {
        what: String,
        #[source]
        source: FdError,
    },
}

impl VmSpec {
    /// Checks `config` and takes over its files, but those of `control` and the jail,
    /// which the process needs before and after the VM.
    pub fn adopt(config: &VmConfig, files: &mut Files) -> Result<Self, SpecError> {
        check_id(&config.id)?;
        if !(1..=32).contains(&config.vcpus) {
            return Err(SpecError::Vcpus(config.vcpus));
        }
        if !(32..=65536).contains(&config.memory_mib) {
            return Err(SpecError::Memory(config.memory_mib));
        }
        check_serials(&config.block)?;
        limit::check(&config.disk_limit)
            .map_err(|source| SpecError::Limit { what: "disks", source })?;
        let slots = virtio_slots(config)?;
        Ok(Self {
            id: config.id.clone(),
            vcpus: config.vcpus,
            memory_bytes: u64::from(config.memory_mib) << 20,
            command_line: command_line::compose(&config.cmdline, &slots)?,
            slots,
            kvm: files.kvm(config.kvm).map_err(named("kvm"))?,
            kernel: files.regular(config.kernel).map_err(named("kernel"))?,
            initramfs: config
                .initramfs
                .map(|fd| files.regular(fd).map_err(named("initramfs")))
                .transpose()?,
            boot_pages: config.boot_pages,
            block: config.block.iter().map(|disk| block(disk, files)).collect::<Result<_, _>>()?,
            disk_limit: config.disk_limit,
            net: net::adopt(&config.net, files)?,
            vsock: config.vsock.as_ref().map(|config| vsock(config, files)).transpose()?,
            fs: config.fs.as_ref().map(|config| fs(config, files)).transpose()?,
            rng: config.rng,
            balloon: config.balloon,
            console: config
                .console
                .map(|fd| files.writable(fd).map_err(named("console")))
                .transpose()?,
        })
    }
}

/// Checks how the process is to confine itself.
pub fn jail(config: &JailConfig) -> Result<Jail, SpecError> {
    let JailConfig { uid, gid, max_open_files, pid_namespace } = *config;
    // -1 means "as it was" to setresuid(2).
    if [0, u32::MAX].contains(&uid) || [0, u32::MAX].contains(&gid) {
        return Err(SpecError::JailRoot { uid, gid });
    }
    if pid_namespace && !pid_namespace::is_first() {
        return Err(SpecError::JailNotFirst { pid: std::process::id() });
    }
    Ok(Jail { uid, gid, max_open_files })
}

fn named(what: &str) -> impl Fn(FdError) -> SpecError {
    let what = what.to_owned();
    move |source| SpecError::Fd { what: what.clone(), source }
}

fn check_id(id: &str) -> Result<(), SpecError> {
    if !(1..=128).contains(&id.len()) || id.chars().any(char::is_control) {
        return Err(SpecError::Id { bytes: id.len() });
    }
    Ok(())
}

fn check_serials(disks: &[BlockConfig]) -> Result<(), SpecError> {
    let mut seen = BTreeSet::new();
    for BlockConfig { serial, .. } in disks {
        if !(1..=20).contains(&serial.len()) || !serial.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(SpecError::BlockSerial(serial.clone()));
        }
        if !seen.insert(serial) {
            return Err(SpecError::BlockSerialTwice(serial.clone()));
        }
    }
    Ok(())
}

fn virtio_slots(config: &VmConfig) -> Result<Vec<VirtioSlot>, SpecError> {
    let optional = [config.vsock.is_some(), config.fs.is_some(), config.rng, config.balloon];
    let devices =
        config.block.len() + config.net.len() + optional.into_iter().filter(|&there| there).count();
    let slots: Vec<_> = layout::virtio_slots().take(devices).collect();
    if slots.len() < devices {
        return Err(SpecError::Devices { devices, max: slots.len() });
    }
    Ok(slots)
}

fn block(config: &BlockConfig, files: &mut Files) -> Result<BlockSpec, SpecError> {
    if config.files.is_empty() {
        return Err(SpecError::BlockEmpty(config.serial.clone()));
    }
    let adopt = |&fd: &i32| {
        files.disk(fd, config.readonly).map_err(named(&format!("block device {:?}", config.serial)))
    };
    Ok(BlockSpec {
        serial: config.serial.clone(),
        readonly: config.readonly,
        files: config.files.iter().map(adopt).collect::<Result<_, _>>()?,
    })
}

fn vsock(config: &VsockConfig, files: &mut Files) -> Result<VsockSpec, SpecError> {
    if config.cid < 3 || config.cid == u32::MAX {
        return Err(SpecError::Cid(config.cid));
    }
    let listener = files.listener(config.listener).map_err(named("vsock listener"))?;
    let mut seen = BTreeSet::new();
    let mut host_ports = Vec::with_capacity(config.host_ports.len());
    for &crate::config::HostPort { port, socket } in &config.host_ports {
        if port == u32::MAX || !seen.insert(port) {
            return Err(SpecError::HostPort(port));
        }
        let socket = files.stream(socket).map_err(named(&format!("vsock host port {port}")))?;
        host_ports.push(HostPortSpec { port, socket });
    }
    Ok(VsockSpec { cid: config.cid, listener, host_ports })
}

fn fs(config: &FsConfig, files: &mut Files) -> Result<FsSpec, SpecError> {
    let tag = &config.tag;
    if !(1..=FS_TAG_BYTES).contains(&tag.len()) || !tag.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err(SpecError::FsTag(tag.clone()));
    }
    let server = files.messages(config.server).map_err(named("file server's socket"))?;
    Ok(FsSpec { tag: tag.clone(), server })
}

#[cfg(test)]
mod tests;
