//! A process's standard streams between the engine and the guest.
//!
//! ```text
//!   engine ══ FIFO ══► stdin relay  ══ vsock stream ══► process
//!   engine ◄═ FIFO, file, Docker log ═ output relay ◄═ vsock stream ══ process
//! ```
//!
//! Each relay holds one buffer: a reader that does not drain stops the relay, the
//! stream's credit stops the guest, and memory stays flat.

pub mod json_log;
pub mod log_files;
mod relay;
pub mod rotating_file;
mod target;

use std::{io, path::PathBuf};

pub use relay::{Relays, Streams};
pub use target::Target;

use caisson_agent_protocol::plan::StdioPorts;

#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    #[error("{stream} {uri:?}: {problem}")]
    Invalid { stream: &'static str, uri: String, problem: &'static str },
    #[error("open {} as {stream}", path.display())]
    Open { stream: &'static str, path: PathBuf, source: io::Error },
    #[error("connect the process's {stream} (guest port {port})")]
    Connect { stream: &'static str, port: u32, source: io::Error },
}

/// Where the streams of one process go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StdioSpec {
    /// As the engine gave them, for State.
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The host's ends, open.
#[derive(Debug)]
pub struct OpenStdio {
    stdin: Option<target::Stdin>,
    stdout: Option<target::Sink>,
    stderr: Option<target::Sink>,
}

impl StdioSpec {
    /// Opens the host's ends. Nothing blocks, whoever is or is not on the other side.
    pub fn open(&self) -> Result<OpenStdio, StdioError> {
        let stdin = Target::parse("stdin", &self.stdin)?;
        let stdout = Target::parse("stdout", &self.stdout)?;
        // A terminal has one output.
        let stderr = if self.terminal { None } else { Target::parse("stderr", &self.stderr)? };
        let stdin = stdin.map(|target| target.open_stdin()).transpose()?;
        let same_log = stdout == stderr;
        let stdout = stdout.map(|target| target.open_sink("stdout")).transpose()?;
        let stderr = match (stderr, &stdout) {
            (Some(_), Some(target::Sink::JsonFile(log))) if same_log => {
                Some(target::Sink::JsonFile(log.for_stream("stderr")))
            }
            (stderr, _) => stderr.map(|target| target.open_sink("stderr")).transpose()?,
        };
        Ok(OpenStdio { stdin, stdout, stderr })
    }
}

impl OpenStdio {
    /// Guest ports for the streams that are wanted, from `next` upwards.
    pub fn ports(&self, mut next: impl FnMut() -> u32) -> StdioPorts {
        StdioPorts {
            stdin: self.stdin.is_some().then(&mut next),
            stdout: self.stdout.is_some().then(&mut next),
            stderr: self.stderr.is_some().then(&mut next),
        }
    }
}
