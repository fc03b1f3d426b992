//! A VM that can be built: [`VmConfig`](crate::config::VmConfig) with every value in
//! range and every file descriptor owned.

use std::{
    fs::File,
    os::unix::net::{UnixListener, UnixStream},
};

/// One virtio-blk device.
#[derive(Debug)]
pub struct BlockSpec {
    /// At most 20 bytes, ASCII.
    pub serial: String,
    pub readonly: bool,
    /// At least one; regular files, open for reading, and for writing unless `readonly`.
    pub files: Vec<File>,
}

/// virtio-vsock, bridged to Unix sockets.
#[derive(Debug)]
pub struct VsockSpec {
    /// The guest's CID, 3 or more.
    pub cid: u32,
    /// Where the host connects to reach a port of the guest.
    pub listener: UnixListener,
    /// Host ports that the guest may connect to, each number once.
    pub host_ports: Vec<HostPortSpec>,
}

/// A port of the host and the stream behind it.
#[derive(Debug)]
pub struct HostPortSpec {
    pub port: u32,
    pub socket: UnixStream,
}
