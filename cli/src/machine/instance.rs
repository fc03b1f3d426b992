//! Whether a machine runs, which process it is, and what it was started with.
//!
//! QEMU inherits a locked file, so the lock is free exactly when QEMU has ended, whoever
//! has started it and however it ended. The file holds the process id.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use serde::{Deserialize, Serialize};

use super::directory::{DirectoryError, MachineDirectory, try_lock};

#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged; `caisson machine stop --force` clears it")]
    Record { path: PathBuf, source: serde_json::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("{path} names no process")]
    NoProcess { path: PathBuf },
    #[error("signal the machine's process {pid}")]
    Signal { pid: i32, source: io::Error },
}

/// `machine.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) root: PathBuf,
    pub(super) cpus: u32,
    pub(super) memory_bytes: u64,
    pub(super) icount: bool,
    /// Seconds since 1970.
    pub(super) started: u64,
    /// The machine has answered.
    pub(super) ready: bool,
}

impl Record {
    pub(super) fn read(directory: &MachineDirectory) -> Result<Option<Self>, InstanceError> {
        let path = directory.record();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(InstanceError::Read { path, source }),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| InstanceError::Record { path, source })
    }

    pub(super) fn write(&self, directory: &MachineDirectory) -> Result<(), InstanceError> {
        let path = directory.record();
        let partial = path.with_extension("partial");
        let text = serde_json::to_vec_pretty(self).expect("a record has only plain fields");
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .map_err(|source| InstanceError::Write { path, source })
    }
}

/// Whether a machine runs that uses this directory.
pub(super) fn is_running(directory: &MachineDirectory) -> Result<bool, InstanceError> {
    if !directory.alive_lock().exists() {
        return Ok(false);
    }
    Ok(try_lock(&directory.alive_lock())?.is_none())
}

/// The machine's QEMU. Its number cannot come to mean another process.
pub(super) struct Process {
    pub(super) pid: i32,
    handle: OwnedFd,
}

impl Process {
    /// `None`: it does not run.
    pub(super) fn find(directory: &MachineDirectory) -> Result<Option<Self>, InstanceError> {
        if !is_running(directory)? {
            return Ok(None);
        }
        let path = directory.alive_lock();
        let text = fs::read_to_string(&path)
            .map_err(|source| InstanceError::Read { path: path.clone(), source })?;
        let pid: i32 = text
            .trim()
            .parse()
            .ok()
            .filter(|pid| *pid > 1)
            .ok_or(InstanceError::NoProcess { path })?;
        let Some(handle) = open_pidfd(pid)? else { return Ok(None) };
        // Still locked, so what was opened in between is the process that holds the lock.
        Ok(is_running(directory)?.then_some(Self { pid, handle }))
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<(), InstanceError> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: pidfd_send_signal takes an open descriptor, a number and an optional
        // pointer, here null.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.handle.as_raw_fd(),
                signal as i32,
                none,
                0,
            )
        };
        let error = io::Error::last_os_error();
        match result {
            0 => Ok(()),
            _ if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            _ => Err(InstanceError::Signal { pid: self.pid, source: error }),
        }
    }

    /// Waits for its end; false when `limit` passes first.
    pub(super) fn wait(&self, limit: Duration) -> bool {
        use std::os::fd::AsFd;
        let mut ended = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        matches!(poll(&mut ended, limit), Ok(count) if count > 0)
    }
}

fn open_pidfd(pid: i32) -> Result<Option<OwnedFd>, InstanceError> {
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(None),
            _ => Err(InstanceError::Signal { pid, source: error }),
        };
    }
    // SAFETY: the call has returned a new descriptor that nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

#[cfg(test)]
mod tests {
    use std::{path::Path, process::Command};

    use super::*;

    fn directory(path: &Path) -> MachineDirectory {
        let directory = MachineDirectory { run: path.join("run"), keep: path.join("keep") };
        directory.create().unwrap();
        directory
    }

    fn record() -> Record {
        Record {
            root: "/r".into(),
            cpus: 2,
            memory_bytes: 1 << 30,
            icount: false,
            started: 1,
            ready: true,
        }
    }

    #[test]
    fn a_record_is_read_as_written_and_damage_names_the_way_out() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        assert_eq!(Record::read(&directory).unwrap(), None);
        record().write(&directory).unwrap();
        assert_eq!(Record::read(&directory).unwrap(), Some(record()));
        fs::write(directory.record(), "{").unwrap();
        let error = Record::read(&directory).unwrap_err().to_string();
        assert!(error.contains("machine stop --force"), "{error}");
    }

    #[test]
    fn a_number_without_its_lock_is_no_machine() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        assert!(!is_running(&directory).unwrap());
        // A stale number, here of a process that is not ours to signal.
        fs::write(directory.alive_lock(), "1\n").unwrap();
        assert!(Process::find(&directory).unwrap().is_none());
    }

    #[test]
    fn the_holder_of_the_lock_is_found_signalled_and_awaited() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let lock = try_lock(&directory.alive_lock()).unwrap().unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(directory.alive_lock(), child.id().to_string()).unwrap();
        let process = Process::find(&directory).unwrap().expect("the lock is held");
        assert!(!process.wait(Duration::from_millis(10)));
        process.signal(Signal::SIGTERM).unwrap();
        assert!(process.wait(Duration::from_secs(10)));
        child.wait().unwrap();
        // It has ended: a further signal finds nobody, and does no harm.
        process.signal(Signal::SIGKILL).unwrap();
        drop(lock);
        assert!(Process::find(&directory).unwrap().is_none());
    }
}
