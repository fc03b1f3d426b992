//! Ended children: a signalfd wakes the agent, and every zombie is collected, whoever's
//! child it was before PID 1 inherited it.

use std::{io, os::fd::OwnedFd};

use caisson_agent_protocol::ExitStatus;
use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};

/// Blocks SIGCHLD and returns the descriptor that reports it instead.
pub fn watch_children() -> io::Result<OwnedFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?.into())
}

/// Forgets the signals seen so far; to be called before [`reap`], never after.
pub fn acknowledge(signals: &OwnedFd) {
    let mut buffer = [0; size_of::<libc::signalfd_siginfo>() * 4];
    // SIGCHLDs merge, so there is one; an error only means another wake-up.
    let _ = nix::unistd::read(signals, &mut buffer);
}

/// Collects one ended child, if there is one.
pub fn reap() -> Option<(i32, ExitStatus)> {
    loop {
        let mut status = 0;
        // SAFETY: the status is valid for writes during the call. Not nix's waitpid: it
        // loses a child that a real-time signal ended.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match pid {
            1.. => {
                if let Some(status) = exit_status(status) {
                    return Some((pid, status));
                }
            }
            0 => return None,
            _ => match Errno::last() {
                Errno::EINTR => {}
                Errno::ECHILD => return None,
                error => {
                    crate::log!("wait for children: {error}");
                    return None;
                }
            },
        }
    }
}

/// How a process ended; `None` if it has only stopped.
fn exit_status(status: libc::c_int) -> Option<ExitStatus> {
    if libc::WIFEXITED(status) {
        Some(ExitStatus::Exited(libc::WEXITSTATUS(status) as u8))
    } else if libc::WIFSIGNALED(status) {
        Some(ExitStatus::Signaled(libc::WTERMSIG(status) as u8))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_signals_are_told_apart() {
        assert_eq!(exit_status(7 << 8), Some(ExitStatus::Exited(7)));
        assert_eq!(exit_status(255 << 8), Some(ExitStatus::Exited(255)));
        assert_eq!(exit_status(libc::SIGKILL), Some(ExitStatus::Signaled(9)));
        assert_eq!(exit_status(64), Some(ExitStatus::Signaled(64)));
        assert_eq!(exit_status(libc::SIGSEGV | 0x80), Some(ExitStatus::Signaled(11)));
        assert_eq!(exit_status(0x137f), None, "stopped");
    }
}
