//! The caller's terminal: its mode and its size.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Mutex,
};

use nix::{
    libc,
    sys::termios::{self, SetArg, Termios},
};

use super::AttachError;

/// The mode to go back to, where every way out of the process finds it.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode of the terminal on standard input, while it lives.
pub struct RawMode(());

impl RawMode {
    pub fn enter() -> Result<Self, AttachError> {
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin).map_err(AttachError::Terminal)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        *lock() = Some(before);
        // The release profile aborts on a panic, without running any drop.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        let mode = Self(());
        termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &raw).map_err(AttachError::Terminal)?;
        Ok(mode)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, if it was changed. Any number of times.
pub fn restore() {
    if let Some(before) = lock().take() {
        // Nothing better can be done about a terminal that went away.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &before);
    }
}

fn lock() -> std::sync::MutexGuard<'static, Option<Termios>> {
    SAVED.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `(columns, rows)` of the terminal on standard output, or else on input.
pub fn size() -> Option<(u16, u16)> {
    size_of(io::stdout().as_fd()).or_else(|| size_of(io::stdin().as_fd()))
}

fn size_of(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    use std::os::fd::AsRawFd;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which `size` is.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    (result == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
