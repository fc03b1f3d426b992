//! The options that stand before the command, and the directories they name.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

/// Options that hold for every command. After [`Globals::resolved`] the paths are absolute.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Global Options")]
pub struct Globals {
    /// Directory of images and containers
    #[arg(
        long,
        env = "CAISSON_ROOT",
        hide_env = true,
        value_name = "DIR",
        default_value = "/var/lib/caisson"
    )]
    pub root: PathBuf,

    /// Directory of what runs now: bundles, sockets, the machine
    #[arg(
        long,
        env = "CAISSON_STATE",
        hide_env = true,
        value_name = "DIR",
        default_value = "/run/caisson"
    )]
    pub state: PathBuf,

    /// Where containers run: on this host's KVM, in the emulated machine, or wherever they can
    #[arg(
        long,
        env = "CAISSON_ACCEL",
        hide_env = true,
        value_name = "ACCEL",
        default_value = "auto"
    )]
    pub accel: Accel,

    /// Enable debug mode
    #[arg(short = 'D', long)]
    pub debug: bool,

    /// Set the logging level
    #[arg(short, long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: LogLevel,
}

/// Which hypervisor runs the containers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// This host's KVM if it can run guests, the machine otherwise.
    #[default]
    Auto,
    /// This host's KVM, or an error.
    Kvm,
    /// The emulated host (`caisson machine`).
    Machine,
}

impl Accel {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Machine => "machine",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Debug,
    Info,
    #[default]
    Warn,
    Error,
    Fatal,
}

impl LogLevel {
    /// The directive of a `tracing` filter.
    pub fn as_filter(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error | Self::Fatal => "error",
        }
    }
}

impl Globals {
    /// With absolute paths, so that they mean the same to every process that is told them.
    /// They become part of URIs and of JSON, so they must be able to.
    pub fn resolved(mut self) -> std::io::Result<Self> {
        for path in [&mut self.root, &mut self.state] {
            *path = std::path::absolute(&*path)?;
            if path.to_str().is_none_or(|text| text.contains(['?', '\n'])) {
                let words =
                    format!("the directory {} is not UTF-8, or holds a `?`", path.display());
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, words));
            }
        }
        Ok(self)
    }

    /// What a tracing filter is made of: `--debug` wins.
    pub fn log_filter(&self) -> &'static str {
        if self.debug { "debug" } else { self.log_level.as_filter() }
    }

    /// `<root>/caisson.db`.
    pub fn database(&self) -> PathBuf {
        self.root.join("caisson.db")
    }

    /// The writable disk, the log and the like of one container.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// The directory of all volumes.
    pub fn volumes_dir(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The OCI bundle of one container.
    pub fn bundle_dir(&self, id: &str) -> PathBuf {
        self.state.join("bundles").join(id)
    }

    /// The socket on which a container's shim serves.
    pub fn shim_socket(&self, id: &str) -> PathBuf {
        self.state.join("shims").join(format!("{id}.sock"))
    }

    /// The arguments that give another `caisson` the same options.
    pub fn to_args(&self) -> Vec<std::ffi::OsString> {
        let path = |flag: &str, path: &Path| [flag.into(), path.as_os_str().to_owned()];
        let mut args = Vec::new();
        args.extend(path("--root", &self.root));
        args.extend(path("--state", &self.state));
        args.extend(["--accel".into(), self.accel.as_str().into()]);
        if self.debug {
            args.push("--debug".into());
        }
        args
    }
}

#[cfg(test)]
impl Globals {
    /// With everything beneath one directory.
    pub(crate) fn sample(directory: &Path) -> Self {
        Self {
            root: directory.join("root"),
            state: directory.join("state"),
            accel: Accel::Auto,
            debug: false,
            log_level: LogLevel::Warn,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct OnlyGlobals {
        #[command(flatten)]
        globals: Globals,
    }

    fn parse(args: &[&str]) -> Globals {
        OnlyGlobals::parse_from([&["caisson"], args].concat()).globals
    }

    #[test]
    fn arguments_for_another_process_mean_the_same() {
        let globals = parse(&["--root", "/r", "--state", "/s", "--accel", "machine", "-D"]);
        let again =
            OnlyGlobals::parse_from(std::iter::once("caisson".into()).chain(globals.to_args()));
        assert_eq!(globals, again.globals);
    }

    #[test]
    fn relative_directories_become_absolute() {
        let globals = parse(&["--root", "r"]).resolved().expect("a working directory");
        assert!(globals.root.is_absolute() && globals.root.ends_with("r"));
        assert!(parse(&["--state", "/a?b"]).resolved().is_err());
    }

    #[test]
    fn debug_wins_over_the_level() {
        assert_eq!(parse(&["-D", "-l", "error"]).log_filter(), "debug");
        assert_eq!(parse(&["-l", "fatal"]).log_filter(), "error");
    }
}
