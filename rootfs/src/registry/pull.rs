//! `pull`: an image from a registry into the store, its layers in parallel.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::blob::{BlobReader, Transfers};
use super::client::RegistryClient;
use super::connection::Connection;
use super::error::RegistryError;
use super::image::RemoteImage;
use super::platform::WantedPlatform;
use crate::digest::Digest;
use crate::load::LoadError;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::{AddedLayer, ImageRecord, LayerInput, Store};

/// Layers that come at the same time, as with Docker.
const PARALLEL: usize = 3;

/// What [`Store::pull`] brought.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// As it was asked for, with its tag.
    pub reference: Reference,
    /// The image.
    pub id: Digest,
    /// Of what the name stands for at the registry: an index or a manifest.
    pub digest: Digest,
    /// Whether the name meant this very image before.
    pub up_to_date: bool,
}

impl Store {
    /// Pulls one image: manifest and configuration first, then layers, the name last.
    /// One that fails leaves whole layers alone, which the next try finds.
    pub fn pull(
        &self,
        client: &RegistryClient,
        reference: &Reference,
        platform: &WantedPlatform,
        progress: &dyn Progress,
    ) -> Result<Pulled, RegistryError> {
        let reference = reference.clone().with_default_tag();
        let (connection, image) = client.find_image(&reference, platform, self.limits())?;
        let before = self.resolve(&reference.to_string()).ok();
        {
            let _adding = self.lock_to_add()?;
            let layers = self.pull_layers(&connection, &reference, &image, progress)?;
            let names: Vec<Reference> =
                if reference.digest().is_none() { vec![reference.clone()] } else { vec![] };
            let created = crate::manifest::created(&image.config);
            self.record_image(&ImageRecord {
                id: &image.id,
                config: &image.config,
                manifest: (&image.manifest.0, &image.manifest.1),
                created: created.as_deref(),
                layers: &layers,
                references: &names,
            })?;
            let by_digest = reference.with_digest(image.digest.clone());
            self.add_repo_digest(&image.id, &by_digest)?;
        }
        let up_to_date = before
            .is_some_and(|before| before.id == image.id && before.manifest == image.manifest.0);
        Ok(Pulled { reference, id: image.id, digest: image.digest, up_to_date })
    }

    fn pull_layers(
        &self,
        connection: &Connection,
        reference: &Reference,
        image: &RemoteImage,
        progress: &dyn Progress,
    ) -> Result<Vec<AddedLayer>, RegistryError> {
        let transfers = Transfers::default();
        let next = AtomicUsize::new(0);
        let added: Mutex<Vec<Option<AddedLayer>>> = Mutex::new(vec![None; image.layers.len()]);
        let failure: Mutex<Option<LoadError>> = Mutex::new(None);
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some((descriptor, diff_id)) = image.layers.get(index) else { return };
                if transfers.is_cancelled() {
                    return;
                }
                let open =
                    || Ok(BlobReader::new(connection, reference.path(), descriptor, &transfers));
                let input = LayerInput { diff_id: Some(diff_id), blob: Some(descriptor) };
                match self.add_layer(input, open, progress) {
                    Ok(layer) => {
                        let mut added = added.lock().unwrap_or_else(PoisonError::into_inner);
                        added[index] = Some(layer);
                    }
                    Err(error) => {
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        // Those that were cancelled fail later.
                        failure.get_or_insert(error);
                        transfers.cancel();
                        return;
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..PARALLEL.min(image.layers.len()) {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = transfers.take_failure() {
            return Err(error);
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error.into());
        }
        let added = added.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut layers: Vec<AddedLayer> = added.into_iter().flatten().collect();
        if image.layers.is_empty() {
            layers.push(self.add_empty_layer(progress)?);
        }
        Ok(layers)
    }
}
