//! Starting a vmm: everything it needs is opened here, and it inherits that and nothing
//! else.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            net::{UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use caisson_agent_protocol::CONTROL_PORT;
use caisson_failpoints::{hit, steps};
use caisson_jail::pid_namespace;
use caisson_vmm::config::{BlockConfig, BootPages, HostPort, JailConfig, VmConfig, VsockConfig};

use super::{cmdline, console};
use crate::{
    assets::Assets,
    kind::ErrorKind,
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
    kvm: File,
    kernel: File,
    initramfs: File,
}

impl Parts {
    pub(super) fn open(assets: &Assets) -> Result<Self, LaunchError> {
        let asset = |error: crate::assets::AssetError| LaunchError {
            kind: ErrorKind::BootFailed,
            message: "the installation is incomplete".to_owned(),
            source: Some(Box::new(error)),
        };
        Ok(Self {
            program: assets.vmm().map_err(asset)?,
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
/// (the shim is not root) it stays who the shim is.
pub(super) fn spawn(
    parts: &Parts,
    spec: &SandboxSpec,
    listener: &UnixListener,
    uid: Option<u32>,
    entrances: Vec<File>,
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
        net: Vec::new(),
        vsock: Some(VsockConfig {
            cid: GUEST_CID,
            listener: listener.as_raw_fd(),
            host_ports: vec![HostPort { port: CONTROL_PORT, socket: vmm_agent.as_raw_fd() }],
        }),
        fs: None,
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
    let memory_file = config_file(&config)?;
    let mut inherited = named_files(&config);
    inherited.push(memory_file.as_raw_fd());
    let mut command = Command::new(&parts.program);
    command
        .args(["--config-fd", &memory_file.as_raw_fd().to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(vmm_stderr);
    let score = spec.oom_score_adj.to_string();
    // SAFETY: between fork and exec the closure only makes calls that are async-signal-safe
    // and touches memory that was allocated before.
    unsafe {
        command.pre_exec(move || {
            for entrance in &entrances {
                write_all(entrance.as_raw_fd(), b"0")?;
            }
            set_oom_score_adj(&score)?;
            // Also what the shim itself inherited by somebody's mistake.
            let (first, last) = (libc::STDERR_FILENO + 1, libc::c_uint::MAX);
            let flags = libc::CLOSE_RANGE_CLOEXEC as libc::c_int;
            if libc::close_range(first as libc::c_uint, last, flags) < 0 {
                return Err(io::Error::last_os_error());
            }
            for &fd in &inherited {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    hit(&steps::SHIM_VM_SPAWN)?;
    let child = match uid {
        Some(_) => pid_namespace::spawn(&mut command)?,
        None => command.spawn()?,
    };
    Ok(Spawned { child, control, agent, console, stderr })
}

/// The shim may be one of the last that the kernel would choose; its VM is not. Between fork
/// and exec.
fn set_oom_score_adj(score: &str) -> io::Result<()> {
    // SAFETY: opens a file by a constant path; the descriptor is closed by exec.
    let file = unsafe {
        libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC)
    };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    match write_all(file, score.as_bytes()) {
        // Only root may become less likely.
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(()),
        written => written,
    }
}

/// In one call, as the kernel's own files want it. Between fork and exec.
fn write_all(file: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes outlive the call and are as many as said.
    let written = unsafe { libc::write(file, bytes.as_ptr().cast(), bytes.len()) };
    if written == bytes.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The files that a config names.
fn named_files(config: &VmConfig) -> Vec<RawFd> {
    let mut files = vec![config.kvm, config.kernel];
    files.extend(config.initramfs);
    files.extend(config.block.iter().flat_map(|disk| disk.files.iter().copied()));
    if let Some(vsock) = &config.vsock {
        files.push(vsock.listener);
        files.extend(vsock.host_ports.iter().map(|port| port.socket));
    }
    files.extend(config.console);
    files.extend(config.control);
    files
}

/// The config in a file without a name, at its beginning.
fn config_file(config: &VmConfig) -> io::Result<File> {
    hit(&steps::SHIM_VM_CONFIG)?;
    // SAFETY: the name is a NUL-terminated constant.
    let fd = unsafe { libc::memfd_create(c"caisson-vm-config".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&serde_json::to_vec(config)?)?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}
