//! A user id of its own for each VM.
//!
//! An id is taken by locking one byte of one file: the kernel frees it when the shim ends,
//! however it ends, and nothing is left to clean up. The search begins at a place that
//! depends on the VM's id, so that an id is not taken again at once.

use std::{
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::Path,
};

use caisson_failpoints::{hit, steps};

/// The first id, and how many there are. No distribution assigns them.
const FIRST_UID: u32 = 1_000_000;
const COUNT: u32 = 65_536;

const FILE: &str = "uids.lock";

/// A user id that no other VM of this state directory has, until it is dropped.
#[derive(Debug)]
pub(super) struct UidLease {
    pub(super) uid: u32,
    _lock: File,
}

impl UidLease {
    pub(super) fn take(state: &Path, vm: &str) -> io::Result<Self> {
        hit(&steps::SHIM_VM_LEASE)?;
        fs::create_dir_all(state)?;
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(state.join(FILE))?;
        let mut hasher = DefaultHasher::new();
        vm.hash(&mut hasher);
        let start = u32::try_from(hasher.finish() % u64::from(COUNT)).expect("below COUNT");
        for step in 0..COUNT {
            let number = (start + step) % COUNT;
            if try_lock(&lock, number)? {
                return Ok(Self { uid: FIRST_UID + number, _lock: lock });
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "every user id for VMs is in use"))
    }
}

/// Locks one byte for this open file, if nobody else has it.
fn try_lock(file: &File, byte: u32) -> io::Result<bool> {
    // SAFETY: all-zero bytes are a valid flock, which is plain numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte.into();
    lock.l_len = 1;
    // SAFETY: the descriptor is open and `lock` outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_once_and_free_again() {
        let state = tempfile::tempdir().unwrap();
        let first = UidLease::take(state.path(), "vm").unwrap();
        let second = UidLease::take(state.path(), "vm").unwrap();
        assert_ne!(first.uid, second.uid);
        assert!((FIRST_UID..FIRST_UID + COUNT).contains(&first.uid));
        let uid = first.uid;
        drop(first);
        assert_eq!(UidLease::take(state.path(), "vm").unwrap().uid, uid);
    }
}
