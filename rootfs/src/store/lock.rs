//! The lock between those who add files and the one who deletes them.
//!
//! A loader may find a layer in place and rely on it before its own row refers to it, so
//! nothing may be deleted while anyone adds. `flock` ends with its process, whatever end
//! that is.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Store, StoreError};

/// A process that is being forked off holds its parent's locks until it execs.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Held while it lives.
pub(crate) struct StoreLock {
    _file: File,
}

impl Store {
    /// Waits while someone deletes, which is short.
    pub(crate) fn lock_to_add(&self) -> Result<StoreLock, StoreError> {
        let file = self.lock_file()?;
        file.lock_shared().map_err(StoreError::io("lock", &self.lock_path()))?;
        Ok(StoreLock { _file: file })
    }

    /// `None` while someone adds: deleting can wait for the next collection.
    pub(super) fn try_lock_to_delete(&self) -> Result<Option<StoreLock>, StoreError> {
        let file = self.lock_file()?;
        for attempt in 0..LOCK_ATTEMPTS {
            match file.try_lock() {
                Ok(()) => return Ok(Some(StoreLock { _file: file })),
                Err(TryLockError::WouldBlock) if attempt + 1 < LOCK_ATTEMPTS => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::io("lock", &self.lock_path())(error));
                }
            }
        }
        Ok(None)
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("store.lock")
    }

    fn lock_file(&self) -> Result<File, StoreError> {
        let path = self.lock_path();
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("open", &path))
    }
}
