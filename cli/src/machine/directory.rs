//! The machine's files: `<state>/machine/` while it runs, `<root>/machine/` for good.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
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
    #[error(
        "{path} belongs to another user or may be written by others, who would have the rights of \
         root by the machine; remove it, or use another directory"
    )]
    NotPrivate { path: PathBuf },
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
                .and_then(|()| fs::metadata(&path))
                .map_err(|source| DirectoryError::Make { path: path.clone(), source })
                .and_then(|metadata| match is_private(&metadata) {
                    true => Ok(()),
                    false => Err(DirectoryError::NotPrivate { path }),
                })?;
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

fn is_private(metadata: &fs::Metadata) -> bool {
    metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o022 == 0
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn directories_are_private_and_one_that_others_write_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path();
        let directory = MachineDirectory { run: path.join("run"), keep: path.join("keep") };
        directory.create().unwrap();
        for made in [&directory.run, &directory.keep, &directory.ports()] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700, "{}", made.display());
        }
        fs::set_permissions(directory.ports(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(directory.create(), Err(DirectoryError::NotPrivate { .. })));
    }
}
