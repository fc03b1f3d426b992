//! Starts QEMU in the background, so that others can tell whether it lives.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use caisson_agent_protocol::machine::BootArguments;
use caisson_shim::assets::{AssetError, Assets};

use super::{
    directory::{DirectoryError, MachineDirectory, open_private},
    disk::{self, DiskError, DiskLock},
    instance::{InstanceError, Record},
    qemu,
};
use crate::Globals;

#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error(transparent)]
    Asset(#[from] AssetError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("start {}; install the Debian package qemu-system-x86", qemu::PROGRAM)]
    NoQemu(#[source] io::Error),
    #[error("start {}", qemu::PROGRAM)]
    Spawn(#[source] io::Error),
}

/// Prepares the disk and starts QEMU. The caller holds the lock of changes.
pub(super) fn launch(
    globals: &Globals,
    disk_size_bytes: u64,
    directory: &MachineDirectory,
    record: &Record,
) -> Result<Child, LaunchError> {
    let assets = Assets::locate()?.machine()?;
    let plan = qemu::Plan {
        cpus: record.cpus,
        memory_bytes: record.memory_bytes,
        icount: record.icount,
        kernel: present(assets.join("kernel"))?,
        initramfs: present(assets.join("initramfs.cpio"))?,
        boot: BootArguments {
            root: globals.root.clone(),
            state: globals.state.clone(),
            modules: present(assets.join("modules/lib/modules"))?,
        },
        directory,
    };
    let disk_lock = disk::lock(directory)?;
    disk::prepare(&disk_lock, &directory.disk(), disk_size_bytes)?;
    // Before the start, so that whoever finds the emulator knows what it is.
    record.write(directory)?;
    let started = spawn(&plan, directory, disk_lock);
    if started.is_err() {
        let _ = fs::remove_file(directory.record());
    }
    started
}

fn present(path: PathBuf) -> Result<PathBuf, AssetError> {
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(_) => Err(AssetError::Missing { what: "a part of the machine", path }),
    }
}

fn spawn(
    plan: &qemu::Plan<'_>,
    directory: &MachineDirectory,
    disk_lock: DiskLock,
) -> Result<Child, LaunchError> {
    remove_old_sockets(&directory.ports());
    let log = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(directory.qemu_log())
        .map_err(LaunchError::Spawn)?;
    let alive = open_private(&directory.alive_lock())?;
    let mut command = Command::new(qemu::PROGRAM);
    command
        .args(plan.arguments())
        .current_dir(directory.ports())
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(LaunchError::Spawn)?)
        .stderr(log);
    // SAFETY: between fork and exec `prepare` makes only async-signal-safe calls, on
    // descriptors that stay open until the command is dropped.
    unsafe { command.pre_exec(move || prepare(&alive, &disk_lock)) };
    command.spawn().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => LaunchError::NoQemu(error),
        _ => LaunchError::Spawn(error),
    })
}

/// In the child, before it becomes QEMU: leaves the terminal, takes the lock that tells
/// that it lives, writes its number there, and keeps that of the disk.
fn prepare(alive: &File, disk_lock: &DiskLock) -> io::Result<()> {
    let fd = alive.as_raw_fd();
    // SAFETY: plain system calls on open descriptors; `number` outlives the write, and
    // `files` the setrlimit.
    unsafe {
        if libc::setsid() < 0 || libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB) < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut number = [0_u8; 12];
        let digits = decimal(libc::getpid() as u32, &mut number);
        if libc::ftruncate(fd, 0) < 0
            || libc::pwrite(fd, digits.as_ptr().cast(), digits.len(), 0) < 0
            || libc::fcntl(fd, libc::F_SETFD, 0) < 0
            || libc::fcntl(disk_lock.0.as_raw_fd(), libc::F_SETFD, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
        // Each file that is open in the machine is one in QEMU.
        let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut files) == 0 {
            files.rlim_cur = files.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &files);
        }
    }
    Ok(())
}

/// The decimal digits of `number`, without allocation.
fn decimal(mut number: u32, buffer: &mut [u8; 12]) -> &[u8] {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[start..];
        }
    }
}

fn remove_old_sockets(ports: &Path) {
    let Ok(entries) = fs::read_dir(ports) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_some_and(|extension| extension == "sock") {
            // One that stays makes QEMU fail, which then is reported.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 7, 10, 4_194_304, u32::MAX] {
            assert_eq!(decimal(number, &mut [0; 12]), number.to_string().as_bytes());
        }
    }
}
