//! Volumes: directories below the root that outlive the containers which use them.
//!
//! ```text
//! <root>/volumes/<name>/_data     what containers see
//! volumes (table)                 name, labels, whether somebody named it
//! ```
//!
//! A row is written after its directory and deleted after the directory has another name, so
//! that a row always has its directory, and what is under a volume's name is never half of
//! what it was. Rows are synced: a power loss must not take the name of somebody's data.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use caisson_failpoints::{hit, steps};
use caisson_rootfs::StoreError;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use crate::{format::units, names};

const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE volumes (
        name      TEXT PRIMARY KEY,
        labels    TEXT NOT NULL,       -- a JSON object of texts
        anonymous INTEGER NOT NULL,    -- nobody has named it
        created   INTEGER NOT NULL     -- nanoseconds since 1970
    );
"];

const MAX_NAME_BYTES: usize = 128;

/// Before a directory's name while it is removed. No volume's name begins with a dot.
const REMOVED: &str = ".removed-";

/// What containers see of a volume's directory.
const DATA: &str = "_data";

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot {action} in the volume table")]
    Database { action: &'static str, source: rusqlite::Error },
    #[error("{action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "create {0}: {0:?} includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed, 2 to {MAX_NAME_BYTES} of them. If you intended to pass a \
         host directory, use absolute path"
    )]
    Name(String),
    #[error("get {0}: no such volume")]
    NotFound(String),
    #[error("remove {name}: volume is in use - [{}]", users.join(", "))]
    InUse { name: String, users: Vec<String> },
    #[error("get random bytes for a name")]
    Random(#[source] io::Error),
}

/// A volume as it is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub anonymous: bool,
    pub created: units::UnixNanos,
}

/// The table and the directories.
pub struct Volumes {
    connection: Connection,
    directory: PathBuf,
}

/// Checks a name by Docker's grammar.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let good = (2..=MAX_NAME_BYTES).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(is_allowed);
    if good { Ok(()) } else { Err(VolumeError::Name(name.to_owned())) }
}

/// A name for a volume that nobody has named.
pub fn anonymous_name() -> Result<String, VolumeError> {
    names::new_id().map_err(VolumeError::Random)
}

/// What containers see of the volume `name`, in the directory of all volumes.
pub fn data(directory: &Path, name: &str) -> PathBuf {
    directory.join(name).join(DATA)
}

impl Volumes {
    /// `connection` is the store's; `directory` holds the volumes.
    pub fn open(mut connection: Connection, directory: PathBuf) -> Result<Self, VolumeError> {
        caisson_rootfs::migrate(&mut connection, "volumes", &MIGRATIONS)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(database_error("set up access"))?;
        Ok(Self { connection, directory })
    }

    /// What containers see of a volume.
    pub fn data(&self, name: &str) -> PathBuf {
        data(&self.directory, name)
    }

    /// Makes a volume; one that is there stays as it is.
    pub fn create(
        &mut self,
        name: &str,
        labels: &BTreeMap<String, String>,
        anonymous: bool,
    ) -> Result<(), VolumeError> {
        check_name(name)?;
        if self.data(name).is_dir() && self.find(name).is_ok() {
            return Ok(());
        }
        let failed = database_error("add a volume");
        let directory = self.directory.clone();
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        make_directories(&directory, name)?;
        let labels = serde_json::to_string(labels).expect("texts are JSON");
        transaction
            .execute(
                "INSERT INTO volumes (name, labels, anonymous, created) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO NOTHING",
                (name, labels, anonymous, units::now()),
            )
            .map_err(failed)?;
        transaction.commit().map_err(failed)
    }

    /// All of them by name.
    pub fn all(&self) -> Result<Vec<Volume>, VolumeError> {
        let failed = database_error("list volumes");
        let mut statement =
            self.connection.prepare(&format!("{SELECT} ORDER BY name")).map_err(failed)?;
        let rows = statement.query_map([], from_row).map_err(failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }

    pub fn find(&self, name: &str) -> Result<Volume, VolumeError> {
        self.connection
            .query_row(&format!("{SELECT} WHERE name = ?1"), [name], from_row)
            .optional()
            .map_err(database_error("find a volume"))?
            .ok_or_else(|| VolumeError::NotFound(name.to_owned()))
    }

    /// Removes a volume that nobody uses. `users` tells the ids of containers that do; none
    /// is added while it is asked.
    pub fn remove<E: From<VolumeError>>(
        &mut self,
        name: &str,
        users: impl FnOnce() -> Result<Vec<String>, E>,
    ) -> Result<(), E> {
        self.find(name)?;
        let failed = database_error("remove a volume");
        let directory = self.directory.clone();
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(failed)?;
        let users = users()?;
        if !users.is_empty() {
            return Err(VolumeError::InUse { name: name.to_owned(), users }.into());
        }
        let removed = directory.join(format!("{REMOVED}{}", anonymous_name()?));
        let named = directory.join(name);
        hit(&steps::CLI_VOLUME_REMOVE).map_err(io_error("remove", &named))?;
        match fs::rename(&named, &removed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &named)(error).into());
            }
            _ => {}
        }
        transaction.execute("DELETE FROM volumes WHERE name = ?1", [name]).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(self.remove_remains()?)
    }

    /// Removes directories that have lost their names, also those of a process that was killed.
    fn remove_remains(&self) -> Result<(), VolumeError> {
        let entries = fs::read_dir(&self.directory).map_err(io_error("list", &self.directory))?;
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with(REMOVED) {
                match fs::remove_dir_all(entry.path()) {
                    // Somebody else removes them too.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("remove", &entry.path())(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

const SELECT: &str = "SELECT name, labels, anonymous, created FROM volumes";

/// Labels that are damaged are none.
fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Volume> {
    let labels: String = row.get(1)?;
    Ok(Volume {
        name: row.get(0)?,
        labels: serde_json::from_str(&labels).unwrap_or_default(),
        anonymous: row.get(2)?,
        created: row.get(3)?,
    })
}

/// The directories, synced before a row names them. Nobody but root looks into the first.
fn make_directories(directory: &Path, name: &str) -> Result<(), VolumeError> {
    let volume = directory.join(name);
    hit(&steps::CLI_VOLUME_CREATE).map_err(io_error("make", &volume))?;
    for (path, mode) in [(directory, 0o700), (&volume, 0o755), (&volume.join(DATA), 0o755)] {
        match fs::DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make", path)(error));
            }
            _ => {}
        }
    }
    for path in [directory, &volume] {
        File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))?;
    }
    Ok(())
}

fn database_error(action: &'static str) -> impl Fn(rusqlite::Error) -> VolumeError + Copy {
    move |source| VolumeError::Database { action, source }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> VolumeError + use<'a> {
    move |source| VolumeError::Io { action, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests;
