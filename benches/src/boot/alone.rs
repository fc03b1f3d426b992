//! A vmm alone: kernel to `/init` and reset, beside QEMU's `microvm` on the same kernel
//! and initramfs.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use caisson_vmm::{
    config::{BootPages, RateLimit, VmConfig},
    control::{ControlEvent, Report},
};

use super::Programs;
use crate::{
    initramfs,
    process::{Spent, run},
};

const MEMORY_MIB: u32 = 128;
const COMMAND_LINE: &str = "reboot=k panic=-1 quiet loglevel=0 random.trust_cpu=on tsc=reliable";

/// An initramfs whose init resets, in a file.
pub fn reset_initramfs(programs: &Programs) -> anyhow::Result<tempfile::NamedTempFile> {
    let init = std::fs::read(&programs.reset_init)
        .with_context(|| format!("read {}", programs.reset_init.display()))?;
    let mut file = tempfile::NamedTempFile::new().context("a file for the initramfs")?;
    file.write_all(&initramfs::with_init(&init))?;
    Ok(file)
}

/// Boots Caisson's vmm to the reset.
pub fn caisson(programs: &Programs, initramfs: &Path) -> anyhow::Result<Spent> {
    let files =
        [("/dev/kvm".as_ref(), true), (programs.kernel().as_path(), false), (initramfs, false)]
            .map(|(path, write)| open(path, write));
    let [kvm, kernel, initramfs] = files;
    let (kvm, kernel, initramfs) = (kvm?, kernel?, initramfs?);
    let config = config(&kvm, &kernel, Some(&initramfs), None);
    run(&mut command(&programs.vmm(), &config, &[kvm, kernel, initramfs])?)
}

/// Boots QEMU's microvm, as lean as it goes, to the reset.
pub fn qemu(programs: &Programs, initramfs: &Path) -> anyhow::Result<Spent> {
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"]);
    qemu.args(["-M", "microvm,accel=kvm,pit=off,pic=off,rtc=off,isa-serial=off,acpi=off"]);
    qemu.args(["-cpu", "host", "-smp", "1", "-m", &format!("{MEMORY_MIB}M")]);
    qemu.arg("-kernel").arg(programs.kernel()).arg("-initrd").arg(initramfs);
    // A microvm has no i8042: only a triple fault resets it.
    qemu.args(["-append", &COMMAND_LINE.replace("reboot=k", "reboot=t")]);
    run(&mut qemu)
}

/// Milliseconds from the start of the vmm's process to its first KVM_RUN, on any
/// `/dev/kvm`: the "kernel" is a guest that halts.
pub fn first_run_ms(programs: &Programs) -> anyhow::Result<f64> {
    let kvm = open("/dev/kvm".as_ref(), true)?;
    let kernel = open(&programs.kernel(), false)?;
    let (ours, theirs) = UnixStream::pair().context("a control socket")?;
    let theirs = File::from(OwnedFd::from(theirs));
    let config = config(&kvm, &kernel, None, Some(&theirs));
    let files = [kvm, kernel, theirs];
    let mut command = command(&programs.vmm(), &config, &files)?;
    let start = monotonic_usec();
    let started = Instant::now();
    let mut child = command.spawn().context("start the vmm")?;
    drop(files);
    let mut events = BufReader::new(&ours).lines();
    // Running is said when the vCPUs' threads are let go: a moment for the first entry.
    next_event(&mut events)?;
    std::thread::sleep(Duration::from_millis(50));
    (&ours).write_all(b"{\"request\":\"stop\"}\n").context("ask the vmm to stop")?;
    let report = last_report(&mut events);
    child.wait().context("wait for the vmm")?;
    ensure!(started.elapsed().as_secs() < 20, "the vmm took {:?} to stop", started.elapsed());
    let first_run = *report?.stages_usec.get("first_run").context("the vmm ran no vCPU")?;
    Ok((first_run - start) as f64 / 1000.0)
}

fn last_report(events: &mut impl Iterator<Item = io::Result<String>>) -> anyhow::Result<Report> {
    loop {
        if let ControlEvent::Ended { report, .. } = next_event(events)? {
            return Ok(report);
        }
    }
}

fn next_event(
    events: &mut impl Iterator<Item = io::Result<String>>,
) -> anyhow::Result<ControlEvent> {
    let line = events.next().context("the vmm ended without a report")?;
    let line = line.context("read the control socket")?;
    serde_json::from_str(&line).with_context(|| format!("parse {line:?}"))
}

pub(crate) fn open(path: &Path, write: bool) -> anyhow::Result<File> {
    let mut options = File::options();
    options.read(true).write(write);
    options.open(path).with_context(|| format!("open {}", path.display()))
}

/// A guest of one vCPU without devices.
pub(crate) fn config(
    kvm: &File,
    kernel: &File,
    initramfs: Option<&File>,
    control: Option<&File>,
) -> VmConfig {
    VmConfig {
        id: "bench".into(),
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        kvm: kvm.as_raw_fd(),
        kernel: kernel.as_raw_fd(),
        initramfs: initramfs.map(AsRawFd::as_raw_fd),
        boot_pages: BootPages::of_host(),
        cmdline: COMMAND_LINE.into(),
        block: Vec::new(),
        disk_limit: RateLimit::default(),
        net: Vec::new(),
        vsock: None,
        fs: None,
        rng: false,
        balloon: false,
        console: None,
        control: control.map(AsRawFd::as_raw_fd),
        jail: None,
    }
}

/// The vmm with these files inherited under their own numbers.
pub(crate) fn command(vmm: &Path, config: &VmConfig, files: &[File]) -> anyhow::Result<Command> {
    let config_file = memory_file()?;
    (&config_file).write_all(&serde_json::to_vec(config)?)?;
    let config_fd = config_file.as_raw_fd();
    let inherited: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).chain([config_fd]).collect();
    let mut command = Command::new(vmm);
    command.arg("--config-fd").arg(config_fd.to_string()).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: lseek and fcntl are async-signal-safe, and the descriptors are open: the
    // closure keeps the one that nobody else holds.
    unsafe {
        command.pre_exec(move || {
            if libc::lseek(config_file.as_raw_fd(), 0, libc::SEEK_SET) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            for fd in &inherited {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(command)
}

/// A file in memory, without a name.
pub(crate) fn memory_file() -> anyhow::Result<File> {
    // SAFETY: the name is a NUL-terminated string.
    let fd = unsafe { libc::memfd_create(c"vm-config".as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and owned by nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn monotonic_usec() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}
