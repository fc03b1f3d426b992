//! Runs a command in the machine as if it ran here: streams, terminal, signals, status.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    thread,
};

use caisson_agent_protocol::{
    ExitStatus,
    machine::{Frame, Hello, Stream, VERSION},
};
use nix::sys::signal::{SigSet, Signal};

use super::{
    connection::{Connection, ConnectionError, Sender},
    control::now_ns,
    directory::MachineDirectory,
    ports::{self, PortError},
    streams::{InputCredit, Output, spawn_input},
    terminal::{self, RawMode},
};

/// Passed on to the process in the machine.
const FORWARDED: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Variables that mean the same in the machine, beside `CAISSON_*` and `LC_*`.
const VARIABLES: [&str; 18] = [
    "CLICOLOR",
    "COLORTERM",
    "COLUMNS",
    "DOCKER_CONFIG",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LINES",
    "LOGNAME",
    "NO_COLOR",
    "PATH",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "SHELL",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
];

#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Port(#[from] PortError),
    #[error("the session in the machine broke off")]
    Connection(#[from] ConnectionError),
    #[error("find the working directory")]
    Workdir(#[source] io::Error),
    #[error("set the terminal up")]
    Terminal(#[source] io::Error),
    #[error("start a thread of the session")]
    Thread(#[source] io::Error),
    #[error("take over signals")]
    Signals(#[source] nix::Error),
}

/// What to run, and how it differs from running it here.
pub(super) struct Request {
    pub(super) argv: Vec<OsString>,
    /// `NAME=value`, added to the variables that are passed on.
    pub(super) env: Vec<OsString>,
    /// `None`: this process's.
    pub(super) workdir: Option<PathBuf>,
    /// What else of the host the command may change; absolute, without links.
    pub(super) shared: Vec<PathBuf>,
    /// A terminal even where this process has none.
    pub(super) force_terminal: bool,
    /// Whether the command gets this process's standard input, or none.
    pub(super) input: bool,
}

/// Runs the command to its end.
pub(super) fn run(
    directory: &MachineDirectory,
    request: Request,
) -> Result<ExitStatus, SessionError> {
    let hello = hello(&request)?;
    let open = ports::open_session(directory, &hello)?;
    let raw = match hello.terminal {
        Some(terminal) if terminal.stdin => RawMode::enter().map_err(SessionError::Terminal)?,
        _ => None,
    };
    let status = Relay::new(open.connection, hello.terminal.is_some())
        .and_then(|relay| relay.run(request.input));
    drop(raw);
    status
}

fn hello(request: &Request) -> Result<Hello, SessionError> {
    let cwd = match &request.workdir {
        Some(path) => std::path::absolute(path).map_err(SessionError::Workdir)?,
        // One that was removed is no reason not to run a container.
        None => std::env::current_dir().unwrap_or_else(|_| "/".into()),
    };
    let passed = std::env::vars_os().filter(|(name, _)| is_passed_on(name));
    let mut env: Vec<OsString> = passed
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            variable
        })
        .collect();
    env.extend(request.env.iter().cloned());
    Ok(Hello {
        version: VERSION,
        argv: request.argv.iter().map(|argument| argument.clone().into()).collect(),
        env: env.into_iter().map(Into::into).collect(),
        cwd: cwd.into_os_string().into(),
        shared: request.shared.iter().map(|path| path.clone().into_os_string().into()).collect(),
        umask: umask(),
        terminal: terminal::wanted(request.force_terminal, request.input),
        time_ns: now_ns(),
    })
}

fn is_passed_on(name: &OsStr) -> bool {
    let prefixes: [&[u8]; 2] = [b"CAISSON_", b"LC_"];
    prefixes.iter().any(|prefix| name.as_bytes().starts_with(prefix))
        || VARIABLES.iter().any(|passed| name == *passed)
}

fn umask() -> u32 {
    let umask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    nix::sys::stat::umask(umask);
    umask.bits()
}

struct Relay {
    connection: Connection,
    input: InputCredit,
    outputs: Vec<(Stream, Output)>,
}

impl Relay {
    fn new(connection: Connection, terminal: bool) -> Result<Self, SessionError> {
        let sender = connection.sender();
        // Before any other thread, which would keep the signals' usual effect.
        spawn_signals(sender.clone(), terminal)?;
        let targets =
            [(Stream::Stdout, 1), (Stream::Stderr, 2), (Stream::Terminal, terminal::output_fd())];
        let outputs = targets
            .into_iter()
            .map(|(stream, fd)| Ok((stream, Output::spawn(stream, fd, sender.clone())?)))
            .collect::<io::Result<_>>()
            .map_err(SessionError::Thread)?;
        Ok(Self { connection, input: InputCredit::new(), outputs })
    }

    /// Starts the command and serves it to its end.
    fn run(self, input: bool) -> Result<ExitStatus, SessionError> {
        self.connection.send(&Frame::Go)?;
        match input {
            true => spawn_input(self.connection.sender(), self.input.clone())
                .map_err(SessionError::Thread)?,
            false => self.connection.send(&Frame::StdinEnd)?,
        }
        self.until_exit()
    }

    fn until_exit(mut self) -> Result<ExitStatus, SessionError> {
        let result = loop {
            match self.connection.receive() {
                Ok(Frame::Output { stream, bytes }) => {
                    let output = self.outputs.iter().find(|(present, _)| *present == stream);
                    if let Some((_, output)) = output {
                        output.show(bytes);
                    }
                }
                Ok(Frame::Credit { stream: Stream::Stdin, bytes }) => self.input.grant(bytes),
                Ok(Frame::StdinClosed) => self.input.close(),
                Ok(Frame::Exit(status)) => break Ok(status),
                Ok(Frame::Refused(why)) => break Err(PortError::Refused(why).into()),
                Ok(_) => {}
                Err(error) => break Err(error.into()),
            }
        };
        for (_, output) in self.outputs {
            output.finish();
        }
        result
    }
}

/// Blocks the signals of a session for good and passes them on by a thread of their own.
fn spawn_signals(sender: Sender, terminal: bool) -> Result<(), SessionError> {
    let mut set: SigSet = FORWARDED.into_iter().collect();
    set.add(Signal::SIGWINCH);
    set.add(Signal::SIGCONT);
    set.thread_block().map_err(SessionError::Signals)?;
    let serve = move || {
        while let Ok(signal) = set.wait() {
            let sent = match signal {
                Signal::SIGWINCH => send_size(&sender),
                Signal::SIGCONT if terminal => {
                    // The shell has had the terminal meanwhile.
                    let _ = terminal::apply_raw();
                    send_size(&sender)
                }
                Signal::SIGCONT => Ok(()),
                other => sender.send(&Frame::Signal(other as u8)),
            };
            if sent.is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("machine-signals".into());
    thread.spawn(serve).map_err(SessionError::Thread)?;
    Ok(())
}

fn send_size(sender: &Sender) -> Result<(), ConnectionError> {
    match terminal::size() {
        Some((columns, rows)) => sender.send(&Frame::Resize { columns, rows }),
        None => Ok(()),
    }
}
