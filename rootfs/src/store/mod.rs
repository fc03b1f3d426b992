//! The image store: one directory with a database, blobs, EROFS layers and disk templates.
//!
//! ```text
//! <root>/caisson.db           images, names, layers, leases (and other components' tables)
//! <root>/blobs/<alg>/<hex>    configurations, manifests, layers as they came
//! <root>/layers/<hex>.erofs   one file per diff id, read-only, shared by all VMs
//! <root>/templates/           pre-made file systems for writable disks
//! <root>/store.lock           shared: adds files; exclusive: deletes files
//! ```
//!
//! Every file is written under a temporary name, synced and renamed, and only then named by
//! a row: a crash leaves at worst a file without a row, which [`Store::gc`] removes.

mod add;
mod blobs;
mod error;
mod gc;
mod images;
mod lease;
mod lock;
mod names;
mod remote;
mod schema;
#[cfg(test)]
mod tests;
mod usage;

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

pub(crate) use self::add::{AddedLayer, ImageRecord, LayerInput};
pub use self::error::StoreError;
pub(crate) use self::error::is_disk_full;
pub use self::gc::Freed;
pub use self::images::{Image, ImageSummary, Removed};
pub(crate) use self::remote::StoredImage;
pub use self::schema::{migrate, open_database};
pub use self::usage::LayerUse;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::unpack::Unpacker;

/// An open image store. Any number of processes may have it open.
pub struct Store {
    root: PathBuf,
    /// One statement or transaction at a time; never held while a layer is converted.
    connection: Mutex<Connection>,
    options: StoreOptions,
}

#[derive(Clone, Debug)]
pub struct StoreOptions {
    pub limits: Limits,
    /// Keep the layers as they came, which pushing and saving an image needs.
    pub keep_blobs: bool,
    /// Where foreign data is parsed.
    pub unpacker: Unpacker,
}

impl Default for StoreOptions {
    fn default() -> StoreOptions {
        StoreOptions { limits: Limits::default(), keep_blobs: true, unpacker: Unpacker::default() }
    }
}

impl Store {
    /// Opens the store at `root`, creating it if need be (directories with mode 0700).
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        Store::open_with(root, StoreOptions::default())
    }

    pub fn open_with(root: &Path, options: StoreOptions) -> Result<Store, StoreError> {
        for directory in ["", "blobs/sha256", "blobs/sha512", "layers", "templates"] {
            let path = root.join(directory);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(StoreError::io("create the directory", &path))?;
        }
        refuse_lost_database(root)?;
        let mut connection = open_database(root)?;
        schema::migrate_images(&mut connection)?;
        let root = root.canonicalize().map_err(StoreError::io("resolve the directory", root))?;
        Ok(Store { root, connection: Mutex::new(connection), options })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn limits(&self) -> &Limits {
        &self.options.limits
    }

    pub(crate) fn unpacker(&self) -> &Unpacker {
        &self.options.unpacker
    }

    /// Another connection to the store's database, for a component that keeps its own
    /// tables there; see [`migrate`].
    pub fn open_database(&self) -> Result<Connection, StoreError> {
        open_database(&self.root)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic in another thread rolled its transaction back: the connection is sound.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn db_error(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
        let database = schema::database_path(&self.root);
        move |source| StoreError::database(action, &database, source)
    }

    fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers_dir().join(format!("{}.erofs", diff_id.hex()))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    pub(crate) fn templates_dir(&self) -> PathBuf {
        self.root.join("templates")
    }
}

/// Layers without a database are those of one that is gone: an empty one would have them
/// deleted as garbage.
fn refuse_lost_database(root: &Path) -> Result<(), StoreError> {
    let database = schema::database_path(root);
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |found| found.len());
    // To SQLite a single byte is an empty database, too.
    if bytes(&database) > 1 || bytes(&database.with_extension("db-wal")) > 0 {
        return Ok(());
    }
    let layers = root.join("layers");
    let mut files = fs::read_dir(&layers).map_err(StoreError::io("list", &layers))?.flatten();
    match files.any(|file| !file.file_name().as_encoded_bytes().starts_with(b".")) {
        true => Err(StoreError::DatabaseLost { database, layers }),
        false => Ok(()),
    }
}

/// Makes a rename in `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<(), StoreError> {
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(StoreError::io("sync the directory", directory))
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_if_there(path: &Path) -> Result<bool, StoreError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(StoreError::io("remove", path)(error)),
    }
}
