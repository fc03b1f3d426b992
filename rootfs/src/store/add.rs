//! Adding layers and images.
//!
//! ```text
//! blob ─► size, digest ─► decompress ─► diff id ─► layers/.partial ─► layers/<hex>.erofs
//!    └──────────────────────┬─► blobs/…/.partial ─► blobs/<alg>/<hex>
//!         (as it came)      └─ (uncompressed, where the format has no digest for it)
//! ```
//!
//! Decompressing and converting are done elsewhere: see [`crate::unpack`].

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use caisson_failpoints::{hit, steps};
use tempfile::NamedTempFile;

use super::{Store, StoreError, sync_directory};
use crate::digest::{Algorithm, Digest, Hasher};
use crate::layer::Converted;
use crate::load::{LoadError, plain_layer};
use crate::manifest::Descriptor;
use crate::progress::{Progress, Step};
use crate::reference::Reference;
use crate::unpack::{UnpackError, unpack_layer};

/// What is known of a layer before it is read.
pub(crate) struct LayerInput<'a> {
    pub(crate) diff_id: Option<&'a Digest>,
    /// What is read must have this size and digest. `None`: only the diff id counts, and
    /// the layer is kept uncompressed.
    pub(crate) blob: Option<&'a Descriptor>,
}

/// A layer that is in the store.
#[derive(Clone, Debug)]
pub(crate) struct AddedLayer {
    pub(crate) diff_id: Digest,
    pub(crate) descriptor: Descriptor,
    pub(crate) uncompressed_bytes: u64,
}

/// An image that is complete.
pub(crate) struct ImageRecord<'a> {
    pub(crate) id: &'a Digest,
    pub(crate) config: &'a [u8],
    pub(crate) manifest: (&'a Digest, &'a [u8]),
    pub(crate) created: Option<&'a str>,
    pub(crate) layers: &'a [AddedLayer],
    pub(crate) references: &'a [Reference],
}

impl Store {
    /// Makes sure that a layer is in the store. `open` is called if it has to be read.
    /// The caller holds the lock to add.
    pub(crate) fn add_layer<R: Read>(
        &self,
        input: LayerInput<'_>,
        open: impl FnOnce() -> Result<R, LoadError>,
        progress: &dyn Progress,
    ) -> Result<AddedLayer, LoadError> {
        let name = match (input.diff_id, input.blob) {
            (_, Some(blob)) => format!("layer {}", blob.digest.short()),
            (Some(diff_id), None) => format!("layer {}", diff_id.short()),
            (None, None) => "layer".to_owned(),
        };
        let total = input.blob.map(|blob| blob.size);
        if let Some(diff_id) = input.diff_id {
            if let Some(layer) = self.present_layer(diff_id, input.blob)? {
                progress.step(&name, total).done("already there");
                return Ok(layer);
            }
            // One process at a time converts a layer; the others wait and find it done.
            let partial = Partial::claim(self, diff_id)?;
            if let Some(layer) = self.present_layer(diff_id, input.blob)? {
                partial.remove();
                progress.step(&name, total).done("already there");
                return Ok(layer);
            }
            let step = progress.step(&name, total);
            return self.convert_layer(&input, open()?, partial, &name, step);
        }
        let step = progress.step(&name, total);
        let partial = Partial::unnamed(self)?;
        self.convert_layer(&input, open()?, partial, &name, step)
    }

    /// A layer whose image, and blob if they are kept, are in place.
    fn present_layer(
        &self,
        diff_id: &Digest,
        blob: Option<&Descriptor>,
    ) -> Result<Option<AddedLayer>, StoreError> {
        let Some((file_bytes, _)) = self.layer_row(diff_id)? else { return Ok(None) };
        let whole =
            fs::metadata(self.layer_path(diff_id)).is_ok_and(|found| found.len() == file_bytes);
        let kept = blob.map_or(diff_id, |blob| &blob.digest);
        if !whole || (self.options.keep_blobs && !self.has_blob(kept)) {
            return Ok(None);
        }
        let uncompressed_bytes = self.layer_bytes(diff_id)?;
        let descriptor =
            blob.cloned().unwrap_or_else(|| plain_layer(diff_id.clone(), uncompressed_bytes));
        Ok(Some(AddedLayer { diff_id: diff_id.clone(), descriptor, uncompressed_bytes }))
    }

