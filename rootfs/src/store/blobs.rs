//! Content-addressed blobs.

use std::fs::{self, File};
use std::io::{Read, Write};

use caisson_failpoints::{hit, steps};
use tempfile::NamedTempFile;

use super::{Store, StoreError, sync_directory};
use crate::digest::{Algorithm, Digest, Hasher};

impl Store {
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// A whole small blob whose digest has been checked, or `None` if the file is missing,
    /// has another size or another content.
    pub(super) fn read_blob(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open the blob", &path)(error)),
        };
        let mut data = Vec::new();
        file.take(limit + 1).read_to_end(&mut data).map_err(StoreError::io("read", &path))?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&data);
        Ok((hasher.finish() == *digest).then_some(data))
    }

    /// Stores `data`, which the caller has verified to have this digest.
    pub(crate) fn put_blob(&self, digest: &Digest, data: &[u8]) -> Result<(), StoreError> {
        let mut file = self.new_blob(digest.algorithm())?;
        file.write_all(data).map_err(StoreError::io("write", file.path()))?;
        self.commit_blob(digest, file)
    }

    /// A temporary file beside the blob's place; it is removed unless it is committed.
    pub(crate) fn new_blob(&self, algorithm: Algorithm) -> Result<NamedTempFile, StoreError> {
        let directory = self.root.join("blobs").join(algorithm.name());
        hit(&steps::STORE_BLOB_CREATE)
            .and_then(|()| tempfile::Builder::new().prefix(".partial-").tempfile_in(&directory))
            .map_err(StoreError::io("create a file in", &directory))
    }

    pub(crate) fn commit_blob(
        &self,
        digest: &Digest,
        file: NamedTempFile,
    ) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        hit(&steps::STORE_BLOB_SYNC)
            .and_then(|()| file.as_file().sync_all())
            .map_err(StoreError::io("sync", &path))?;
        hit(&steps::STORE_BLOB_RENAME)
            .and_then(|()| fs::rename(file.path(), &path))
            .map_err(StoreError::io("rename a blob to", &path))?;
        // The name is gone; only the handle is left to drop.
        let _ = file.into_temp_path().keep();
        sync_directory(path.parent().expect("a blob lies in a directory"))
    }
}
