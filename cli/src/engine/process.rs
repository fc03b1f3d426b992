//! A process of this host that is waited for without being a child.

use std::{
    io,
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
    fn no_process_is_none() {
        assert!(Process::open(0).is_none());
        assert!(Process::open(u32::MAX).is_none());
    }
}
