//! The machine's files: `<state>/machine/` while it runs, `<root>/machine/` for good.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use crate::Globals;

#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    #[error(
        "make the directory {path}; `caisson machine` must run as root, or with a --root and --state of your own"
    )]
    Make { path: PathBuf, source: io::Error },
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: nix::Error },
}

/// The paths of one machine.
#[derive(Clone, Debug)]
pub(super) struct MachineDirectory {
    /// `<state>/machine`
    pub(super) run: PathBuf,
    /// `<root>/machine`
    pub(super) keep: PathBuf,
}

impl MachineDirectory {
    pub(super) fn new(globals: &Globals) -> Self {
        Self { run: globals.state.join("machine"), keep: globals.root.join("machine") }
    }

    /// Makes the directories. They are for root alone: a port gives root in the machine,
    /// and by the shared working directory on the host.
    pub(super) fn create(&self) -> Result<(), DirectoryError> {
        for path in [self.run.clone(), self.keep.clone(), self.ports()] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(|source| DirectoryError::Make { path, source })?;
        }
        Ok(())
    }

    /// Held by the running QEMU, with its process id as content.
    pub(super) fn alive_lock(&self) -> PathBuf {
        self.run.join("qemu.lock")
    }

    /// Held by whoever starts or stops the machine.
    pub(super) fn change_lock(&self) -> PathBuf {
        self.run.join("change.lock")
    }

    /// What the machine was started with.
    pub(super) fn record(&self) -> PathBuf {
        self.run.join("machine.json")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.run.join("console.log")
    }

    pub(super) fn qemu_log(&self) -> PathBuf {
        self.run.join("qemu.log")
    }

    pub(super) fn ports(&self) -> PathBuf {
        self.run.join("ports")
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.keep.join("state.img")
    }

    /// Held by whoever uses the disk.
    pub(super) fn disk_lock(&self) -> PathBuf {
        self.keep.join("disk.lock")
    }

    /// Waits until no other process starts or stops the machine.
    pub(super) fn lock_changes(&self) -> Result<Flock<File>, DirectoryError> {
        lock(&self.change_lock(), FlockArg::LockExclusive)
    }
}

pub(super) fn open_private(path: &Path) -> Result<File, DirectoryError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|source| DirectoryError::Open { path: path.into(), source })
}

fn lock(path: &Path, how: FlockArg) -> Result<Flock<File>, DirectoryError> {
    Flock::lock(open_private(path)?, how)
        .map_err(|(_, source)| DirectoryError::Lock { path: path.into(), source })
}

/// Takes the lock if it is free.
pub(super) fn try_lock(path: &Path) -> Result<Option<Flock<File>>, DirectoryError> {
    match Flock::lock(open_private(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, source)) => Err(DirectoryError::Lock { path: path.into(), source }),
    }
}

/// A path by which a socket in `directory` can be named however long the directory's own
/// path is: an address holds 107 bytes.
pub(super) fn short_path(directory: &impl AsFd, name: &str) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_fd().as_raw_fd()))
}
