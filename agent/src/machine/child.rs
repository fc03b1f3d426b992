//! Starts a session's process with the streams that the host asks for.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
};

use caisson_agent_protocol::machine::{Hello, Stream, Terminal};
use nix::{
    fcntl::OFlag,
    libc,
    pty::{Winsize, openpty},
    sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr},
    unistd::pipe2,
};

use super::channel::set_nonblocking;

#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    #[error("the command is empty")]
    NoCommand,
    #[error("make the streams of the process")]
    Streams(#[source] io::Error),
    /// The command itself is at fault: the session ends with the shell's code for it.
    #[error("{program}")]
    Execute { program: String, source: io::Error },
    #[error("watch the process")]
    Watch(#[source] io::Error),
}

impl ChildError {
    /// 127: not found; 126: found but not executable; 125: neither's fault.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            Self::Execute { .. } => 126,
            _ => 125,
        }
    }
}

/// A running process and our ends of its streams, none of which blocks.
pub(super) struct Child {
    pub(super) pid: i32,
    /// Readable when the process has ended.
    pub(super) pidfd: OwnedFd,
    /// `None`: the terminal takes the input.
    pub(super) stdin: Option<File>,
    pub(super) outputs: Vec<(Stream, File)>,
    pub(super) terminal: Option<File>,
}

/// Starts `hello.argv` in a session of its own, in this process's working directory.
pub(super) fn start(hello: &Hello) -> Result<Child, ChildError> {
    let (program, arguments) = hello.argv.split_first().ok_or(ChildError::NoCommand)?;
    let mut command = Command::new(program.as_os_str());
    command.args(arguments.iter().map(|text| text.as_os_str())).env_clear();
    command.envs(hello.env.iter().filter_map(|text| split_variable(text.as_os_str())));
    let ends = streams(&mut command, hello.terminal).map_err(ChildError::Streams)?;
    let controlling = hello.terminal.map(|terminal| match terminal {
        Terminal { stdin: true, .. } => 0,
        Terminal { stdout: true, .. } => 1,
        _ => 2,
    });
    let umask = hello.umask & 0o777;
    // SAFETY: between fork and exec only async-signal-safe calls are made, on values that
    // were copied in; this process has one thread.
    unsafe { command.pre_exec(move || prepare(controlling, umask)) };
    let mut process = command.spawn().map_err(|source| ChildError::Execute {
        program: program.as_os_str().to_string_lossy().into(),
        source,
    })?;
    let pid = process.id() as i32;
    let pidfd = open_pidfd(pid).map_err(|error| {
        let _ = process.kill();
        ChildError::Watch(error)
    })?;
    Ok(Child { pid, pidfd, stdin: ends.stdin, outputs: ends.outputs, terminal: ends.terminal })
}

fn split_variable(text: &std::ffi::OsStr) -> Option<(&std::ffi::OsStr, &std::ffi::OsStr)> {
    use std::os::unix::ffi::OsStrExt;
    let bytes = text.as_bytes();
    let equals = bytes.iter().position(|byte| *byte == b'=').filter(|at| *at > 0)?;
    let (name, value) = (&bytes[..equals], &bytes[equals + 1..]);
    Some((std::ffi::OsStr::from_bytes(name), std::ffi::OsStr::from_bytes(value)))
}

/// In the child, before it executes the program.
fn prepare(controlling: Option<i32>, umask: u32) -> io::Result<()> {
    // SAFETY: plain system calls that touch no memory of ours, but for the signal set,
    // which is a local that sigemptyset initialises.
    unsafe {
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        if let Some(fd) = controlling
            && libc::ioctl(fd, libc::TIOCSCTTY, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
        libc::umask(umask);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

#[derive(Default)]
struct Ends {
    stdin: Option<File>,
    outputs: Vec<(Stream, File)>,
    terminal: Option<File>,
}

/// Gives `command` the terminal or a pipe as each stream and returns the other ends.
fn streams(command: &mut Command, terminal: Option<Terminal>) -> io::Result<Ends> {
    let mut ends = Ends::default();
    let user_side = match terminal {
        Some(terminal) => {
            let (ours, theirs) = open_terminal(terminal)?;
            ends.outputs.push((Stream::Terminal, ours.try_clone()?));
            ends.terminal = Some(ours);
            Some(theirs)
        }
        None => None,
    };
    let on_terminal = |wanted: fn(Terminal) -> bool| {
        user_side
            .as_ref()
            .filter(|_| terminal.is_some_and(wanted))
            .map(OwnedFd::try_clone)
            .transpose()
    };
    match on_terminal(|terminal| terminal.stdin)? {
        Some(side) => command.stdin(side),
        None => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            ends.stdin = Some(nonblocking(write)?);
            command.stdin(Stdio::from(read))
        }
    };
    let mut output = |stream, side: Option<OwnedFd>| -> io::Result<Stdio> {
        if let Some(side) = side {
            return Ok(side.into());
        }
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        ends.outputs.push((stream, nonblocking(read)?));
        Ok(write.into())
    };
    let stdout = output(Stream::Stdout, on_terminal(|terminal| terminal.stdout)?)?;
    let stderr = output(Stream::Stderr, on_terminal(|terminal| terminal.stderr)?)?;
    command.stdout(stdout).stderr(stderr);
    Ok(ends)
}

/// Our side and the user's side of a new terminal.
fn open_terminal(terminal: Terminal) -> io::Result<(File, OwnedFd)> {
    let size =
        Winsize { ws_col: terminal.columns, ws_row: terminal.rows, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None)?;
    for side in [&pty.master, &pty.slave] {
        set_close_on_exec(side)?;
    }
    if !terminal.stdin {
        // The host's terminal is not raw then and turns newlines by itself.
        let mut settings = tcgetattr(&pty.slave)?;
        settings.output_flags.remove(OutputFlags::OPOST);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
    }
    Ok((nonblocking(pty.master)?, pty.slave))
}

fn nonblocking(fd: OwnedFd) -> io::Result<File> {
    set_nonblocking(&fd)?;
    Ok(File::from(fd))
}

fn set_close_on_exec(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFD touches no memory; the descriptor is open.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
