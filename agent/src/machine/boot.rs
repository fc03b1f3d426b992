//! From the kernel's start of `/init` to the supervisor.

use std::{fs, io, path::PathBuf};

use caisson_agent_protocol::machine::{BootArgumentError, BootArguments};
use nix::{
    sys::resource::{Resource, setrlimit},
    unistd::sethostname,
};

use super::{
    kvm::IdleVm,
    modules::{self, ModuleError},
    mounts::{self, MountError},
    power,
    session::words,
    supervisor::{self, SupervisorError},
    workdir::HostShare,
};

const HOSTNAME: &str = "caisson-machine";

#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("read the kernel's command line")]
    CommandLine(#[source] io::Error),
    #[error(transparent)]
    Arguments(#[from] BootArgumentError),
    #[error(transparent)]
    Module(#[from] ModuleError),
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("set the host name")]
    Hostname(#[source] nix::Error),
    #[error("set the limits of processes")]
    Limits(#[source] nix::Error),
    #[error("bring up the loopback interface")]
    Loopback(#[source] io::Error),
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
}

/// Runs as PID 1 until the machine is shut down. What fails stands on the console, and
/// the machine powers off, so that whoever waits for it learns of it.
pub fn main() {
    if std::process::id() != 1 {
        eprintln!("caisson-machine-init is the first process of `caisson machine`");
        std::process::exit(2);
    }
    if let Err(error) = run() {
        eprintln!("caisson-machine: fatal: {}", words(&error));
        power::power_off();
    }
}

fn run() -> Result<(), BootError> {
    mounts::early()?;
    let line = fs::read_to_string("/proc/cmdline").map_err(BootError::CommandLine)?;
    let arguments = BootArguments::parse(&line)?;
    modules::load_all()?;
    let host = mounts::enter_root(&arguments)?;
    sethostname(HOSTNAME).map_err(BootError::Hostname)?;
    limits().map_err(BootError::Limits)?;
    // Each session drops caches (supervisor.rs); the log shall not tell each time.
    let _ = fs::write("/proc/sys/vm/drop_caches", "4");
    loopback().map_err(BootError::Loopback)?;
    let _kvm = IdleVm::new().inspect_err(|error| eprintln!("caisson-machine: no KVM: {error}"));
    let own: Vec<PathBuf> = vec![arguments.root.clone(), arguments.state];
    Ok(supervisor::run(&HostShare::new(host, own), &arguments.root)?)
}

/// What systemd gives to services; the kernel's own defaults are those of 1996.
fn limits() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_NOFILE, 1024, 1 << 20)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 8 << 20, 8 << 20)?;
    setrlimit(Resource::RLIMIT_CORE, 0, libc::RLIM_INFINITY)
}

fn loopback() -> io::Result<()> {
    // SAFETY: socket takes numbers; the ioctl reads the request, a local that lives until
    // after the call; the descriptor is closed once and not used afterwards.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let result = match libc::ioctl(socket, libc::SIOCSIFFLAGS, &request) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        libc::close(socket);
        result
    }
}

/// Follows the host's clock: the emulator stands still when its host does.
pub(super) fn set_clock(host_ns: u64) {
    const TOLERANCE_NS: u64 = 500_000_000;
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec to write to; CLOCK_REALTIME always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut now) };
    let present_ns = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    if present_ns.abs_diff(host_ns) < TOLERANCE_NS {
        return;
    }
    let host = libc::timespec {
        tv_sec: (host_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (host_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: `host` is a valid timespec to read; a refusal leaves the clock as it is.
    unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &host) };
}
