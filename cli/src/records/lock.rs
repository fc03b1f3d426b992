//! Locks of single containers, as bytes of one file.
//!
//! An open-file-description lock ends with its process, whatever end that is: a lock that
//! can be had means that no process tends the container. Two bytes for each container:
//! one for changing it, which is short, and one for watching it, which lasts while it runs.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("open the lock file {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("lock a container in {path}")]
    Lock { path: PathBuf, source: Errno },
}

/// What a process locks a container for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Creating, starting, ending, removing.
    Change,
    /// Waiting for its end and recording it.
    Watch,
}

/// The file.
pub struct LockFile {
    path: PathBuf,
}

/// A lock held while it lives.
#[derive(Debug)]
pub struct ContainerLock {
    _file: File,
}

impl LockFile {
    pub fn open(root: &Path) -> Result<Self, LockError> {
        let locks = Self { path: root.join("containers.lock") };
        locks.file()?;
        Ok(locks)
    }

    /// Waits until the lock is free.
    pub fn lock(&self, number: i64, purpose: Purpose) -> Result<ContainerLock, LockError> {
        let file = self.file()?;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&byte(number, purpose))) {
                Ok(_) => return Ok(ContainerLock { _file: file }),
                Err(Errno::EINTR) => {}
                Err(source) => return Err(self.failed(source)),
            }
        }
    }

    /// `None` while another process holds it.
    pub fn try_lock(
        &self,
        number: i64,
        purpose: Purpose,
    ) -> Result<Option<ContainerLock>, LockError> {
        let file = self.file()?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&byte(number, purpose))) {
            Ok(_) => Ok(Some(ContainerLock { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// A description of its own, as the lock belongs to it.
    fn file(&self) -> Result<File, LockError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.path)
            .map_err(|source| LockError::Open { path: self.path.clone(), source })
    }

    fn failed(&self, source: Errno) -> LockError {
        LockError::Lock { path: self.path.clone(), source }
    }
}

/// The byte that stands for the container; the file need not be that long.
fn byte(number: i64, purpose: Purpose) -> libc::flock {
    let offset = match purpose {
        Purpose::Change => 0,
        Purpose::Watch => 1,
    };
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number.saturating_mul(2).saturating_add(offset),
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_for_each_container_and_purpose() {
        let root = tempfile::tempdir().unwrap();
        let locks = LockFile::open(root.path()).unwrap();
        let held = locks.lock(7, Purpose::Change).unwrap();
        assert!(locks.try_lock(7, Purpose::Change).unwrap().is_none());
        assert!(locks.try_lock(7, Purpose::Watch).unwrap().is_some());
        assert!(locks.try_lock(6, Purpose::Watch).unwrap().is_some());
        assert!(locks.try_lock(8, Purpose::Change).unwrap().is_some());
        drop(held);
        assert!(locks.try_lock(7, Purpose::Change).unwrap().is_some());
    }

    #[test]
    fn a_waiter_gets_it_when_the_holder_lets_go() {
        let root = tempfile::tempdir().unwrap();
        let locks = LockFile::open(root.path()).unwrap();
        let held = locks.lock(1, Purpose::Change).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| locks.lock(1, Purpose::Change).unwrap());
            drop(held);
            waiter.join().unwrap();
        });
    }
}
