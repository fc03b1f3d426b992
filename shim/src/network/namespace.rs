//! A network namespace of the host's, and visits to it.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
};

use serde::{Deserialize, Serialize};

use super::NetworkError;

/// `NSFS_MAGIC`: what every file of a namespace lies on.
const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;

/// One that is not the host's own. It lives at least as long as this does.
#[derive(Debug)]
pub(super) struct Namespace {
    file: File,
    /// `None` for one that has no name and goes by itself.
    identity: Option<Identity>,
}

/// Where it was, and which it was: another may have the path later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Identity {
    /// The namespace, if it is still there.
    pub(super) fn find(&self) -> Result<Option<Namespace>, NetworkError> {
        match Namespace::open(&self.path) {
            Ok(found) if found.identity.as_ref() == Some(self) => Ok(Some(found)),
            Ok(_) | Err(NetworkError::NotANamespace { .. } | NetworkError::HostsOwn { .. }) => {
                Ok(None)
            }
            Err(NetworkError::Open { source, .. }) if is_gone(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A path of a process that has ended may say either.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

impl Namespace {
    pub(super) fn open(path: &Path) -> Result<Self, NetworkError> {
        let shown = || crate::text::inert(path.as_os_str().as_encoded_bytes());
        let failed = |source| NetworkError::Open { path: shown(), source };
        // Whatever else is there must neither hang nor act.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
        let file = opened.map_err(failed)?;
        if !is_namespace(&file).map_err(failed)? {
            return Err(NetworkError::NotANamespace { path: shown() });
        }
        let found = file.metadata().map_err(failed)?;
        for own in ["/proc/self/ns/net", "/proc/1/ns/net"] {
            let is_own = std::fs::metadata(own)
                .is_ok_and(|own| (own.dev(), own.ino()) == (found.dev(), found.ino()));
            if is_own {
                return Err(NetworkError::HostsOwn { path: shown() });
            }
        }
        let (device, inode) = (found.dev(), found.ino());
        Ok(Self { file, identity: Some(Identity { path: path.to_owned(), device, inode }) })
    }

    /// One that is gone when nobody has a file of it or an interface in it.
    pub(super) fn new() -> Result<Self, NetworkError> {
        let make = || {
            // SAFETY: takes a number; the calling thread ends, and no other moves.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net")
        };
        let made = thread::Builder::new().name("network".to_owned()).spawn(make);
        let made = made.and_then(|maker| {
            maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let action = "make a network namespace";
        let file = made.map_err(|source| NetworkError::Bridge { action, source })?;
        Ok(Self { file, identity: None })
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    pub(super) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `visit` in the namespace, on a thread that does nothing else and ends.
    pub(super) fn enter<T: Send>(
        &self,
        visit: impl FnOnce() -> T + Send,
    ) -> Result<T, NetworkError> {
        let path = || match &self.identity {
            Some(identity) => crate::text::inert(identity.path.as_os_str().as_encoded_bytes()),
            None => "without a name".to_owned(),
        };
        let entered = thread::scope(|scope| {
            let run = || {
                // SAFETY: takes an open descriptor and a number; of this process only the
                // calling thread changes its namespace.
                let entered = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
                if entered < 0 { Err(io::Error::last_os_error()) } else { Ok(visit()) }
            };
            let visitor =
                thread::Builder::new().name("network".to_owned()).spawn_scoped(scope, run)?;
            visitor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        entered.map_err(|source: io::Error| match source.raw_os_error() {
            Some(libc::EINVAL) => NetworkError::NotANamespace { path: path() },
            _ => NetworkError::Enter { path: path(), source },
        })
    }
}

fn is_namespace(file: &File) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid statfs, which is plain numbers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `found` outlives the call.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_type == NSFS_MAGIC)
}
