//! Images in, bootable read-only layers and writable disks out.
//!
//! [`Store`] is an image store. It takes OCI layouts and Docker archives
//! ([`Store::load`]) and root file systems ([`Store::import`]), verifies every digest, and
//! keeps each layer as one EROFS file that all VMs share. [`convert_tree`] does the same
//! for a directory that another engine hands over. What is foreign is parsed by confined
//! processes, the program `caisson-unpack`.

mod compress;
mod convert_tree;
mod digest;
mod disk;
mod erofs;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod layer;
mod limits;
mod load;
mod manifest;
pub mod progress;
mod reference;
pub mod registry;
mod save;
mod store;
#[cfg(test)]
mod testing;
mod tree;
mod tree_walk;
mod unpack;

pub use crate::compress::CompressionError;
pub use crate::convert_tree::{ConvertTreeError, TreeOptions, TreeStats, convert_tree};
pub use crate::digest::{Algorithm, Digest, DigestError};
pub use crate::disk::{DEFAULT_DISK_BYTES, DiskError, MAX_DISK_BYTES, MIN_DISK_BYTES};
pub use crate::limits::Limits;
pub use crate::load::{
    ChangeError, ImportConfig, ImportError, ImportSource, LoadError, LoadSource, LoadedImage,
};
pub use crate::manifest::DocumentError;
pub use crate::progress::Progress;
pub use crate::reference::{Reference, ReferenceError};
pub use crate::save::SaveError;
pub use crate::store::{
    Freed, Image, ImageSummary, LayerUse, Removed, Store, StoreError, StoreOptions, migrate,
    open_database,
};
#[doc(hidden)]
pub use crate::unpack::worker;
pub use crate::unpack::{End, UnpackError, Unpacker};
pub(crate) use caisson_archive::tar;
pub use caisson_archive::tar::TarError;
