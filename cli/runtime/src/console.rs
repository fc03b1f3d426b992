//! The host's terminal of a container's process: an engine gets its master side, the
//! keeper has the other one as its own.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use caisson_shim::unix_path;
use nix::{
    libc,
    pty::openpty,
    sys::{
        socket::{ControlMessage, MsgFlags, sendmsg},
        termios::{self, SetArg},
    },
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::error::RuntimeError;

/// Makes a terminal, hands its master to `socket`, and makes the other side this process's
/// standard streams and controlling terminal. The process leads a session.
pub(crate) fn take(socket: &Path) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::Console { path: socket.to_owned(), source };
    let pty = openpty(None, None).map_err(|errno| failed(errno.into()))?;
    // The guest's terminal echoes and edits; this one passes on.
    let mut mode = termios::tcgetattr(&pty.slave).map_err(|errno| failed(errno.into()))?;
    termios::cfmakeraw(&mut mode);
    termios::tcsetattr(&pty.slave, SetArg::TCSANOW, &mode).map_err(|errno| failed(errno.into()))?;
    send(socket, &pty.master).map_err(failed)?;
    make_own(&pty.slave).map_err(failed)
}

/// runc's message: the terminal's name, and the descriptor beside it.
fn send(socket: &Path, master: &OwnedFd) -> io::Result<()> {
    let connection = unix_path::connect(socket)?;
    let name = [IoSlice::new(b"/dev/ptmx")];
    let fds = [master.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(connection.as_raw_fd(), &name, &message, MsgFlags::empty(), None)?;
    Ok(())
}

fn make_own(terminal: &OwnedFd) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes a number, and the descriptor is open.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    dup2_stdin(terminal.as_fd())?;
    dup2_stdout(terminal.as_fd())?;
    dup2_stderr(terminal.as_fd())?;
    Ok(())
}
