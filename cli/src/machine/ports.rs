//! Finds a free port of the machine and opens a session on it.

use std::{
    fs::File,
    time::{Duration, Instant},
};

use caisson_agent_protocol::machine::{Frame, Hello, SESSION_PORTS};
use nix::fcntl::Flock;

use super::{
    connection::{Connection, ConnectionError},
    control::open_ports,
    directory::{DirectoryError, MachineDirectory, try_lock},
};

/// A port that does not answer within this is left aside.
const PORT_LIMIT: Duration = Duration::from_secs(4);
/// How often the greeting is repeated: the port may still be busy ending its predecessor.
const REPEAT: Duration = Duration::from_millis(400);
/// How long to look for a port in all.
const TOTAL_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub(super) enum PortError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("the machine refuses the command: {0}")]
    Refused(String),
    #[error("all {count} ports of the machine are busy; it runs that many commands at a time")]
    Busy { count: usize },
    #[error(
        "the machine does not answer; `caisson machine logs` shows its console, `caisson machine stop --force` ends it"
    )]
    Silent,
}

/// A session that the machine has accepted. Nothing runs before `Go`.
pub(super) struct OpenSession {
    pub(super) connection: Connection,
    /// Keeps the port for this process.
    _lock: Flock<File>,
}

/// Greets on free ports until one accepts.
pub(super) fn open_session(
    directory: &MachineDirectory,
    hello: &Hello,
) -> Result<OpenSession, PortError> {
    let ports = open_ports(directory)?;
    let greeting = Frame::Hello(Box::new(hello.clone()));
    let deadline = Instant::now() + TOTAL_LIMIT;
    loop {
        let mut tried = 0;
        for port in SESSION_PORTS {
            let path = directory.ports().join(format!("{port}.lock"));
            let Some(lock) = try_lock(&path)? else { continue };
            tried += 1;
            let mut connection = Connection::open(&ports, port)?;
            if greet(&mut connection, &greeting)? {
                return Ok(OpenSession { connection, _lock: lock });
            }
            if Instant::now() > deadline {
                return Err(PortError::Silent);
            }
        }
        if tried == 0 {
            if Instant::now() > deadline {
                return Err(PortError::Busy { count: SESSION_PORTS.count() });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Whether the machine accepts on this port.
fn greet(connection: &mut Connection, greeting: &Frame) -> Result<bool, PortError> {
    let deadline = Instant::now() + PORT_LIMIT;
    while Instant::now() < deadline {
        connection.send(greeting)?;
        match connection.receive_within(REPEAT)? {
            Some(Frame::Accepted) => return Ok(true),
            Some(Frame::Refused(why)) => return Err(PortError::Refused(why)),
            _ => {}
        }
    }
    Ok(false)
}
