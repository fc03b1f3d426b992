//! What pushing, saving and pulling need of the store: images as registries have them.

use std::path::PathBuf;

use super::{Image, Store, StoreError};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, parse_document};
use crate::reference::Reference;

/// An image as it is sent elsewhere.
pub(crate) struct StoredImage {
    pub(crate) id: Digest,
    pub(crate) manifest: (Digest, Vec<u8>),
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    /// Bottom first.
    pub(crate) layers: Vec<Descriptor>,
}

impl Store {
    /// The image's documents, each with the digest that it should have.
    pub(crate) fn stored_image(&self, name: &str) -> Result<StoredImage, StoreError> {
        let image = self.resolve(name)?;
        let damaged = |what: String| StoreError::damaged(&image.id, what);
        let data = self
            .read_blob(&image.manifest, self.options.limits.manifest_bytes)?
            .ok_or_else(|| damaged("its manifest is missing or altered".into()))?;
        let document =
            parse_document(&data).map_err(|error| damaged(format!("its manifest: {error}")))?;
        let Document::Manifest(manifest) = document else {
            return Err(damaged("its manifest is an index".into()));
        };
        Ok(StoredImage {
            id: image.id,
            manifest: (image.manifest, data),
            media_type: manifest.media_type,
            config: manifest.config,
            layers: manifest.layers,
        })
    }

    /// Bytes of the image's layers, uncompressed, bottom first. The empty layer that stands
    /// for none is left out.
    pub fn layer_sizes(&self, image: &Image) -> Result<Vec<u64>, StoreError> {
        let stated = image.config.rootfs().diff_ids().len();
        image.diff_ids.iter().take(stated).map(|diff_id| self.layer_bytes(diff_id)).collect()
    }

    /// Where a blob lies, if it does.
    pub(crate) fn blob_file(&self, digest: &Digest) -> PathBuf {
        self.blob_path(digest)
    }

    /// Notes that a registry has the image under `reference`, which holds a digest.
    pub fn add_repo_digest(&self, id: &Digest, reference: &Reference) -> Result<(), StoreError> {
        self.connection()
            .execute(
                "INSERT OR REPLACE INTO repo_digests VALUES (?1, ?2)",
                (reference.to_string(), id.to_string()),
            )
            .map_err(self.db_error("record a digest"))?;
        Ok(())
    }

    pub(super) fn repo_digests(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        let sql = "SELECT name FROM repo_digests WHERE image = ?1 ORDER BY name";
        let names = self.strings("list digests", sql, [id.to_string()])?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The repositories of a registry in which images with this layer are known to be.
    pub(crate) fn repositories_with(
        &self,
        blob: &Digest,
        domain: &str,
    ) -> Result<Vec<String>, StoreError> {
        // A digest tells that the registry has had it; a mere tag does not.
        let sql = "SELECT DISTINCT name FROM repo_digests JOIN image_layers USING (image)
                   WHERE blob = ?1 AND substr(name, 1, length(?2) + 1) = ?2 || '/'
                   ORDER BY name LIMIT 20";
        let names = self.strings("list repositories", sql, (blob.to_string(), domain))?;
        let references = names.iter().filter_map(|name| name.parse::<Reference>().ok());
        let mut repositories: Vec<String> = references.map(|r| r.path().to_owned()).collect();
        repositories.dedup();
        Ok(repositories)
    }
}
