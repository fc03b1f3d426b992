//! Starting a vmm: everything it needs is opened here, and it inherits that and nothing
//! else.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Child,
};

use caisson_agent_protocol::{CONTROL_PORT, SHARES_TAG};
use caisson_failpoints::{hit, steps};
use caisson_jail::pid_namespace;
use caisson_vmm::config::{
    BlockConfig, BootPages, FsConfig, HostPort, JailConfig, MacAddress, NetConfig, RateLimit,
    VmConfig, VsockConfig,
};

use super::{
    child::{self, Surroundings},
    cmdline, console,
};
use crate::{
    assets::Assets,
    kind::ErrorKind,
    network::Tap,
    rootfs::{Image, LAYERS_DEVICE, SCRATCH_DEVICE},
    sandbox::{LaunchError, SandboxSpec},
};

/// No other VM sees it: each has its own vsock.
const GUEST_CID: u32 = 3;

/// What the vmm inherits, and a connection for each stream of a container's processes.
const MAX_OPEN_FILES: u64 = 4096;

const KVM: &str = "/dev/kvm";

/// The shim's ends of a started vmm.
pub(super) struct Spawned {
    pub(super) child: Child,
    pub(super) control: UnixStream,
    pub(super) agent: UnixStream,
    pub(super) console: tokio::net::unix::pipe::Receiver,
    pub(super) stderr: tokio::net::unix::pipe::Receiver,
}

/// What must be there before anything on the host changes.
pub(super) struct Parts {
    program: PathBuf,
    /// Where the VM has shares.
    pub(super) file_server: Option<PathBuf>,
    kvm: File,
    kernel: File,
    initramfs: File,
}

impl Parts {
    pub(super) fn open(assets: &Assets, spec: &SandboxSpec) -> Result<Self, LaunchError> {
        let asset = |error: crate::assets::AssetError| LaunchError {
            kind: ErrorKind::BootFailed,
            message: "the installation is incomplete".to_owned(),
            source: Some(Box::new(error)),
        };
        Ok(Self {
            program: assets.vmm().map_err(asset)?,
            file_server: match spec.shares.as_slice() {
                [] => None,
                _ => Some(assets.file_server().map_err(asset)?),
            },
            kernel: open(&assets.kernel().map_err(asset)?)?,
            initramfs: open(&assets.initramfs().map_err(asset)?)?,
            kvm: open_kvm()?,
        })
    }
}

fn open(path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError {
        kind: ErrorKind::BootFailed,
        message: format!("open {}", path.display()),
        source: Some(Box::new(source)),
    })
}

fn open_kvm() -> Result<File, LaunchError> {
    let opened = File::options().read(true).write(true).open(KVM);
    opened.map_err(|source| {
        let way_out = match source.kind() {
            io::ErrorKind::NotFound => {
                "this host offers no virtualization (load kvm_intel or kvm_amd, or enable it in the firmware); `caisson doctor` tells more, `--accel machine` does without"
            }
            io::ErrorKind::PermissionDenied => "run as root, or as a member of the group kvm",
            _ => "`caisson doctor` tells more",
        };
        LaunchError {
            kind: ErrorKind::NoKvm,
            message: format!("open {KVM}: {way_out}"),
            source: Some(Box::new(source)),
        }
    })
}

