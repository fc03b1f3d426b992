//! From the kernel's hand to a system that containers can be made in.

use std::{fs, io, os::fd::AsFd};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl, open},
    sys::{
        signal::{SigHandler, Signal, signal},
        stat::Mode,
    },
    unistd::{chroot, dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::{
    cgroup, credentials,
    error::{At, OsError},
    kernel_settings,
    sys::{self, mount},
};

/// Where the cgroup2 hierarchy goes.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The new root's place until it covers the old one.
const NEW_ROOT: &str = "/root";

/// Replaces the initramfs by a tmpfs with the kernel's filesystems in it.
///
/// A root on the initial ramfs cannot be the old root of `pivot_root`, which is how every
/// container leaves it; a filesystem mounted over it can.
pub fn mount_root() -> Result<(), OsError> {
    make_dir(NEW_ROOT)?;
    mount("root", NEW_ROOT, "tmpfs", libc::MS_NOSUID, "mode=0755").at(|| "mount the root")?;
    for (source, name, fstype) in
        [("proc", "proc", "proc"), ("sysfs", "sys", "sysfs"), ("devtmpfs", "dev", "devtmpfs")]
    {
        let path = format!("{NEW_ROOT}/{name}");
        make_dir(&path)?;
        mount(source, &path, fstype, libc::MS_NOSUID | libc::MS_NOEXEC, "")
            .at(|| format!("mount /{name}"))?;
    }
    make_dir(&format!("{NEW_ROOT}/run"))?;
    std::env::set_current_dir(NEW_ROOT).at(|| "enter the new root")?;
    mount(".", "/", "", libc::MS_MOVE, "").at(|| "move the new root over the old one")?;
    chroot(".").at(|| "change to the new root")?;
    std::env::set_current_dir("/").at(|| "enter the new root")
}

/// Makes sure that descriptors 0 to 2 are the console, or at least nothing else. Without
/// a console in the initramfs the kernel starts PID 1 with none.
pub fn open_console() -> Result<(), OsError> {
    let is_open = fcntl(io::stderr().as_fd(), FcntlArg::F_GETFD).is_ok();
    if is_open {
        return Ok(());
    }
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let console = open("/dev/console", flags, Mode::empty())
        .or_else(|_| open("/dev/null", flags, Mode::empty()))
        .at(|| "open the console")?;
    dup2_stdin(&console).at(|| "set standard input")?;
    dup2_stdout(&console).at(|| "set standard output")?;
    dup2_stderr(&console).at(|| "set standard error")?;
    if std::os::fd::AsRawFd::as_raw_fd(&console) <= 2 {
        // It came to lie on one of them: that one stays.
        std::mem::forget(console);
    }
    Ok(())
}

/// Keeps containers from looking into the agent and its forks, and a closed socket from
/// ending it.
pub fn protect_agent() -> Result<(), OsError> {
    // Not dumpable: even root in a container may neither trace a fork that is about to
    // join it nor open its executable. `execve` ends this for the program itself.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at(|| "make the agent undumpable")?;
    // SAFETY: ignoring a signal runs no code of this program.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.at(|| "ignore SIGPIPE").map(drop)
}

/// The error of a VM whose host does not answer.
pub fn cannot_connect(port: u32, error: io::Error) -> OsError {
    OsError::new(format!("connect to vsock port {port} of the host"), error)
}

/// What only containers need, done after the shim has been told that the agent is there.
pub fn prepare_for_containers() -> Result<(), OsError> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount("cgroup2", CGROUP_ROOT, "cgroup2", flags, "").at(|| "mount the cgroup hierarchy")?;
    cgroup::enable_controllers(CGROUP_ROOT.as_ref())?;
    kernel_settings::harden_guest()?;
    kernel_settings::allow_overcommit()?;
    credentials::raise_limits()?;
    sys::loopback_up().at(|| "bring the loopback interface up")
}

/// Ends the VM. Nothing else can be done with a machine whose PID 1 has ended.
pub fn end_vm() -> ! {
    nix::unistd::sync();
    let error = sys::reset_machine();
    crate::log!("reset the machine: {error}");
    std::process::abort() // The kernel panics, and the vmm sees that.
}

fn make_dir(path: &str) -> Result<(), OsError> {
    match fs::create_dir(path) {
        Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => Ok(()),
        made => made.at(|| format!("make {path}")),
    }
}
