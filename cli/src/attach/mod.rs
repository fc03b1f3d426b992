//! This process's streams, terminal and signals, lent to a process in a container.
//!
//! ```text
//!   stdin  ──► [detach keys] ──► FIFO ──► shim ══► process
//!   stdout ◄── [log] ◄───────── FIFO ◄── shim ◄══ process
//!   signals, window size ─────── calls ──► shim
//! ```

pub mod detach_keys;
pub mod drain;
pub mod fifo;
pub mod input;
pub mod log_writer;
pub mod output;
pub mod session;
pub mod signals;
pub mod tty;

use std::{io, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("open the FIFO {path}")]
    Fifo { path: PathBuf, source: io::Error },
    #[error("take over signals")]
    Signals(#[source] io::Error),
    #[error("start a thread for {what}")]
    Thread { what: &'static str, source: io::Error },
    #[error("set the terminal's mode")]
    Terminal(#[source] nix::errno::Errno),
    #[error("open the log {path}")]
    Log { path: PathBuf, source: io::Error },
    #[error("make a pipe")]
    Pipe(#[source] io::Error),
    #[error("the input device is not a TTY")]
    NotATerminal,
}
