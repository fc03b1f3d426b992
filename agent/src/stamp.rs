//! Boot stamps: one byte to an I/O port that the vmm times. Best effort, and only where
//! the program is PID 1 of a VM: on another machine the port is somebody's hardware.
//!
//! The way to the port is `/dev/port` (`CONFIG_DEVPORT`), opened once under a name that
//! is removed at once. Unlike a right given by `ioperm` it does not survive `execve`.

use std::{fs::File, os::unix::fs::FileExt, sync::OnceLock};

use caisson_agent_protocol::{BOOT_STAMP_PORT, BootStage};
use nix::{
    sys::stat::{Mode, SFlag, makedev, mknod},
    unistd::unlink,
};

static PORTS: OnceLock<File> = OnceLock::new();

/// Lets [`stamp`] write from now on. Needs the initial filesystem to be writable.
pub fn enable() {
    const NODE: &str = "/.port";
    if mknod(NODE, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(1, 4)).is_err() {
        return;
    }
    if let Ok(file) = File::options().read(true).write(true).open(NODE) {
        // Only `main` calls this, once.
        let _ = PORTS.set(file);
    }
    // Nothing else lives there yet, and the filesystem is about to be covered.
    let _ = unlink(NODE);
}

/// Tells the vmm that `stage` is reached.
pub fn stamp(stage: BootStage) {
    if let Some(ports) = PORTS.get() {
        // A kernel that refuses gives no stamps; nothing depends on them.
        let _ = ports.write_at(&[stage as u8], u64::from(BOOT_STAMP_PORT));
    }
}

/// The descriptor that a forked child keeps for its own stamp.
pub fn descriptor() -> Option<std::os::fd::RawFd> {
    use std::os::fd::AsRawFd;
    PORTS.get().map(AsRawFd::as_raw_fd)
}
