//! An image layout in a directory, from and to a registry, without a store: for a host whose
//! store is on another machine.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::blob::{BlobReader, Transfers};
use super::client::RegistryClient;
use super::connection::Connection;
use super::error::RegistryError;
use super::image::{Finder, RemoteImage};
use super::platform::WantedPlatform;
use super::push::{Pushed, push_blobs};
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, OCI_INDEX, OCI_MANIFEST, parse_document};
use crate::progress::{Progress, Step};
use crate::reference::Reference;
use crate::save::blob_name;
use crate::store::StoredImage;

/// What [`RegistryClient::fetch`] brought.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub reference: Reference,
    /// Of what the name stands for at the registry.
    pub digest: Digest,
    pub id: Digest,
}

impl RegistryClient {
    /// Finds an image at the first source that has it.
    pub(crate) fn find_image(
        &self,
        reference: &Reference,
        platform: &WantedPlatform,
        limits: &Limits,
    ) -> Result<(Arc<Connection>, RemoteImage), RegistryError> {
        let wanted = match reference.digest() {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or_default().to_owned(),
        };
        let mut sources = self.sources(reference).into_iter().peekable();
        while let Some(source) = sources.next() {
            let repository = format!("{source}/{}", reference.path());
            let found = self.connect(&source, &repository).and_then(|connection| {
                let finder = Finder {
                    connection: &connection,
                    repository: reference.path(),
                    platform,
                    limits,
                };
                let image = finder.find(&wanted)?;
                Ok((connection, image))
            });
            match found {
                Err(error) if sources.peek().is_some() => {
                    tracing::warn!(mirror = %source, %error, "the mirror does not help");
                }
                other => return other,
            }
        }
        Err(RegistryError::Host(reference.domain().to_owned()))
    }

    /// Writes an image as a layout into a directory. Every blob has its digest.
    pub fn fetch(
        &self,
        reference: &Reference,
        platform: &WantedPlatform,
        directory: &Path,
        progress: &dyn Progress,
    ) -> Result<Fetched, RegistryError> {
        let reference = reference.clone().with_default_tag();
        let limits = Limits::default();
        let (connection, image) = self.find_image(&reference, platform, &limits)?;
        let write = |name: &str, data: &[u8]| {
            let path = directory.join(name);
            let parent = path.parent().unwrap_or(directory);
            fs::create_dir_all(parent)
                .and_then(|()| fs::write(&path, data))
                .map_err(|source| RegistryError::Write { path: path.clone(), source })
        };
        write(&blob_name(&image.id), &image.config)?;
        write(&blob_name(&image.manifest.0), &image.manifest.1)?;
        for (layer, _) in &image.layers {
            fetch_layer(&connection, reference.path(), layer, directory, progress)?;
        }
        let mut entry = json!({
            "mediaType": OCI_MANIFEST,
            "digest": image.manifest.0, "size": image.manifest.1.len(),
        });
        if reference.digest().is_none() {
            entry["annotations"] = json!({ "io.containerd.image.name": reference.to_string() });
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] });
        write("index.json", index.to_string().as_bytes())?;
        write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Fetched { reference, digest: image.digest, id: image.id })
    }

    /// Pushes the only image of a layout.
    pub fn push_layout(
        &self,
        directory: &Path,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<Pushed, RegistryError> {
        let image = read_layout(directory)?;
        let connection = self.registry_of(reference)?;
        let file = |digest: &Digest| directory.join(blob_name(digest));
        push_blobs(&connection, reference, &image, &file, &|_| Ok(vec![]), progress)
    }
}

fn fetch_layer(
    connection: &Connection,
    repository: &str,
    layer: &Descriptor,
    directory: &Path,
    progress: &dyn Progress,
) -> Result<(), RegistryError> {
    let path = directory.join(blob_name(&layer.digest));
    let step = progress.step(&format!("layer {}", layer.digest.short()), Some(layer.size));
    if path.exists() {
        step.done("already there");
        return Ok(());
    }
    let failed = |source| RegistryError::Write { path: path.clone(), source };
    let transfers = Transfers::default();
    let blob = BlobReader::new(connection, repository, layer, &transfers);
    let mut reader = Counted { inner: blob, hasher: Hasher::new(layer.digest.algorithm()), step };
    let copied = File::create(&path).and_then(|mut file| io::copy(&mut reader, &mut file));
    if let Some(error) = transfers.take_failure() {
        return Err(error);
    }
    copied.map_err(failed)?;
    let actual = reader.hasher.finish();
    if actual != layer.digest {
        let (host, what) = (connection.domain.clone(), "layer".to_owned());
        return Err(RegistryError::Mismatch { host, what, expected: layer.digest.clone(), actual });
    }
    reader.step.done("done");
    Ok(())
}

struct Counted<R> {
    inner: R,
    hasher: Hasher,
    step: Box<dyn Step>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.step.advance(count as u64);
        Ok(count)
    }
}

/// A layout that [`crate::Store::save_layout`] wrote, on the other side of a shared directory.
fn read_layout(directory: &Path) -> Result<StoredImage, RegistryError> {
    let limits = Limits::default();
    let read = |name: &str| {
        let path = directory.join(name);
        let mut data = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(limits.manifest_bytes).read_to_end(&mut data))
            .map_err(|source| RegistryError::Read { path, source })?;
        Ok::<_, RegistryError>(data)
    };
    let parse = |what: &str, data: &[u8]| {
        parse_document(data).map_err(|source| RegistryError::Document {
            host: directory.display().to_string(),
            what: what.to_owned(),
            source,
        })
    };
    let not_one = || RegistryError::NotAnImage {
        what: directory.display().to_string(),
        kind: "a layout of another shape".into(),
    };
    let Document::Index(manifests) = parse("index", &read("index.json")?)? else {
        return Err(not_one());
    };
    let descriptor = manifests.into_iter().next().ok_or_else(not_one)?;
    let data = read(&blob_name(&descriptor.digest))?;
    let Document::Manifest(manifest) = parse("manifest", &data)? else { return Err(not_one()) };
    Ok(StoredImage {
        id: manifest.config.digest.clone(),
        manifest: (descriptor.digest, data),
        media_type: manifest.media_type,
        config: manifest.config,
        layers: manifest.layers,
    })
}