    fn convert_layer(
        &self,
        input: &LayerInput<'_>,
        source: impl Read,
        partial: Partial,
        name: &str,
        step: Box<dyn Step>,
    ) -> Result<AddedLayer, LoadError> {
        hit(&steps::STORE_LAYER_CREATE).map_err(StoreError::io("create", &partial.path))?;
        let algorithm = input.diff_id.map_or(Algorithm::Sha256, Digest::algorithm);
        let keep =
            |algorithm| self.options.keep_blobs.then(|| self.new_blob(algorithm)).transpose();
        let (mut raw_copy, mut plain_copy) = match input.blob {
            Some(blob) => (keep(blob.digest.algorithm())?, None),
            None => (None, keep(algorithm)?),
        };
        let mut step = step;
        let mut raw = RawReader {
            inner: source,
            hasher: input.blob.map(|blob| Hasher::new(blob.digest.algorithm())),
            bytes: 0,
            limit: input.blob.map_or(u64::MAX, |blob| blob.size),
            copy: raw_copy.as_mut(),
            step: &mut *step,
        };
        let directory = self.layers_dir();
        let scratch = tempfile::tempfile_in(&directory)
            .map_err(StoreError::io("create a file in", &directory))?;
        let image = partial.open_image()?;
        let converted = unpack_layer(
            &self.options.unpacker,
            &mut raw,
            algorithm,
            image,
            &scratch,
            plain_copy.as_mut().map(NamedTempFile::as_file_mut),
            &self.options.limits,
        );
        let converted = match converted {
            Err(error) if error.is_disk_full() => Err(self.unpack_error(name, error)),
            converted => {
                // A damaged blob is the cause of what its damage led to.
                input.blob.map_or(Ok(()), |blob| raw.check(blob))?;
                converted.map_err(|error| self.unpack_error(name, error))
            }
        }?;
        drop(raw);
        if let Some(expected) = input.diff_id
            && converted.diff_id != *expected
        {
            let (expected, actual) = (expected.clone(), converted.diff_id);
            return Err(LoadError::Mismatch { what: "uncompressed layer", expected, actual });
        }
        let descriptor = match input.blob {
            Some(blob) => blob.clone(),
            None => plain_layer(converted.diff_id.clone(), converted.uncompressed_bytes),
        };
        if let Some(copy) = raw_copy.or(plain_copy) {
            self.commit_blob(&descriptor.digest, copy)?;
        }
        self.commit_layer(partial, &converted)?;
        step.done("done");
        let Converted { diff_id, uncompressed_bytes, .. } = converted;
        Ok(AddedLayer { diff_id, descriptor, uncompressed_bytes })
    }

    /// A disk that fills up under a conversion is the store's trouble, not the layer's.
    fn unpack_error(&self, name: &str, error: UnpackError) -> LoadError {
        match error.into_disk_full() {
            Ok(source) => StoreError::io("write a layer in", &self.layers_dir())(source).into(),
            Err(error) => {
                let layer = name.trim_start_matches("layer ").to_owned();
                LoadError::Layer { layer, source: Box::new(error) }
            }
        }
    }

    fn commit_layer(&self, partial: Partial, converted: &Converted) -> Result<(), StoreError> {
        let path = self.layer_path(&converted.diff_id);
        let file = &partial.file;
        file.set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| hit(&steps::STORE_LAYER_SYNC))
            .and_then(|()| file.sync_all())
            .map_err(StoreError::io("sync", &partial.path))?;
        hit(&steps::STORE_LAYER_RENAME)
            .and_then(|()| fs::rename(&partial.path, &path))
            .map_err(StoreError::io("rename a layer to", &path))?;
        sync_directory(&self.layers_dir())?;
        hit(&steps::STORE_LAYER_ROW).map_err(StoreError::io("record the layer", &path))?;
        self.connection()
            .execute(
                "INSERT OR REPLACE INTO layers VALUES (?1, ?2, ?3, ?4)",
                (
                    converted.diff_id.to_string(),
                    converted.uncompressed_bytes as i64,
                    converted.image_bytes as i64,
                    converted.opaque,
                ),
            )
            .map_err(self.db_error("record a layer"))?;
        partial.keep();
        Ok(())
    }

    /// Stores an image whose layers are all there, and gives it its names.
    pub(crate) fn record_image(&self, image: &ImageRecord<'_>) -> Result<(), StoreError> {
        self.put_blob(image.id, image.config)?;
        self.put_blob(image.manifest.0, image.manifest.1)?;
        hit(&steps::STORE_IMAGE_RECORD)
            .map_err(StoreError::io("record an image in", &self.root))?;
        let size_bytes: u64 = image.layers.iter().map(|layer| layer.uncompressed_bytes).sum();
        let id = image.id.to_string();
        self.durably("record an image", |transaction| {
            transaction.execute(
                "INSERT INTO images (id, manifest, created, size_bytes) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET manifest = ?2, size_bytes = ?4, removed = 0",
                (&id, image.manifest.0.to_string(), image.created, size_bytes as i64),
            )?;
            transaction.execute("DELETE FROM image_layers WHERE image = ?1", [&id])?;
            for (position, layer) in image.layers.iter().enumerate() {
                transaction.execute(
                    "INSERT INTO image_layers VALUES (?1, ?2, ?3, ?4)",
                    (
                        &id,
                        position as i64,
                        layer.diff_id.to_string(),
                        layer.descriptor.digest.to_string(),
                    ),
                )?;
            }
            for reference in image.references {
                transaction.execute(
                    "INSERT OR REPLACE INTO names VALUES (?1, ?2)",
                    (reference.to_string(), &id),
                )?;
            }
            Ok(())
        })
    }

    pub(super) fn layer_bytes(&self, diff_id: &Digest) -> Result<u64, StoreError> {
        let bytes: i64 = self
            .connection()
            .query_row(
                "SELECT size_bytes FROM layers WHERE diff_id = ?1",
                [diff_id.to_string()],
                |row| row.get(0),
            )
            .map_err(self.db_error("look up a layer"))?;
        Ok(bytes.max(0) as u64)
    }
}

