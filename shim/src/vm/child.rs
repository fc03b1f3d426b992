//! How the shim starts the processes of a VM: with a config, the files that it names, inside
//! the VM's cgroup, and with nothing else.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

/// What a process is born with and into.
pub(super) struct Surroundings {
    /// Of the cgroups: it writes itself in.
    pub(super) entrances: Vec<File>,
    /// How likely the host's OOM killer is to choose it.
    pub(super) oom_score_adj: i32,
    /// The descriptors that its config names.
    pub(super) files: Vec<RawFd>,
}

/// `program --config-fd N`. It inherits the files, and writes its complaints to `stderr`.
pub(super) fn command(
    program: &Path,
    config: File,
    stderr: OwnedFd,
    surroundings: Surroundings,
) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--config-fd", &config.as_raw_fd().to_string()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr);
    let Surroundings { entrances, oom_score_adj, files } = surroundings;
    let score = oom_score_adj.to_string();
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
            for &fd in files.iter().chain([&config.as_raw_fd()]) {
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command
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

/// A config in a file without a name, at its beginning.
pub(super) fn config_file(config: &impl serde::Serialize) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated constant.
    let fd = unsafe { libc::memfd_create(c"caisson-config".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let mut file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.write_all(&serde_json::to_vec(config)?)?;
    io::Seek::rewind(&mut file)?;
    Ok(file)
}
