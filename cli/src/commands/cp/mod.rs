//! `cp`: files and directories between a container and this host.
//!
//! The guest does its half of the work itself, by an archive on a stream: this process never
//! looks into the container's disk, and takes what it gets for an archive of anybody's.

mod inward;
mod outward;

use std::{io, path::PathBuf, process::ExitCode};

use clap::Args;

use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    format::units,
    globals::Globals,
};

pub(super) use outward::copy_from_machine;

#[derive(Args, Clone, Debug)]
pub struct CpArgs {
    /// Archive mode (copy all uid/gid information)
    #[arg(short, long)]
    pub archive: bool,

    /// Always follow symbol link in SRC_PATH
    #[arg(short = 'L', long)]
    pub follow_link: bool,

    /// Suppress the report of what was copied
    #[arg(short, long)]
    pub quiet: bool,

    #[arg(value_name = "SRC", required = true, hide = true, allow_hyphen_values = true)]
    pub source: String,

    #[arg(value_name = "DEST", required = true, hide = true, allow_hyphen_values = true)]
    pub destination: String,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CpError {
    #[error("copying between containers is not supported")]
    BetweenContainers,
    #[error("must specify at least one container source")]
    NoContainer,
    #[error("{path}: {}", words(.source))]
    Look { path: PathBuf, source: io::Error },
    #[error("{0}: sockets cannot be copied")]
    Socket(PathBuf),
    #[error("invalid output path: directory {0:?} does not exist")]
    NoParent(PathBuf),
    #[error("the guest sent no archive")]
    Nothing,
}

/// The system's own words, as programs print them.
fn words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// One side of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side<'a> {
    Host(&'a str),
    Container {
        name: &'a str,
        path: &'a str,
    },
    /// `-`: an archive on standard input or output.
    Stream,
}

impl<'a> Side<'a> {
    /// `CONTAINER:PATH`, `-`, or a path of this host; one with a colon is told from a
    /// container by a leading `/` or `.`.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((name, path)) if !text.starts_with(['/', '.']) && !name.is_empty() => {
                Self::Container { name, path }
            }
            _ => Self::Host(text),
        }
    }
}

impl CpArgs {
    pub(super) fn reads_input(&self) -> bool {
        Side::parse(&self.source) == Side::Stream
    }
}

pub(super) fn cp(globals: &Globals, args: &CpArgs) -> CommandResult {
    let (source, destination) = (Side::parse(&args.source), Side::parse(&args.destination));
    match (source, destination) {
        (Side::Container { .. }, Side::Container { .. }) => Err(CpError::BetweenContainers.into()),
        (Side::Container { name, path }, to) => {
            let engine = Engine::open(globals)?;
            let container = engine.records.find(name)?;
            outward::copy(&engine, &container, path, to, args)
        }
        (from, Side::Container { name, path }) => {
            let engine = Engine::open(globals)?;
            let container = engine.records.find(name)?;
            inward::copy(&engine, &container, from, path, args)
        }
        _ => Err(CpError::NoContainer.into()),
    }
}

/// Says what was copied, as Docker does.
fn report(args: &CpArgs, bytes: u64) -> Result<ExitCode, Failure> {
    if !args.quiet {
        let size = units::human_size(bytes);
        let line = format!("Successfully copied {size} to {}\n", args.destination);
        // Where standard error is closed nobody listens.
        let line = crate::format::inert::inert_lines(&line).into_owned();
        let _ = io::Write::write_all(&mut io::stderr(), line.as_bytes());
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts what passes.
struct Counted<T> {
    inner: T,
    bytes: u64,
}

impl<T> Counted<T> {
    fn new(inner: T) -> Self {
        Self { inner, bytes: 0 }
    }
}

impl<T: io::Read> io::Read for Counted<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<T: io::Write> io::Write for Counted<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_names_a_container_and_a_leading_dot_or_slash_a_path() {
        let container = |name, path| Side::Container { name, path };
        let cases = [
            ("web:/etc", container("web", "/etc")),
            ("web:", container("web", "")),
            ("web:a:b", container("web", "a:b")),
            ("-", Side::Stream),
            ("file", Side::Host("file")),
            ("./a:b", Side::Host("./a:b")),
            ("/a:b", Side::Host("/a:b")),
            (":x", Side::Host(":x")),
        ];
        for (text, side) in cases {
            assert_eq!(Side::parse(text), side, "{text}");
        }
    }
}