/// An EROFS file in the making, locked against others who want to make it.
struct Partial {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Partial {
    /// Waits for whoever is converting the same layer.
    fn claim(store: &Store, diff_id: &Digest) -> Result<Partial, StoreError> {
        let path = store.layers_dir().join(format!(".partial-{}", diff_id.hex()));
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(StoreError::io("create", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    tracing::info!(layer = diff_id.short(), "another process converts the layer");
                    file.lock().map_err(StoreError::io("lock", &path))?;
                }
                Err(TryLockError::Error(error)) => {
                    return Err(StoreError::io("lock", &path)(error));
                }
            }
            // The one before us has renamed or removed the file, unless it died.
            if is_still(&path, &file).map_err(StoreError::io("look at", &path))? {
                file.set_len(0).map_err(StoreError::io("truncate", &path))?;
                return Ok(Partial { path, file, kept: false });
            }
        }
    }

    /// For a layer whose diff id is yet to be found.
    fn unnamed(store: &Store) -> Result<Partial, StoreError> {
        let directory = store.layers_dir();
        let failed = StoreError::io("create a file in", &directory);
        let created = tempfile::Builder::new().prefix(".partial-").tempfile_in(&directory);
        let (file, path) = created.map_err(failed)?.into_parts();
        let path = path.keep().map_err(|e| StoreError::io("keep", &directory)(e.error))?;
        Ok(Partial { path, file, kept: false })
    }

    /// The file once more, for a process that is not to have our lock on it.
    fn open_image(&self) -> Result<File, StoreError> {
        OpenOptions::new().write(true).open(&self.path).map_err(StoreError::io("open", &self.path))
    }

    fn remove(self) {}

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever is left, gc finds; the failure at hand matters more.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn is_still(path: &Path, file: &File) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A blob as it comes: counted, hashed and copied. More than its size is not read.
struct RawReader<'a, R> {
    inner: R,
    hasher: Option<Hasher>,
    bytes: u64,
    limit: u64,
    copy: Option<&'a mut NamedTempFile>,
    step: &'a mut dyn Step,
}

impl<R: Read> RawReader<'_, R> {
    /// Reads what the conversion left, and compares.
    fn check(&mut self, blob: &Descriptor) -> Result<(), LoadError> {
        io::copy(self, &mut io::sink()).map_err(LoadError::Read)?;
        if self.bytes != blob.size {
            let (digest, expected, actual) = (blob.digest.clone(), blob.size, self.bytes);
            return Err(LoadError::Size { what: "layer", digest, expected, actual });
        }
        let actual = self.hasher.take().map(Hasher::finish);
        match actual {
            Some(actual) if actual != blob.digest => {
                let expected = blob.digest.clone();
                Err(LoadError::Mismatch { what: "layer", expected, actual })
            }
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for RawReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes > self.limit {
            return Ok(0);
        }
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..count]);
        }
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..count])?;
        }
        self.step.advance(count as u64);
        Ok(count)
    }
}
