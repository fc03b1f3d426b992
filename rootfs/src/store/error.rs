//! What can go wrong in the store, with the way out in each message.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::{Digest, DigestError};
use crate::reference::ReferenceError;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("cannot {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "cannot {action} {}: the disk is full; free some space or remove images with \
         `caisson rmi`",
        .path.display()
    )]
    DiskFull { action: &'static str, path: PathBuf, source: io::Error },

    #[error("cannot {action} in {}", .database.display())]
    Database { action: &'static str, database: PathBuf, source: rusqlite::Error },

    #[error(
        "{} was written by a newer caisson ({component} version {found}, this one knows \
         {known}); use that one, or another --root",
        .database.display()
    )]
    NewerSchema { database: PathBuf, component: String, found: u32, known: u32 },

    /// An empty one in its place would make garbage of all files.
    #[error(
        "{} is missing or empty, but {} holds what it described; put it back from a copy, or \
         remove that directory and `blobs` beside it to begin anew",
        .database.display(), .layers.display()
    )]
    DatabaseLost { database: PathBuf, layers: PathBuf },

    #[error("no such image: {}{}", .name.escape_debug(), suggestion(.near))]
    NotFound { name: String, near: Vec<String> },

    #[error("image id {prefix} is ambiguous: it begins {}", .ids.join(" and "))]
    AmbiguousId { prefix: String, ids: Vec<String> },

    #[error(transparent)]
    Reference(#[from] ReferenceError),

    #[error("{name} cannot become a tag: it names a digest")]
    TagIsDigest { name: String },

    #[error("image {image} is damaged: {what}; load or import it again")]
    Damaged { image: String, what: String },

    #[error("a row of image {image} is damaged; remove the image and load it again")]
    DamagedRow { image: String, source: DigestError },

    #[error(
        "image {image} is used by {}; remove {} first, or use force to only untag the image",
        .owners.join(", "), if .owners.len() == 1 { "it" } else { "them" }
    )]
    InUse { image: String, owners: Vec<String> },

    #[error(
        "image {id} has several names ({}); remove one by its name, or all of them with force",
        .names.join(", ")
    )]
    SeveralNames { id: String, names: Vec<String> },

    #[error("lease owner \"{}\" is invalid; expected 1 to 256 printable characters", .0.escape_debug())]
    Owner(String),
}

fn suggestion(near: &[String]) -> String {
    match near {
        [] => String::new(),
        names => format!("; did you mean {}?", names.join(" or ")),
    }
}

impl StoreError {
    /// Wraps a failed file operation; a full disk gets its own words.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        move |source| {
            let path = path.to_owned();
            if is_disk_full(&source) {
                StoreError::DiskFull { action, path, source }
            } else {
                StoreError::Io { action, path, source }
            }
        }
    }

    pub(crate) fn database(
        action: &'static str,
        database: &Path,
        source: rusqlite::Error,
    ) -> StoreError {
        let (database, full) = (database.to_owned(), rusqlite::ErrorCode::DiskFull);
        if source.sqlite_error_code() == Some(full) {
            let source = io::Error::new(io::ErrorKind::StorageFull, source);
            return StoreError::DiskFull { action, path: database, source };
        }
        StoreError::Database { action, database, source }
    }

    pub(crate) fn damaged(image: &Digest, what: impl Into<String>) -> StoreError {
        StoreError::Damaged { image: image.short().to_owned(), what: what.into() }
    }
}

pub(crate) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
