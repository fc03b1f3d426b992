//! Deleting what nothing refers to any more.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caisson_failpoints::{hit, steps};

use super::{Store, StoreError, remove_if_there};

/// What [`Store::gc`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    pub images: u64,
    pub layers: u64,
    pub blobs: u64,
    /// Left behind by writers that died.
    pub partials: u64,
    /// Disk space, in bytes.
    pub bytes: u64,
}

impl Store {
    /// Deletes images that were removed while leased and are no longer, layers and blobs
    /// that no image needs, and partial files. Does nothing while another process adds an
    /// image: its files have no rows yet.
    pub fn gc(&self) -> Result<Freed, StoreError> {
        let mut freed = Freed::default();
        let Some(_lock) = self.try_lock_to_delete()? else {
            return Ok(freed);
        };
        freed.images = self.durably("collect garbage", |transaction| {
            let images = transaction.execute(
                "DELETE FROM images WHERE removed = 1
                 AND NOT EXISTS (SELECT 1 FROM leases WHERE image = id)",
                [],
            )?;
            transaction.execute(
                "DELETE FROM layers WHERE diff_id NOT IN (SELECT diff_id FROM image_layers)",
                [],
            )?;
            Ok(images as u64)
        })?;
        let kept_layers: HashSet<String> = self
            .strings("list layers", "SELECT diff_id FROM layers", [])?
            .iter()
            .filter_map(|diff_id| Some(format!("{}.erofs", diff_id.split_once(':')?.1)))
            .collect();
        sweep(&self.layers_dir(), |name| kept_layers.contains(name), &mut freed, Kind::Layer)?;
        let is_current = crate::disk::is_current_template;
        sweep(&self.templates_dir(), is_current, &mut freed, Kind::Partial)?;
        let blobs = self.strings(
            "list blobs",
            "SELECT id FROM images UNION SELECT manifest FROM images
             UNION SELECT blob FROM image_layers",
            [],
        )?;
        for algorithm in ["sha256", "sha512"] {
            let kept: HashSet<String> = blobs
                .iter()
                .filter_map(|digest| digest.split_once(':'))
                .filter(|(name, _)| *name == algorithm)
                .map(|(_, hex)| hex.to_owned())
                .collect();
            let directory = self.root.join("blobs").join(algorithm);
            sweep(&directory, |name| kept.contains(name), &mut freed, Kind::Blob)?;
        }
        Ok(freed)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Layer,
    Blob,
    Partial,
}

/// Deletes every file of `directory` that is not to be kept.
fn sweep(
    directory: &Path,
    is_kept: impl Fn(&str) -> bool,
    freed: &mut Freed,
    kind: Kind,
) -> Result<(), StoreError> {
    let entries = fs::read_dir(directory).map_err(StoreError::io("list", directory))?;
    for entry in entries {
        let entry = entry.map_err(StoreError::io("list", directory))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if is_kept(&name) {
            continue;
        }
        let bytes = entry.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        hit(&steps::STORE_GC_REMOVE).map_err(StoreError::io("remove", &entry.path()))?;
        if remove_if_there(&entry.path())? {
            freed.bytes += bytes;
            *match kind {
                _ if name.starts_with('.') => &mut freed.partials,
                Kind::Layer => &mut freed.layers,
                Kind::Blob => &mut freed.blobs,
                Kind::Partial => &mut freed.partials,
            } += 1;
        }
    }
    Ok(())
}
