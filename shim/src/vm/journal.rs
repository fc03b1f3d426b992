//! What of a VM is on the host, written down before it is, so that another process can
//! finish after a shim that was killed.

use std::{
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_failpoints::{hit, steps};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::{self, Place},
    host_process::HostProcess,
    network,
};

pub(super) const JOURNAL: &str = "sandbox.json";
pub(super) const VSOCK_SOCKET: &str = "vsock.sock";

/// The journal while it is written.
const TEMPORARY: &str = ".sandbox.json.new";

const VERSION: u32 = 1;
const MAX_BYTES: u64 = 64 << 10;

/// How long a killed vmm may take to go.
const KILL_GRACE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    version: u32,
    pub(super) id: String,
    pub(super) uid: Option<u32>,
    /// The directories of its cgroup.
    #[serde(default)]
    pub(super) cgroup: Place,
    /// What leads from its interfaces to its taps.
    #[serde(default)]
    pub(super) network: Option<network::Place>,
    /// `None` until it is started: then the end of the control socket ends it.
    pub(super) vmm: Option<HostProcess>,
    /// Written down with the vmm: until then the end of its socket ends it.
    #[serde(default)]
    pub(super) file_server: Option<HostProcess>,
}

#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct ReapError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Journal {
    pub(super) fn new(id: &str, uid: Option<u32>) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            uid,
            cgroup: Place::default(),
            network: None,
            vmm: None,
            file_server: None,
        }
    }

    /// Replaces the journal in `bundle`, whole or not at all.
    pub(super) fn save(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(TEMPORARY);
        hit(&steps::SHIM_VM_JOURNAL_WRITE)?;
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        hit(&steps::SHIM_VM_JOURNAL_RENAME)?;
        fs::rename(temporary, bundle.join(JOURNAL))
    }

    fn load(bundle: &Path) -> io::Result<Option<Self>> {
        let path = bundle.join(JOURNAL);
        let bytes = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(found) if found.len() > MAX_BYTES => Vec::new(),
            Ok(_) => fs::read(&path)?,
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(journal) if journal.version == VERSION => Ok(Some(journal)),
            // Truncated, or of another version: kept aside for whoever wants to know.
            _ => {
                let aside = bundle.join(".sandbox.json.unreadable");
                log::warn!("{} cannot be read; moved to {}", path.display(), aside.display());
                fs::rename(path, aside)?;
                Ok(None)
            }
        }
    }
}

/// Ends a process, if it still is the one that was written down.
fn kill(process: HostProcess) -> io::Result<()> {
    let pidfd = match pidfd_open(process.pid) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        other => other?,
    };
    // Looked at after the pidfd is held: from here on the pid cannot change its owner.
    match HostProcess::of(process.pid) {
        Ok(found) if found == process => {}
        _ => return Ok(()),
    }
    // SAFETY: the pidfd is open; the other arguments are numbers and a null pointer.
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            libc::SIGKILL,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent < 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) {
        return Err(io::Error::last_os_error());
    }
    await_end(&pidfd)
}

pub(super) fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes numbers only.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; it sets close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn await_end(pidfd: &OwnedFd) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let timeout = i32::try_from(KILL_GRACE.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid pollfd.
    match unsafe { libc::poll(&mut poll, 1, timeout) } {
        1 => Ok(()),
        0 => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not end")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Removes what a VM leaves in its bundle.
pub(super) fn remove_files(bundle: &Path) {
    for name in [VSOCK_SOCKET, JOURNAL, TEMPORARY] {
        match hit(&steps::SHIM_VM_REMOVE).and_then(|()| fs::remove_file(bundle.join(name))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("remove {}: {error}", bundle.join(name).display());
            }
            _ => {}
        }
    }
}

/// Ends and removes whatever a shim that is gone has left of the VM in `bundle`. Without
/// such a thing, and without the bundle, there is nothing to do.
pub fn reap(bundle: &Path) -> Result<(), ReapError> {
    let failed = |action| {
        let path = bundle.join(JOURNAL);
        move |source| ReapError { action, path, source }
    };
    let journal = Journal::load(bundle).map_err(failed("read"))?;
    if let Some(journal) = journal {
        if let Some(vmm) = journal.vmm {
            kill(vmm).map_err(failed("end the vmm that stands in"))?;
        }
        if let Some(file_server) = journal.file_server {
            kill(file_server).map_err(failed("end the file server that stands in"))?;
        }
        cgroup::remove(&journal.cgroup);
        // The taps have gone with the vmm.
        if let Some(network) = &journal.network {
            let removed = network::remove(network).map_err(io::Error::other);
            removed.map_err(failed("undo the redirects of network interfaces that stand in"))?;
        }
    }
    remove_files(bundle);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("1000").spawn().unwrap()
    }

    #[test]
    fn what_a_killed_shim_left_is_ended_and_removed() {
        let bundle = tempfile::tempdir().unwrap();
        let [mut vmm, mut file_server] = [sleeper(), sleeper()];
        let noted = |child: &Child| Some(HostProcess::of(child.id()).unwrap());
        let journal = Journal {
            vmm: noted(&vmm),
            file_server: noted(&file_server),
            ..Journal::new("c", Some(7))
        };
        journal.save(bundle.path()).unwrap();
        fs::write(bundle.path().join(VSOCK_SOCKET), "").unwrap();
        // Their zombies are the parent's to collect; the pidfds tell the end all the same.
        let waiter = std::thread::spawn(move || [vmm.wait().unwrap(), file_server.wait().unwrap()]);
        reap(bundle.path()).unwrap();
        assert!(waiter.join().unwrap().iter().all(|status| !status.success()));
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
        reap(bundle.path()).unwrap();
        reap(Path::new("/no/such/bundle")).unwrap();
    }

    #[test]
    fn another_process_with_the_pid_is_left_alone() {
        let bundle = tempfile::tempdir().unwrap();
        let mut child = sleeper();
        let vmm = HostProcess { start_time: 1, ..HostProcess::of(child.id()).unwrap() };
        Journal { vmm: Some(vmm), ..Journal::new("c", None) }.save(bundle.path()).unwrap();
        reap(bundle.path()).unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "it still runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn an_unreadable_journal_is_set_aside() {
        for content in ["", "{", "{\"version\":2,\"id\":\"c\",\"uid\":null,\"vmm\":null}"] {
            let bundle = tempfile::tempdir().unwrap();
            fs::write(bundle.path().join(JOURNAL), content).unwrap();
            reap(bundle.path()).unwrap();
            assert!(!bundle.path().join(JOURNAL).exists());
            let kept = fs::read_to_string(bundle.path().join(".sandbox.json.unreadable"));
            assert_eq!(kept.unwrap(), content);
        }
    }
}
