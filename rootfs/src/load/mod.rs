//! `load` and `import`: images from archives and directories into the store.
//!
//! A format's reader ([`docker`], [`oci`]) only finds out what an image consists of, as
//! [`PlannedImage`]s; this file then adds their layers and records them, one image after the
//! other. An image whose loading fails leaves nothing but layers that were complete: the
//! next try finds them, or they are collected.

mod config;
mod docker;
mod error;
mod import;
mod oci;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use self::config::check_config;
pub(crate) use self::docker::{diff_ids, pair_layers};
pub use self::error::LoadError;
pub use self::import::{ChangeError, ImportConfig, ImportError, ImportSource};
pub use self::source::LoadSource;
use self::source::Section;
use self::source::Source;
use crate::digest::Digest;
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::{ImageRecord, LayerInput, Store};

/// The diff id of a layer that has no entries: two zero blocks.
const EMPTY_LAYER: [u8; 1024] = [0; 1024];

/// What [`Store::load`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    pub id: Digest,
    /// Names that the archive gives it; possibly none.
    pub references: Vec<Reference>,
}

/// Planned when their turn comes: a hostile archive lists many large documents.
type Images<'a> = Box<dyn Iterator<Item = Result<PlannedImage, LoadError>> + 'a>;

/// An image as its archive describes it.
struct PlannedImage {
    references: Vec<Reference>,
    config: Vec<u8>,
    id: Digest,
    /// The manifest as it came, for formats that have one.
    manifest: Option<(Digest, Vec<u8>)>,
    layers: Vec<PlannedLayer>,
}

struct PlannedLayer {
    /// In the source.
    file: String,
    diff_id: Digest,
    /// What the file must be; `None` where the format does not say.
    blob: Option<Descriptor>,
}

impl Store {
    /// Loads all images of a Docker archive (`docker save`) or an OCI layout, gzip, zstd or
    /// plain, as `docker load` does.
    pub fn load(
        &self,
        source: LoadSource<'_>,
        progress: &dyn Progress,
    ) -> Result<Vec<LoadedImage>, LoadError> {
        let name_hint = match &source {
            LoadSource::Path(path) => path.file_name().and_then(|name| name.to_str()),
            LoadSource::Reader(_) => None,
        };
        let name_hint = name_hint.map(str::to_owned);
        let source = Source::open(source, self, progress)?;
        let limits = self.limits();
        let images: Images<'_> = if let Some(items) = docker::manifest(&source, limits)? {
            Box::new(items.into_iter().map(|item| docker::plan_image(&source, item, limits)))
        } else if let Some(index) = oci::index(&source, limits)? {
            let mut planner = oci::Planner::new(&source, limits);
            let named = oci::group(index, name_hint.as_deref(), limits)?;
            Box::new(named.into_iter().map(move |image| planner.plan(image)))
        } else {
            return Err(LoadError::UnknownFormat);
        };
        let mut loaded: Vec<LoadedImage> = Vec::new();
        {
            let _adding = self.lock_to_add()?;
            for image in images {
                let image = self.add_image(&source, image?, progress)?;
                // An image that has several names may be listed once for each.
                match loaded.iter_mut().find(|known| known.id == image.id) {
                    Some(known) => known.references.extend(image.references),
                    None => loaded.push(image),
                }
            }
        }
        if loaded.is_empty() {
            return Err(LoadError::NoImages);
        }
        // A tag that moved may have left its image without a name, but that one stays; what
        // goes are the remains of loads that failed.
        self.gc()?;
        Ok(loaded)
    }

    fn add_image(
        &self,
        source: &Source,
        image: PlannedImage,
        progress: &dyn Progress,
    ) -> Result<LoadedImage, LoadError> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let open = || -> Result<Section, LoadError> {
                source.file(&layer.file)?.ok_or_else(|| LoadError::Missing {
                    what: "layer",
                    name: layer.file.chars().take(300).collect(),
                })
            };
            let input = LayerInput { diff_id: Some(&layer.diff_id), blob: layer.blob.as_ref() };
            layers.push(self.add_layer(input, open, progress)?);
        }
        if layers.is_empty() {
            layers.push(self.add_empty_layer(progress)?);
        }
        let manifest = image.manifest.unwrap_or_else(|| {
            let blobs = layers.iter().map(|layer| layer.descriptor.clone()).collect();
            synthesize_manifest(&image.id, image.config.len() as u64, blobs)
        });
        let created = crate::manifest::created(&image.config);
        let record = ImageRecord {
            id: &image.id,
            config: &image.config,
            manifest: (&manifest.0, &manifest.1),
            created: created.as_deref(),
            layers: &layers,
            references: &image.references,
        };
        self.record_image(&record)?;
        Ok(LoadedImage { id: image.id, references: image.references })
    }

    pub(crate) fn add_empty_layer(
        &self,
        progress: &dyn Progress,
    ) -> Result<crate::store::AddedLayer, LoadError> {
        let diff_id = Digest::of(&EMPTY_LAYER);
        let input = LayerInput { diff_id: Some(&diff_id), blob: None };
        self.add_layer(input, || Ok::<_, LoadError>(&EMPTY_LAYER[..]), progress)
    }
}

/// A manifest for an image that came without one, so that it can be pushed.
fn synthesize_manifest(
    id: &Digest,
    config_bytes: u64,
    layers: Vec<Descriptor>,
) -> (Digest, Vec<u8>) {
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.to_owned(),
        config: Descriptor::new(OCI_CONFIG, id.clone(), config_bytes),
        layers,
    };
    let json = serde_json::to_vec(&manifest).expect("a manifest is plain data");
    (Digest::of(&json), json)
}

/// The descriptor of a layer that is kept uncompressed.
pub(crate) fn plain_layer(diff_id: Digest, bytes: u64) -> Descriptor {
    Descriptor::new(OCI_LAYER, diff_id, bytes)
}
