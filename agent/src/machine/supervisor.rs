//! PID 1's loop: reaps, answers the control port, forks a process for each session.
//!
//! A port stays open here for good. While nobody is connected it reports a hang-up, so all
//! are watched edge-triggered: an event comes when something changes. While a session has
//! a port, the port is not watched here.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use caisson_agent_protocol::machine::{CONTROL_PORT, Frame, Ready, SESSION_PORTS, VERSION};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        stat::Mode,
        utsname::uname,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::{
    boot::set_clock,
    channel::{Channel, ChannelError},
    power,
    session::{self, words},
    workdir::HostShare,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum SupervisorError {
    #[error("find the ports of the machine in /dev")]
    ListDevices(#[source] io::Error),
    #[error("the machine has no port {0}")]
    NoPort(u32),
    #[error("open {path}")]
    OpenPort { path: PathBuf, source: nix::Error },
    #[error("watch signals and ports")]
    Watch(#[source] nix::Error),
}

/// Tokens of the epoll set: a port's number, or this.
const SIGNALS: u64 = 0;

struct Port {
    number: u32,
    file: OwnedFd,
    /// The process that serves a session on it.
    session: Option<Pid>,
}

struct Supervisor<'a> {
    share: &'a HostShare,
    epoll: Epoll,
    ports: Vec<Port>,
}

/// Runs until a shutdown. `kept` lies on the machine's disk.
pub(super) fn run(share: &HostShare, kept: &Path) -> Result<(), SupervisorError> {
    let control = open_port(CONTROL_PORT)?;
    let ports = SESSION_PORTS.map(open_session_port).collect::<Result<Vec<_>, _>>()?;
    let signals = block_signals().map_err(SupervisorError::Watch)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(SupervisorError::Watch)?;
    let mut supervisor = Supervisor { share, epoll, ports };
    supervisor.watch(&signals, &control).map_err(SupervisorError::Watch)?;
    let mut channel = Channel::new(control.as_fd());
    let mut events = [EpollEvent::empty(); 32];
    loop {
        let count = match supervisor.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(SupervisorError::Watch(error)),
        };
        for event in &events[..count] {
            match event.data() {
                SIGNALS => {
                    // One signal stands for many; the reaping asks for each child.
                    while let Ok(Some(_)) = signals.read_signal() {}
                    supervisor.reap_all()?;
                }
                number if number == u64::from(CONTROL_PORT) => {
                    if answer(&mut channel, &supervisor.ports) {
                        power::shut_down(kept);
                    }
                }
                number => supervisor.serve_if_called(number)?,
            }
        }
    }
}

impl Supervisor<'_> {
    fn watch(&self, signals: &SignalFd, control: &OwnedFd) -> nix::Result<()> {
        self.epoll.add(signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
        let changes = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(control, EpollEvent::new(changes, u64::from(CONTROL_PORT)))?;
        self.ports.iter().try_for_each(|port| watch_port(&self.epoll, port))
    }

    fn reap_all(&mut self) -> Result<(), SupervisorError> {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return Ok(()),
                Ok(status) => {
                    let ended = status.pid();
                    for port in self.ports.iter_mut().filter(|port| port.session == ended) {
                        port.session = None;
                        // What waits there already makes an event now.
                        watch_port(&self.epoll, port).map_err(SupervisorError::Watch)?;
                    }
                }
            }
        }
    }

    /// Forks a process for the session that calls at the port, and leaves the port to it.
    ///
    /// The driver wakes pollers only for data that no poll has seen. With two of them, one
    /// may sleep over what the other has noticed, so a port has one at any time.
    fn serve_if_called(&mut self, number: u64) -> Result<(), SupervisorError> {
        let port = self.ports.iter_mut().find(|port| u64::from(port.number) == number);
        let Some(port) = port.filter(|port| port.session.is_none() && is_called(&port.file)) else {
            return Ok(());
        };
        self.epoll.delete(&port.file).map_err(SupervisorError::Watch)?;
        // SAFETY: this process has one thread, so that the child may do anything.
        match unsafe { fork() } {
            Ok(ForkResult::Parent { child }) => port.session = Some(child),
            Ok(ForkResult::Child) => serve(port, self.share),
            Err(error) => {
                // The host repeats its greeting, and with it the attempt.
                eprintln!("caisson-machine: start a session on port {number}: {error}");
                watch_port(&self.epoll, port).map_err(SupervisorError::Watch)?;
            }
        }
        Ok(())
    }
}

