//! What can go wrong while an image is loaded.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::digest::{Digest, DigestError};
use crate::manifest::DocumentError;
use crate::reference::ReferenceError;
use crate::store::StoreError;
use crate::tar::TarError;
use crate::unpack::UnpackError;

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("cannot open {}", .path.display())]
    Open { path: PathBuf, source: io::Error },

    #[error("cannot read the image archive")]
    Read(#[source] io::Error),

    #[error("cannot decompress the image archive")]
    Decompress(#[source] UnpackError),

    #[error("the image archive is damaged")]
    Archive(#[source] TarError),

    #[error(
        "this is neither a Docker archive nor an OCI layout; a root file system can be \
         imported with `caisson import`"
    )]
    UnknownFormat,

    #[error("the archive holds no image")]
    NoImages,

    #[error("the image names the file \"{}\", which leaves the archive", .name.escape_debug())]
    BadName { name: String },

    #[error("a name in the archive has more than {limit} bytes, the limit")]
    LongName { limit: usize },

    #[error("the {what} \"{}\" is missing from the archive", .name.escape_debug())]
    Missing { what: &'static str, name: String },

    #[error("too many {what}: more than {limit}, the limit")]
    TooMany { what: &'static str, limit: usize },

    #[error("\"{}\" has {bytes} bytes, more than {limit}, the limit", .name.escape_debug())]
    DocumentTooLarge { name: String, bytes: u64, limit: u64 },

    #[error("cannot understand \"{}\"", .name.escape_debug())]
    Document { name: String, source: DocumentError },

    #[error("the image has an invalid name")]
    Reference(#[from] ReferenceError),

    #[error("the image has an invalid digest")]
    Digest(#[from] DigestError),

    #[error("\"{}\" is no container image but {}", .name.escape_debug(), .kind.escape_debug())]
    NotAnImage { name: String, kind: String },

    #[error("no image for linux/amd64; there are {}", .found.join(", "))]
    Platform { found: Vec<String> },

    #[error("the configuration's {what} cannot be used: {problem}")]
    Config { what: &'static str, problem: String },

    #[error("the image has {layers} layers but {diff_ids} diff ids")]
    LayerCount { layers: usize, diff_ids: usize },

    #[error("the {what} should be {expected} but is {actual}")]
    Mismatch { what: &'static str, expected: Digest, actual: Digest },

    #[error("the {what} {digest} should have {expected} bytes but has {actual}")]
    Size { what: &'static str, digest: Digest, expected: u64, actual: u64 },

    #[error("layer {layer} cannot be unpacked")]
    Layer { layer: String, source: Box<UnpackError> },

    #[error("cannot spool the archive in {}: the disk is full; free some space", .root.display())]
    SpoolDiskFull { root: PathBuf, source: io::Error },

    #[error("cannot spool the archive in {}", .root.display())]
    Spool { root: PathBuf, source: io::Error },

    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LoadError {
    pub(super) fn spool(root: &Path, source: io::Error) -> LoadError {
        let root = root.to_owned();
        if crate::store::is_disk_full(&source) {
            LoadError::SpoolDiskFull { root, source }
        } else {
            LoadError::Spool { root, source }
        }
    }
}
