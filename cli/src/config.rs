//! A container as its record keeps it: everything that creating and starting it need,
//! already merged from the image and the flags and already checked.

use std::{collections::BTreeMap, path::PathBuf};

use caisson_shim::{network::publish::Port, stdio::rotating_file::Rotation};
use caisson_vmm::config::RateLimit;
use serde::{Deserialize, Serialize};

/// Fields that a later version adds get a serde default, so that old records load.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// As the user named it.
    pub image: String,
    /// `sha256:…` of the image's configuration.
    pub image_id: String,
    /// Files in `<root>/layers`, bottom first. The container's lease keeps them, whatever
    /// becomes of the image's names.
    pub layers: Vec<String>,
    /// What the process is: entry point, then command. At least one.
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    /// `NAME=value`, or `NAME` alone to take an inherited one away.
    pub env: Vec<String>,
    /// Absolute.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty is root.
    pub user: String,
    /// Empty is the short id.
    pub hostname: String,
    pub tty: bool,
    pub open_stdin: bool,
    pub auto_remove: bool,
    pub labels: BTreeMap<String, String>,
    /// A signal's number.
    pub stop_signal: i32,
    pub stop_timeout_secs: Option<u64>,
    pub read_only: bool,
    pub tmpfs: Vec<Tmpfs>,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    pub security: Security,
    pub limits: Limits,
    pub sysctls: BTreeMap<String, String>,
    pub log_driver: LogDriver,
    #[serde(default)]
    pub log_rotation: LogRotation,
    #[serde(default)]
    pub network: Network,
}

/// What the container has beside the loopback interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    #[default]
    None,
    /// A place on Caisson's own bridge, and the ports of the host that lead to it.
    Bridge { ports: Vec<Port> },
    /// What stands in this network namespace of the host.
    Namespace { path: PathBuf },
}

impl Network {
    /// As `--network` takes it.
    pub fn name(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Bridge { .. } => "bridge".to_owned(),
            Self::Namespace { path } => format!("ns:{}", path.display()),
        }
    }

    pub fn ports(&self) -> &[Port] {
        match self {
            Self::Bridge { ports } => ports,
            Self::None | Self::Namespace { .. } => &[],
        }
    }
}

/// How much of the log is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRotation {
    /// Of each file; `None` is unlimited.
    pub max_bytes: Option<u64>,
    /// `None` is 1, as in Docker.
    pub max_files: Option<u32>,
}

impl From<LogRotation> for Rotation {
    fn from(log: LogRotation) -> Self {
        Self { max_bytes: log.max_bytes, max_files: log.max_files.unwrap_or(1) }
    }
}

/// What of the host a container sees at a place of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: MountSource,
    /// Absolute and clean, in the container.
    pub target: String,
    pub readonly: bool,
    /// The options of `--volume` as given; of no other.
    pub mode: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountSource {
    Bind {
        /// Absolute.
        path: String,
        /// With what is mounted below it.
        recursive: bool,
        /// Made as a directory if it is missing.
        create: bool,
    },
    Volume {
        /// Not empty once the container is created.
        name: String,
        /// Nobody has named it, and it may go with the container.
        anonymous: bool,
        /// An empty one gets what the image has in its place.
        copy: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute, in the container.
    pub path: String,
    /// Mount options as given.
    pub options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    pub privileged: bool,
    /// `CAP_…` names, what the process may have.
    pub capabilities: Vec<String>,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// Docker's default profile.
    #[default]
    Default,
    Unconfined,
    /// The text of a profile in Docker's JSON.
    Profile(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub memory_reservation_bytes: Option<u64>,
    /// Memory plus swap; -1 is unlimited.
    pub memory_swap_bytes: Option<i64>,
    pub nano_cpus: Option<u64>,
    pub cpu_shares: Option<u64>,
    pub cpuset_cpus: Option<String>,
    /// `None` is unlimited.
    pub pids: Option<u64>,
    pub shm_bytes: Option<u64>,
    /// Size of the writable disk.
    pub storage_bytes: Option<u64>,
    pub oom_score_adj: Option<i32>,
    pub ulimits: Vec<Ulimit>,
    /// Of all disks of the microVM together.
    #[serde(default)]
    pub disk_limit: RateLimit,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// `nofile` and the like.
    pub name: String,
    /// -1 is unlimited.
    pub soft: i64,
    pub hard: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    #[default]
    JsonFile,
    None,
}

impl ContainerConfig {
    /// The process's argument vector.
    pub fn args(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.command).cloned().collect()
    }

    /// The host name in the container.
    pub fn hostname_or<'a>(&'a self, id: &'a str) -> &'a str {
        if self.hostname.is_empty() { crate::names::short_id(id) } else { &self.hostname }
    }

    /// Whether the container's output is kept for `caisson logs`.
    pub fn keeps_logs(&self) -> bool {
        self.log_driver == LogDriver::JsonFile
    }
}