fn watch_port(epoll: &Epoll, port: &Port) -> nix::Result<()> {
    let changes = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    epoll.add(&port.file, EpollEvent::new(changes, u64::from(port.number)))
}

/// The life of a session's process.
fn serve(port: &Port, share: &HostShare) -> ! {
    drop_stale_names();
    let result = session::serve(port.file.as_fd(), Some(share));
    if let Err(error) = &result {
        eprintln!("caisson-machine: session on port {}: {}", port.number, words(error));
    }
    std::process::exit(i32::from(result.is_err()))
}

fn open_session_port(number: u32) -> Result<Port, SupervisorError> {
    Ok(Port { number, file: open_port(number)?, session: None })
}

/// The ports are `/dev/vport<device>p<number>`, and there is one device.
fn open_port(number: u32) -> Result<OwnedFd, SupervisorError> {
    let suffix = format!("p{number}");
    let entries = fs::read_dir("/dev").map_err(SupervisorError::ListDevices)?;
    let path = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.strip_prefix("vport").is_some_and(|rest| rest.ends_with(&suffix)))
        .map(|name| Path::new("/dev").join(name))
        .ok_or(SupervisorError::NoPort(number))?;
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(&path, flags, Mode::empty()).map_err(|source| SupervisorError::OpenPort { path, source })
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}

/// Whether the host has sent something and is still there. A port without its host counts
/// as readable, with nothing to read.
fn is_called(port: &OwnedFd) -> bool {
    let mut ready = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
    let polled = poll(&mut ready, PollTimeout::ZERO);
    polled.is_ok() && ready[0].revents() == Some(PollFlags::POLLIN)
}

/// Forgets cached names and attributes, so that what the host has changed meanwhile is
/// asked for again. File contents stay cached as long as the host's file is the same.
fn drop_stale_names() {
    // Without it an older file might be seen, no more.
    let _ = fs::write("/proc/sys/vm/drop_caches", "2");
}

/// Answers what has come on the control port; true if the machine shall stop.
fn answer(channel: &mut Channel<'_>, ports: &[Port]) -> bool {
    loop {
        let result = match channel.receive() {
            Ok(Some((session, Frame::Query { time_ns }))) => {
                set_clock(time_ns);
                channel.send(session, &Frame::Ready(ready(ports)))
            }
            Ok(Some((session, Frame::Shutdown))) => {
                // Whether or not the answer is heard, the order was.
                let _ = channel.send(session, &Frame::Stopping);
                let _ = channel.drain(1000);
                return true;
            }
            Ok(Some(_)) => Ok(()),
            Ok(None) => channel.flush().and(Err(ChannelError::Closed)),
            Err(error) => Err(error),
        };
        // Closed, or nothing more for now: the next change makes an event.
        if result.is_err() {
            return false;
        }
    }
}

fn ready(ports: &[Port]) -> Ready {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |field: &str| {
        let line = memory.lines().find(|line| line.starts_with(field));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    };
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: f64 =
        uptime.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0.0);
    Ready {
        version: VERSION,
        kernel: uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        kvm: Path::new("/dev/kvm").exists(),
        sessions: ports.iter().filter(|port| port.session.is_some()).count() as u32,
        uptime_ms: (seconds * 1000.0) as u64,
        memory_kib: kib("MemTotal:"),
        memory_available_kib: kib("MemAvailable:"),
    }
}
