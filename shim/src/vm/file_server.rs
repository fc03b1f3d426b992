//! The process that serves the host's directories to a VM (`caisson-fs`).
//!
//! It is started before the vmm, confines itself while the guest boots, and ends when the
//! vmm's end of the socket does. Where it ends sooner the guest's requests fail (ENOTCONN)
//! and the VM lives.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::Path,
    process::{Child, ExitStatus},
    time::Duration,
};

use caisson_failpoints::{hit, steps};
use caisson_fs::config::{Config, Share};
use caisson_jail::pid_namespace;
use tokio::{
    io::{AsyncReadExt, unix::AsyncFd},
    net::unix::pipe,
    time::timeout,
};

use super::{
    child::{self, Surroundings},
    console::{self, Ring},
    journal::pidfd_open,
};
use crate::{
    kind::ErrorKind,
    sandbox::{LaunchError, SandboxSpec},
};

/// A guest's kernel keeps about a KiB for each file that it knows, the server a descriptor.
const FILES_PER_MIB: u64 = 512;
const MIN_OPEN_FILES: u64 = 64 << 10;
/// What the kernel lets a process have (`fs.nr_open`).
const MAX_OPEN_FILES: u64 = 1 << 20;

/// It does little after its start, but what it does is the disk's and the network's.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How many files the guest of a VM may know or have open.
pub fn max_open_files(memory_mib: u32) -> u64 {
    (u64::from(memory_mib) * FILES_PER_MIB).clamp(MIN_OPEN_FILES, MAX_OPEN_FILES)
}

/// A server that runs; dropping it ends it.
pub(super) struct FileServer {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    complaints: Ring,
}

/// What others are to have of it.
pub(super) struct Started {
    pub(super) server: FileServer,
    /// The vmm's end of the socket.
    pub(super) socket: OwnedFd,
    pub(super) ready: Ready,
}

/// Starts it, inside the cgroups behind `entrances`.
pub(super) fn start(
    program: &Path,
    spec: &SandboxSpec,
    entrances: Vec<File>,
) -> io::Result<Started> {
    let (socket, theirs) = socket_pair()?;
    let (ready, confined) = console::pipe_for_child()?;
    let (stderr, their_stderr) = console::pipe_for_child()?;
    let shares = spec.shares.iter().map(|share| Share {
        source: share.source.as_raw_fd(),
        readonly: share.readonly,
        recursive: share.recursive,
    });
    let config = Config {
        socket: theirs.as_raw_fd(),
        ready: confined.as_raw_fd(),
        shares: shares.collect(),
        max_open_files: max_open_files(spec.size.memory_mib),
    };
    let mut files = vec![config.socket, config.ready];
    files.extend(config.shares.iter().map(|share| share.source));
    let surroundings = Surroundings { entrances, oom_score_adj: spec.oom_score_adj, files };
    let config_file = child::config_file(&config)?;
    let mut command = child::command(program, config_file, their_stderr, surroundings);
    hit(&steps::SHIM_VM_FILE_SERVER)?;
    let child = pid_namespace::spawn(&mut command)?;
    let complaints = Ring::default();
    let server = FileServer::watch(child, complaints.clone())?;
    tokio::spawn(console::drain(stderr, complaints.clone(), None));
    Ok(Started { server, socket, ready: Ready { pipe: ready, complaints } })
}

fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors to `ends`.
    if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made both for us.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

impl FileServer {
    fn watch(mut child: Child, complaints: Ring) -> io::Result<Self> {
        // SAFETY: an OwnedFd is one open descriptor from its making to its drop, and AsyncFd
        // owns it from here on.
        let pidfd =
            pidfd_open(child.id()).and_then(|pidfd| Ok(unsafe { AsyncFd::register(pidfd) }?));
        match pidfd {
            Ok(pidfd) => Ok(Self { child, pidfd, complaints }),
            Err(error) => {
                // Fail only for a process that has ended.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resolves when it has ended by itself.
    pub(super) async fn ended(&self) {
        let _ = self.pidfd.readable().await;
    }

    /// Says in the log that its VM goes on without it.
    pub(super) fn report_end(&mut self) {
        let status = describe(self.child.wait());
        let said = self.complaints.tail();
        log::error!("the file server {status}; the VM's host directories are gone: {said}");
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        // Fail only for a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status.map(|status| (status.signal(), status.code())) {
        Ok((Some(libc::SIGSYS), _)) => "was ended for a forbidden system call (SIGSYS)".to_owned(),
        Ok((Some(signal), _)) => format!("was ended by signal {signal}"),
        Ok((None, Some(code))) => format!("exited with code {code}"),
        Ok((None, None)) | Err(_) => "is gone".to_owned(),
    }
}

/// The server's word that it is confined and serves.
pub(super) struct Ready {
    pipe: pipe::Receiver,
    complaints: Ring,
}

impl Ready {
    pub(super) async fn wait(mut self) -> Result<(), LaunchError> {
        match timeout(READY_WITHIN, self.pipe.read_u8()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => {
                // What it said comes by another pipe, which has ended too.
                tokio::task::yield_now().await;
                Err(failed(format!("the file server did not start: {}", self.complaints.tail())))
            }
            Err(_) => {
                let seconds = READY_WITHIN.as_secs();
                Err(failed(format!("the file server was not ready within {seconds} s")))
            }
        }
    }
}

fn failed(message: String) -> LaunchError {
    LaunchError { kind: ErrorKind::BootFailed, message, source: None }
}
