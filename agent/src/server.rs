//! The agent's one loop: whatever is ready, one after the other.

use std::{io, os::fd::OwnedFd};

use caisson_agent_protocol::{Event, FromAgent, PROTOCOL_VERSION, Ready};

use crate::{
    channel::{Channel, ChannelError},
    error::{At, OsError},
    reaper,
    runtime::{Config, Runtime},
    watch::Wake,
};

/// How a server ends.
#[derive(Debug)]
pub enum End {
    /// The shim asked for it.
    Shutdown,
    /// The control channel is of no more use, so nobody can ask for anything.
    ChannelLost(ChannelError),
}

pub struct Server {
    channel: Channel,
    children: OwnedFd,
    runtime: Runtime,
}

impl Server {
    /// Serves over `control`, a connected stream socket. The process must have one
    /// thread: it forks, and blocks SIGCHLD.
    pub fn new(control: OwnedFd, config: Config) -> Result<Self, OsError> {
        let runtime = Runtime::new(config)?;
        set_nonblocking(&control).at(|| "prepare the control channel")?;
        let channel = Channel::new(control);
        let children = reaper::watch_children().at(|| "watch for ended children")?;
        let watch = runtime.watch();
        watch.add(channel.fd(), Wake::Control).at(|| "watch the control channel")?;
        watch.add(&children, Wake::Children).at(|| "watch for ended children")?;
        Ok(Self { channel, children, runtime })
    }

    /// Says that calls are welcome.
    pub fn announce(&mut self) -> Result<(), ChannelError> {
        let kernel = nix::sys::utsname::uname()
            .map(|names| names.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        self.channel.send(&FromAgent::Event(Event::Ready(Ready {
            protocol: PROTOCOL_VERSION,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            kernel,
        })))
    }

    /// Serves until the end.
    pub fn run(&mut self) -> End {
        loop {
            match self.turn() {
                Ok(false) => {}
                Ok(true) => return End::Shutdown,
                Err(error) => return End::ChannelLost(error),
            }
        }
    }

    /// One round of the loop; true after a shutdown was answered.
    fn turn(&mut self) -> Result<bool, ChannelError> {
        let mut control = false;
        for wake in self.runtime.watch().wait(self.runtime.timeout())? {
            match wake {
                Wake::Control => control = true,
                Wake::Children => {
                    reaper::acknowledge(&self.children);
                    self.runtime.handle(wake);
                }
                _ => self.runtime.handle(wake),
            }
        }
        self.runtime.tick();
        if control {
            self.channel.flush()?;
            self.serve_requests()?;
        }
        let done = self.runtime.finish_shutdown();
        self.send()?;
        Ok(done)
    }

    /// Takes requests until none is left. One reply that the socket does not take leaves
    /// the rest for when it does.
    fn serve_requests(&mut self) -> Result<(), ChannelError> {
        loop {
            let more = self.channel.receive()?;
            while let Some(request) = self.channel.next_request()? {
                self.runtime.call(request);
                self.send()?;
            }
            if !more {
                return Ok(());
            }
        }
    }

    fn send(&mut self) -> Result<(), ChannelError> {
        self.runtime.take_messages().iter().try_for_each(|message| self.channel.send(message))
    }

    /// Gives the last reply time to leave before the VM ends: until the shim closes its
    /// side, or a moment.
    pub fn linger(&mut self) {
        use nix::{
            poll::{PollFd, PollFlags, poll},
            sys::socket::{Shutdown, shutdown},
        };
        use std::os::fd::AsRawFd;
        const MOMENT_MS: u16 = 50;
        // Best effort: the shim takes the VM's end for an answer too.
        let _ = self.channel.flush();
        let _ = shutdown(self.channel.fd().as_raw_fd(), Shutdown::Write);
        let _ = poll(&mut [PollFd::new(self.channel.fd(), PollFlags::POLLIN)], MOMENT_MS);
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
