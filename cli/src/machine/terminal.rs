//! This process's terminal: which streams are one, its size, raw mode and back.

use std::{
    io::{self, IsTerminal},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use caisson_agent_protocol::machine::Terminal;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// The terminal to make in the machine so that the command finds what this process has.
/// `force` makes the three streams a terminal whatever they are here.
pub(super) fn wanted(force: bool, input: bool) -> Option<Terminal> {
    let stdin = input && (force || io::stdin().is_terminal());
    let stdout = force || io::stdout().is_terminal();
    let stderr = force || io::stderr().is_terminal();
    if !(stdin || stdout || stderr) {
        return None;
    }
    let (columns, rows) = size().unwrap_or((80, 24));
    Some(Terminal { stdin, stdout, stderr, columns, rows })
}

/// Columns and rows of the first stream that is a terminal.
pub(super) fn size() -> Option<(u16, u16)> {
    (0..3).find_map(|fd| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCGWINSZ writes one winsize, which is a local.
        let result = unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &mut size) };
        (result == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    })
}

/// The file descriptor on which the terminal's output is shown.
pub(super) fn output_fd() -> i32 {
    let is_terminal = |fd| {
        // SAFETY: isatty takes a number.
        unsafe { libc::isatty(fd) == 1 }
    };
    [1, 2, 0].into_iter().find(|fd| is_terminal(*fd)).unwrap_or(1)
}

/// What standard input's terminal was set to before [`RawMode`].
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input passes every key on while this lives.
pub(super) struct RawMode;

impl RawMode {
    /// `None`: standard input is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd())?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        // From here on a failure restores by Drop.
        let mode = Self;
        mode.apply()?;
        Ok(Some(mode))
    }

    /// Sets raw mode again, after a stop in which the shell took the terminal back.
    pub(super) fn apply(&self) -> io::Result<()> {
        apply_raw()
    }
}

/// Raw mode again if it is in force.
pub(super) fn apply_raw() -> io::Result<()> {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(mut settings) = before else { return Ok(()) };
    cfmakeraw(&mut settings);
    tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &settings)?;
    Ok(())
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(settings) = before {
            // A terminal that has gone needs no restoring.
            let _ = tcsetattr(io::stdin().as_fd(), SetArg::TCSADRAIN, &settings);
        }
    }
}
