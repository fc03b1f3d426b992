//! Ends the machine in order: processes, filesystems, power.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sync},
};

const PATIENCE: Duration = Duration::from_secs(5);

/// Terminates all other processes, flushes the disk that `kept` lies on, and powers off.
pub(super) fn shut_down(kept: &Path) -> ! {
    end_processes(Signal::SIGTERM, PATIENCE);
    end_processes(Signal::SIGKILL, PATIENCE);
    sync();
    release_disk(kept);
    power_off()
}

/// Signals every process but this one and waits until all are gone, or `patience` is over.
fn end_processes(signal: Signal, patience: Duration) {
    let deadline = Instant::now() + patience;
    // As PID 1, "all" leaves this process out. ESRCH: there is none.
    let _ = kill(Pid::from_raw(-1), signal);
    while Instant::now() < deadline {
        // Orphans become children of PID 1, so without children nobody is left.
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(10)),
            _ => {}
        }
    }
}

/// Marks the disk's filesystem clean. It is bound at several places, so that it cannot be
/// unmounted simply; read-only is as good.
fn release_disk(kept: &Path) {
    let none = None::<&str>;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(none, kept, none, flags, none) {
        eprintln!("caisson-machine: the disk is not released ({error}); it will be checked");
    }
}

/// Ends the emulator.
pub(super) fn power_off() -> ! {
    sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // The call returns only without the right to it.
    loop {
        nix::unistd::pause();
    }
}
