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

#[cfg(test)]
mod tests {
    use std::{io::Read, os::unix::net::UnixListener, path::Path, thread};

    use caisson_agent_protocol::machine::{Decoder, VERSION, encode};

    use super::*;

    fn directory(path: &Path) -> MachineDirectory {
        let directory = MachineDirectory { run: path.join("run"), keep: path.join("keep") };
        directory.create().unwrap();
        directory
    }

    fn hello() -> Hello {
        Hello {
            version: VERSION,
            argv: vec!["true".into()],
            env: Vec::new(),
            cwd: "/".into(),
            shared: Vec::new(),
            umask: 0o022,
            terminal: None,
            time_ns: 0,
        }
    }

    /// A port whose other end answers the first greeting with `answer`, or never.
    fn serve(directory: &MachineDirectory, port: u32, answer: Option<Frame>) {
        let path = directory.ports().join(super::super::qemu::socket_name(port));
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut decoder, mut buffer) = (Decoder::new(), [0; 4096]);
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                decoder.push(&buffer[..count], |frame| {
                    if let (Ok((session, Frame::Hello(_))), Some(answer)) = (frame, &answer) {
                        // Something of an earlier session comes first.
                        let stale = encode(session ^ 1, &Frame::Refused("stale".into()));
                        let fresh = encode(session, answer);
                        std::io::Write::write_all(&mut stream, &[stale, fresh].concat()).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn a_port_that_another_process_holds_is_left_to_it() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let first = *SESSION_PORTS.start();
        let _held = try_lock(&directory.ports().join(format!("{first}.lock"))).unwrap().unwrap();
        serve(&directory, first + 1, Some(Frame::Accepted));
        let began = Instant::now();
        open_session(&directory, &hello()).unwrap();
        assert!(began.elapsed() < PORT_LIMIT);
    }

    #[test]
    fn a_silent_port_is_passed_over() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let first = *SESSION_PORTS.start();
        serve(&directory, first, None);
        serve(&directory, first + 1, Some(Frame::Accepted));
        let open = open_session(&directory, &hello()).unwrap();
        // The silent port is free again, the other one is held.
        let lock = |port: u32| try_lock(&directory.ports().join(format!("{port}.lock"))).unwrap();
        assert!(lock(first).is_some() && lock(first + 1).is_none());
        drop(open);
        assert!(lock(first + 1).is_some());
    }

    #[test]
    fn a_refusal_is_told_in_its_words() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        serve(&directory, *SESSION_PORTS.start(), Some(Frame::Refused("too old".into())));
        let Err(error) = open_session(&directory, &hello()) else { panic!("not refused") };
        assert!(error.to_string().contains("too old"), "{error}");
    }

    #[test]
    fn without_its_sockets_the_machine_has_ended() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let Err(error) = open_session(&directory, &hello()) else { panic!("opened") };
        assert!(matches!(error, PortError::Connection(ConnectionError::Ended)), "{error}");
    }

    #[test]
    fn a_socket_s_path_may_be_longer_than_an_address() {
        let temporary = tempfile::tempdir().unwrap();
        let long = temporary.path().join("x".repeat(120));
        let directory = directory(&long);
        let ports = open_ports(&directory).unwrap();
        let port = *SESSION_PORTS.start();
        let short =
            super::super::directory::short_path(&ports, &super::super::qemu::socket_name(port));
        let listener = UnixListener::bind(short).unwrap();
        assert!(Connection::open(&ports, port).is_ok());
        drop(listener);
    }
}
