//! What the parent writes to start a server: the file that `--config-fd` names, as JSON.

use serde::{Deserialize, Serialize};

/// The number of an inherited file descriptor.
pub type Fd = i32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A connected Unix socket of type SOCK_SEQPACKET, whose other end the vmm has.
    pub socket: Fd,
    /// The writing end of a pipe: one byte comes through it once the server is confined.
    pub ready: Fd,
    /// The guest sees each by its index here, in decimal, at the root.
    pub shares: Vec<Share>,
    /// Files and directories that the guest knows of or has open (RLIMIT_NOFILE).
    pub max_open_files: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// A directory or a regular file, opened with O_PATH.
    pub source: Fd,
    pub readonly: bool,
    /// With what is mounted below it.
    pub recursive: bool,
}