/// Starts the vmm, inside the cgroups behind `entrances`. `uid` is who it becomes; without one
/// (the shim is not root) it stays who the shim is. `shares` is its end of the file server's
/// socket.
pub(super) fn spawn(
    parts: &Parts,
    spec: &SandboxSpec,
    listener: &UnixListener,
    taps: &[Tap],
    uid: Option<u32>,
    entrances: Vec<File>,
    shares: Option<OwnedFd>,
) -> io::Result<Spawned> {
    let (control, vmm_control) = UnixStream::pair()?;
    let (agent, vmm_agent) = UnixStream::pair()?;
    let (console, vmm_console) = console::pipe_for_child()?;
    let (stderr, vmm_stderr) = console::pipe_for_child()?;
    let disk = |serial: &str, readonly, images: &mut dyn Iterator<Item = &Image>| BlockConfig {
        serial: serial.to_owned(),
        readonly,
        files: images.map(|image| image.file.as_raw_fd()).collect(),
    };
    let mut block = vec![disk(LAYERS_DEVICE, true, &mut spec.rootfs.layers.iter())];
    if spec.rootfs.scratch.is_some() {
        block.push(disk(SCRATCH_DEVICE, false, &mut spec.rootfs.scratch.iter()));
    }
    let config = VmConfig {
        id: spec.id.clone(),
        vcpus: spec.size.vcpus,
        memory_mib: spec.size.memory_mib,
        kvm: parts.kvm.as_raw_fd(),
        kernel: parts.kernel.as_raw_fd(),
        initramfs: Some(parts.initramfs.as_raw_fd()),
        boot_pages: BootPages::of_host(),
        cmdline: cmdline::command_line(),
        block,
        disk_limit: spec.size.disk_limit,
        net: taps.iter().map(|tap| net(tap, spec.any_address)).collect(),
        vsock: Some(VsockConfig {
            cid: GUEST_CID,
            listener: listener.as_raw_fd(),
            host_ports: vec![HostPort { port: CONTROL_PORT, socket: vmm_agent.as_raw_fd() }],
        }),
        fs: shares
            .as_ref()
            .map(|server| FsConfig { tag: SHARES_TAG.to_owned(), server: server.as_raw_fd() }),
        rng: true,
        balloon: true,
        console: Some(vmm_console.as_raw_fd()),
        control: Some(vmm_control.as_raw_fd()),
        jail: uid.map(|uid| JailConfig {
            uid,
            gid: uid,
            max_open_files: MAX_OPEN_FILES,
            pid_namespace: true,
        }),
    };
    hit(&steps::SHIM_VM_CONFIG)?;
    let config_file = child::config_file(&config)?;
    let files = named_files(&config);
    let surroundings = Surroundings { entrances, oom_score_adj: spec.oom_score_adj, files };
    let mut command = child::command(&parts.program, config_file, vmm_stderr, surroundings);
    hit(&steps::SHIM_VM_SPAWN)?;
    let child = match uid {
        Some(_) => pid_namespace::spawn(&mut command)?,
        None => command.spawn()?,
    };
    Ok(Spawned { child, control, agent, console, stderr })
}

fn net(tap: &Tap, any_address: bool) -> NetConfig {
    let interface = &tap.interface;
    let addresses = interface.addresses.iter().map(|subnet| subnet.address);
    NetConfig {
        tap: tap.file.as_raw_fd(),
        mac: MacAddress(interface.mac.0),
        mtu: u16::try_from(interface.mtu).expect("a checked plan's MTU is 65535 at most"),
        addresses: if any_address { Vec::new() } else { addresses.collect() },
        receive_limit: RateLimit::default(),
        transmit_limit: RateLimit::default(),
    }
}

/// The files that a config names.
fn named_files(config: &VmConfig) -> Vec<RawFd> {
    let mut files = vec![config.kvm, config.kernel];
    files.extend(config.initramfs);
    files.extend(config.block.iter().flat_map(|disk| disk.files.iter().copied()));
    files.extend(config.net.iter().map(|net| net.tap));
    if let Some(vsock) = &config.vsock {
        files.push(vsock.listener);
        files.extend(vsock.host_ports.iter().map(|port| port.socket));
    }
    files.extend(config.fs.iter().map(|fs| fs.server));
    files.extend(config.console);
    files.extend(config.control);
    files
}

#[cfg(test)]
mod tests {
    use caisson_agent_protocol::network::{self, InterfacePlan, Subnet};

    use super::*;

    #[test]
    fn a_guest_sends_from_its_own_addresses_unless_it_may_choose_them() {
        let address = "10.9.0.2".parse().unwrap();
        let interface = InterfacePlan {
            mac: network::MacAddress([2, 0, 0, 0, 0, 1]),
            name: "eth0".into(),
            mtu: 1500,
            addresses: vec![Subnet { address, prefix: 24 }],
            routes: vec![],
            neighbours: vec![],
        };
        let tap = Tap { file: File::open("/dev/null").unwrap(), interface };
        assert_eq!(net(&tap, false).addresses, [address]);
        assert!(net(&tap, true).addresses.is_empty());
        assert_eq!(net(&tap, true).mac.to_string(), "02:00:00:00:00:01");
    }
}
