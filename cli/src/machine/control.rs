//! The control port: is the machine ready, and the order to stop.

use std::{
    fs::File,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use caisson_agent_protocol::machine::{CONTROL_PORT, Frame, Ready};
use nix::fcntl::{Flock, FlockArg};

use super::{
    connection::{Connection, ConnectionError},
    directory::{DirectoryError, MachineDirectory, open_private},
};

#[derive(Debug, thiserror::Error)]
pub(super) enum ControlError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("the machine does not answer")]
    Silent,
}

/// The control port, of which this process has the only connection.
pub(super) struct Control {
    connection: Connection,
    _lock: Flock<File>,
}

impl Control {
    pub(super) fn open(directory: &MachineDirectory) -> Result<Self, ControlError> {
        let path = directory.ports().join("control.lock");
        let lock = Flock::lock(open_private(&path)?, FlockArg::LockExclusive)
            .map_err(|(_, source)| DirectoryError::Lock { path, source })?;
        let ports = open_ports(directory)?;
        Ok(Self { connection: Connection::open(&ports, CONTROL_PORT)?, _lock: lock })
    }

    /// Asks; the answer comes by [`Control::answer`].
    pub(super) fn query(&self) -> Result<(), ControlError> {
        Ok(self.connection.send(&Frame::Query { time_ns: now_ns() })?)
    }

    /// The answer to a query, if it comes within `limit`.
    pub(super) fn answer(&mut self, limit: Duration) -> Result<Option<Ready>, ControlError> {
        match self.connection.receive_within(limit)? {
            Some(Frame::Ready(ready)) => Ok(Some(ready)),
            _ => Ok(None),
        }
    }

    /// Orders the shutdown and waits until it is heard.
    pub(super) fn shut_down(&mut self, limit: Duration) -> Result<(), ControlError> {
        self.connection.send(&Frame::Shutdown)?;
        match self.connection.receive_within(limit) {
            Ok(Some(Frame::Stopping)) | Err(ConnectionError::Ended) => Ok(()),
            Ok(_) => Err(ControlError::Silent),
            Err(error) => Err(error.into()),
        }
    }
}

pub(super) fn open_ports(directory: &MachineDirectory) -> Result<File, DirectoryError> {
    let path = directory.ports();
    File::open(&path).map_err(|source| DirectoryError::Open { path, source })
}

/// CLOCK_REALTIME in nanoseconds.
pub(super) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
