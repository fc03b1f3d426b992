//! The file server of one VM: FUSE messages in, host directories behind.
//!
//! ```text
//! shim ── config, socket, directories ──► caisson-fs: tree ► jail ► ready ► filter ► serve
//! vmm  ◄═══════ FUSE messages ═══════════►    (one socket, inherited)
//! ```
//!
//! Whatever comes over the socket is the guest's. What the server may reach is decided before
//! the first message is read: its root holds the shares and nothing else, and a share that is
//! read-only is so by the host's kernel.

pub mod config;
mod confine;
mod filter;
mod serve;
mod tree;

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use caisson_jail::JailError;

use self::config::Config;

#[derive(Debug, thiserror::Error)]
pub enum FsError {
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error("{step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("the server must be started as the first process of a pid namespace")]
    NotFirst,
    #[error("make the system call filter")]
    Compile(#[from] seccompiler::BackendError),
    #[error("install the system call filter")]
    Filter(#[from] seccompiler::Error),
}

/// Confines the process to the shares of `config` and serves them until the socket's other
/// end is closed.
///
/// # Safety
/// The descriptors that `config` names are this process's own, and nothing else uses them.
pub unsafe fn run(config: &Config) -> Result<(), FsError> {
    if !caisson_jail::pid_namespace::is_first() {
        return Err(FsError::NotFirst);
    }
    // SAFETY: as the caller says.
    let socket = unsafe { OwnedFd::from_raw_fd(config.socket) };
    // SAFETY: as the caller says.
    let ready = unsafe { OwnedFd::from_raw_fd(config.ready) };
    let trees = tree::clone_shares(&config.shares)?;
    confine::leave_host(&[&socket, &ready], &trees)?;
    tree::become_root(trees)?;
    let server = serve::Server::new()?;
    confine::drop_rights(config.max_open_files)?;
    tell(ready)?;
    server.run(socket.as_raw_fd())
}

/// Tells the parent that all is well; whoever has gone meanwhile needs no answer.
fn tell(ready: OwnedFd) -> Result<(), FsError> {
    File::from(ready)
        .write_all(b"\n")
        .map_err(|source| FsError::Step { step: "tell that the server is ready", source })
}

fn check(step: &'static str, result: impl Into<i64>) -> Result<(), FsError> {
    if result.into() == -1 {
        return Err(FsError::Step { step, source: io::Error::last_os_error() });
    }
    Ok(())
}
