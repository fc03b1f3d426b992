//! A number that nobody else has, for as long as it is held.
//!
//! It is taken by locking one byte of one file: the kernel frees it when the process ends,
//! however it ends, and nothing is left to clean up. The search begins at a place that
//! depends on who asks, so that a number is not taken again at once.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
};

/// Free again when it is dropped.
#[derive(Debug)]
pub(crate) struct NumberLease {
    pub(crate) number: u32,
    _lock: File,
}

impl NumberLease {
    /// Takes a number below `count` for `owner`, by a lock in `file`; `Ok(None)` if all are
    /// taken.
    pub(crate) fn take(file: &Path, count: u32, owner: &str) -> io::Result<Option<Self>> {
        if let Some(directory) = file.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(file)?;
        let mut hasher = DefaultHasher::new();
        owner.hash(&mut hasher);
        let start = u32::try_from(hasher.finish() % u64::from(count)).expect("below `count`");
        for step in 0..count {
            let number = (start + step) % count;
            if try_lock(&lock, number)? {
                return Ok(Some(Self { number, _lock: lock }));
            }
        }
        Ok(None)
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
    fn a_number_is_taken_once_and_free_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("made/numbers.lock");
        let take = || NumberLease::take(&file, 2, "vm").unwrap();
        let (first, second) = (take().unwrap(), take().unwrap());
        assert_ne!(first.number, second.number);
        assert!(take().is_none());
        let number = first.number;
        drop(first);
        assert_eq!(take().unwrap().number, number);
    }
}
