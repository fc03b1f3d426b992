//! The command line of `caisson machine`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};

/// Manage the emulated host in which containers run where KVM cannot
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    #[command(subcommand)]
    pub command: MachineCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub enum MachineCommand {
    /// Start the machine and wait until it is ready
    Start(StartArgs),
    /// End the machine; its disk is kept
    Stop(StopArgs),
    /// Show whether the machine runs, and how
    Status(StatusArgs),
    /// Run a command in the machine
    Exec(ExecArgs),
    /// Show the machine's console
    Logs(LogsArgs),
    /// Remove the machine's disk, and with it all images and containers in it
    Rm(RmArgs),
}

#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    /// Number of emulated CPUs; the default is 2, or 1 with --icount
    #[arg(long, value_name = "N", conflicts_with = "icount",
          value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: Option<u32>,

    /// Memory; the default is 4g, or half of this host's if that is less
    #[arg(short, long, value_name = "BYTES", value_parser = parse_size)]
    pub memory: Option<u64>,

    /// Largest size of the machine's disk, for a new one; it is sparse
    #[arg(long, value_name = "BYTES", default_value = "64g", value_parser = parse_size)]
    pub disk_size: u64,

    /// Count instructions: one virtual nanosecond each, on one CPU, for repeatable
    /// measurements
    #[arg(long)]
    pub icount: bool,

    /// Stay and show the console until the machine ends; Ctrl-C ends it
    #[arg(long)]
    pub foreground: bool,
}

impl Default for StartArgs {
    /// What the first use of the machine starts it with.
    fn default() -> Self {
        Self { cpus: None, memory: None, disk_size: 64 << 30, icount: false, foreground: false }
    }
}

#[derive(Args, Clone, Debug)]
pub struct StopArgs {
    /// End it at once, as by pulling the plug
    #[arg(short, long)]
    pub force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Keep standard input open even if it is no terminal (it always is; for docker's sake)
    #[arg(short, long)]
    pub interactive: bool,

    /// Give the command a terminal; without it, it has one where this command has
    #[arg(short, long)]
    pub tty: bool,

    /// Set an environment variable
    #[arg(short, long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<OsString>,

    /// Working directory; default: the same as here
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, default_value = "sh")]
    pub command: Vec<OsString>,
}

#[derive(Args, Clone, Debug)]
pub struct LogsArgs {
    /// Number of lines to show from the end
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub tail: usize,
}

#[derive(Args, Clone, Debug)]
pub struct RmArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// A number of bytes with docker's suffixes: `b`, `k`, `m`, `g`, `t`, powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let without_b = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match without_b.strip_suffix(['k', 'm', 'g', 't']) {
        Some(digits) => (digits, suffix_shift(without_b)),
        None => (without_b, 0),
    };
    let number: u64 =
        digits.trim().parse().map_err(|_| format!("`{text}` is no size such as 512m or 4g"))?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("`{text}` is more bytes than 64 bits can count"))
}

fn suffix_shift(text: &str) -> u32 {
    match text.as_bytes().last() {
        Some(b'k') => 10,
        Some(b'm') => 20,
        Some(b'g') => 30,
        Some(b't') => 40,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_docker_s() {
        for (text, bytes) in [
            ("0", 0),
            ("12b", 12),
            ("1k", 1024),
            ("4G", 4 << 30),
            ("2gib", 2 << 30),
            ("1TB", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "g", "4x", "-1", "1.5g", "99999999999t"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
