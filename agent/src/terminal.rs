//! The pty of a process, from the container's own devpts, so that its name means the same
//! inside.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use caisson_agent_protocol::plan::TerminalSize;
use nix::fcntl::OFlag;

use crate::{
    devices::is_device,
    error::{At, OsError},
    path::{PathError, Root},
    stdio::set_size,
    sys,
};

/// Both ends of a pty.
pub struct Pty {
    pub master: OwnedFd,
    pub process: OwnedFd,
    /// `/dev/pts/<index>` in the container.
    index: u32,
}

/// Opens a new pty of the devpts at `/dev/pts`.
pub fn open(root: &Root, size: TerminalSize) -> Result<Pty, OsError> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    let master = root
        .open("/dev/pts/ptmx", flags)
        .at(|| "open /dev/pts/ptmx; a terminal needs a devpts mounted on /dev/pts")?;
    // A running container may have put anything there.
    if !is_device(&master, 5, 2)? {
        let odd = std::io::Error::from_raw_os_error(libc::ENOTTY);
        return Err(OsError::new("open a terminal: /dev/pts/ptmx is no ptmx device", odd));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: the argument is a whole int that outlives the call.
    sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })
        .at(|| "unlock the terminal")?;
    let mut index: libc::c_uint = 0;
    // SAFETY: the argument is a whole unsigned int that outlives the call.
    sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut index) })
        .at(|| "ask for the terminal's number")?;
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: no pointers; the result is a new descriptor.
    let process =
        sys::check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) })
            .at(|| "open the process's end of the terminal")?;
    // SAFETY: a new descriptor that nobody else owns.
    let process = unsafe { OwnedFd::from_raw_fd(process as i32) };
    set_size(master.as_fd(), size).at(|| "set the terminal's size")?;
    Ok(Pty { master, process, index })
}

impl Pty {
    /// Binds the process's end over the container's `/dev/console`.
    pub fn bind_console(&self, root: &Root) -> Result<(), PathError> {
        let target = root.make_file("/dev/console")?;
        let name = format!("/dev/pts/{}", self.index);
        let source = root.open(&name, OFlag::O_PATH).at(|| format!("open {name}"))?;
        let bind = || {
            let tree = sys::clone_tree(source.as_fd(), false)?;
            sys::attach(tree.as_fd(), target.as_fd())
        };
        Ok(bind().at(|| "bind /dev/console")?)
    }
}

/// Makes `terminal` the controlling terminal of this session.
pub fn take_control(terminal: &impl AsRawFd) -> Result<(), OsError> {
    // SAFETY: no pointers.
    sys::check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })
        .at(|| "take the terminal as controlling terminal")
        .map(drop)
}
