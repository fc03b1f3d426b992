//! epoll, with what each descriptor means.

use std::{io, os::fd::AsFd, time::Duration};

use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};

/// The number of a process in the agent; never used twice.
pub type Key = u64;

/// Why the agent woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    Control,
    Children,
    /// A stream of this process.
    Stream(Key),
    /// The socket to the child that will be this process.
    Report(Key),
    /// The memory events of the container whose first process this is.
    Memory(Key),
}

impl Wake {
    fn token(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::Children => 1,
            Self::Stream(key) => key << 3 | 2,
            Self::Report(key) => key << 3 | 3,
            Self::Memory(key) => key << 3 | 4,
        }
    }

    fn from_token(token: u64) -> Option<Self> {
        let key = token >> 3;
        match token & 7 {
            0 => Some(Self::Control),
            1 => Some(Self::Children),
            2 => Some(Self::Stream(key)),
            3 => Some(Self::Report(key)),
            4 => Some(Self::Memory(key)),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub struct Watch(Epoll);

impl Watch {
    pub fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Reports every change of `fd` (edge-triggered) until it is closed.
    pub fn add(&self, fd: impl AsFd, wake: Wake) -> io::Result<()> {
        let flags = match wake {
            Wake::Memory(_) => EpollFlags::EPOLLPRI | EpollFlags::EPOLLET,
            _ => {
                EpollFlags::EPOLLIN
                    | EpollFlags::EPOLLOUT
                    | EpollFlags::EPOLLRDHUP
                    | EpollFlags::EPOLLET
            }
        };
        Ok(self.0.add(fd, EpollEvent::new(flags, wake.token()))?)
    }

    /// Waits at most `timeout`, for ever without one.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Wake>> {
        let timeout = match timeout {
            None => EpollTimeout::NONE,
            // Rounded up: waking before a deadline would spin until it.
            Some(time) => EpollTimeout::try_from(time + Duration::from_micros(999))
                .unwrap_or(EpollTimeout::MAX),
        };
        let mut events = [EpollEvent::empty(); 64];
        match self.0.wait(&mut events, timeout) {
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
            Ok(count) => {
                Ok(events[..count].iter().filter_map(|e| Wake::from_token(e.data())).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_wakes_apart() {
        for wake in [
            Wake::Control,
            Wake::Children,
            Wake::Stream(9),
            Wake::Report(9),
            Wake::Memory(u64::MAX >> 3),
        ] {
            assert_eq!(Wake::from_token(wake.token()), Some(wake));
        }
    }
}
