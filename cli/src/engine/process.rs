//! A process of this host that is waited for without being a child.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Holds the process itself: its number cannot come to mean another.
pub(super) struct Process {
    pidfd: OwnedFd,
}

impl Process {
    /// `None` if there is no such process.
    pub(super) fn open(pid: u32) -> Option<Self> {
        let pid = libc::pid_t::try_from(pid).ok().filter(|&pid| pid > 0)?;
        // SAFETY: pidfd_open takes two integers and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0)?;
        // SAFETY: the kernel has just made it, and nobody else owns it.
        Some(Self { pidfd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The shim of container `id`, found by its arguments, for when it does not answer.
    pub(super) fn find_shim(id: &str) -> Option<Self> {
        let words: [&[u8]; 3] = [b"serve", b"--id", id.as_bytes()];
        fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            // Held before it is looked at, so that it is still the same.
            let process = Self::open(pid)?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let arguments: Vec<&[u8]> = arguments.split(|&byte| byte == 0).skip(1).collect();
            arguments.starts_with(&words).then_some(process)
        })
    }

    /// Waits for its end, and after `patience` kills it. Whether it ended by itself.
    pub(super) fn wait_or_kill(self, patience: Duration) -> bool {
        if self.wait(patience) {
            return true;
        }
        // SAFETY: the descriptor is open, and without siginfo the kernel reads nothing.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        self.wait(patience);
        false
    }

    fn wait(&self, patience: Duration) -> bool {
        let until = std::time::Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Err(nix::errno::Errno::EINTR) => {}
                // A wait that cannot be is as one without an end.
                Err(error) => {
                    tracing::warn!(error = %io::Error::from(error), "wait for a process");
                    return false;
                }
                Ok(count) => return count > 0,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_end_is_seen_and_a_stubborn_process_is_killed() {
        let mut short = Command::new("true").spawn().unwrap();
        let process = Process::open(short.id()).unwrap();
        assert!(process.wait_or_kill(Duration::from_secs(20)));
        short.wait().unwrap();
        let mut long = Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::open(long.id()).unwrap();
        assert!(!process.wait_or_kill(Duration::from_millis(50)));
        assert!(!long.wait().unwrap().success());
    }

    #[test]
    fn a_shim_is_found_by_its_containers_id() {
        let id = crate::names::new_id().unwrap();
        assert!(Process::find_shim(&id).is_none());
        let mut like_a_shim = Command::new("yes")
            .args(["serve", "--id", &id])
            .env("POSIXLY_CORRECT", "1")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Its arguments are there once it is executed.
        let found = (0..500).find_map(|_| {
            std::thread::sleep(Duration::from_millis(10));
            Process::find_shim(&id)
        });
        assert!(!found.unwrap().wait_or_kill(Duration::ZERO));
        assert!(!like_a_shim.wait().unwrap().success());
    }

    #[test]
    fn no_process_is_none() {
        assert!(Process::open(0).is_none());
        assert!(Process::open(u32::MAX).is_none());
    }
}
