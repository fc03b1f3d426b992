//! Images in, bootable read-only layers and writable disks out.
//!
//! [`Store`] is an image store. It takes OCI layouts and Docker archives
//! ([`Store::load`]) and root file systems ([`Store::import`]), verifies every digest, and
//! keeps each layer as one EROFS file that all VMs share. [`convert_tree`] does the same
//! for a directory that another engine hands over.

mod digest;
mod disk;
mod erofs;
mod layer;
mod limits;
mod manifest;
pub mod progress;
mod reference;
mod store;
mod tar;
#[cfg(test)]
mod testing;
mod tree;

pub use crate::digest::{Algorithm, Digest, DigestError};
pub use crate::disk::{DEFAULT_DISK_BYTES, DiskError, MAX_DISK_BYTES, MIN_DISK_BYTES};
pub use crate::limits::Limits;
pub use crate::progress::Progress;
pub use crate::reference::{Reference, ReferenceError};
pub use crate::store::{
    Freed, Image, ImageSummary, Removed, Store, StoreError, StoreOptions, migrate, open_database,
};
