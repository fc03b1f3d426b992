//! `save`: images into an archive that Docker, podman and OCI tools load.
//!
//! As Docker 25 and later write it, the archive is two things at once: an OCI image layout
//! (`oci-layout`, `index.json`, `blobs/`) and a Docker archive (`manifest.json`), over the
//! same blobs. Manifests and layers are those that came, byte for byte.

mod sink;

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

pub(crate) use self::sink::DirectorySink;
use self::sink::{Sink, TarSink};
use crate::digest::Digest;
use crate::manifest::{Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{Store, StoreError, StoredImage};

#[derive(Debug, Error)]
pub enum SaveError {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error(
        "layer {digest} of image {image} is not in the store as it came; pull or load the image again"
    )]
    NoBlob { digest: Digest, image: String },
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("no images are named")]
    Nothing,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image and the names that go along.
struct Chosen {
    image: StoredImage,
    names: Vec<Reference>,
}

impl Store {
    /// Writes an archive with these images. An image that is named by its id is saved
    /// without a name, a repository without a tag with all its tags.
    pub fn save(&self, names: &[String], archive: impl Write) -> Result<(), SaveError> {
        let _held = self.lock_to_add()?;
        let chosen = self.choose(names)?;
        self.write(&chosen, &mut TarSink::new(archive))
    }

    /// The same as files in a directory.
    pub fn save_layout(&self, names: &[String], directory: &Path) -> Result<(), SaveError> {
        let _held = self.lock_to_add()?;
        let chosen = self.choose(names)?;
        self.write(&chosen, &mut DirectorySink::new(directory))
    }

    fn choose(&self, names: &[String]) -> Result<Vec<Chosen>, SaveError> {
        let mut chosen: BTreeMap<Digest, Chosen> = BTreeMap::new();
        for name in names {
            for (image, reference) in self.named(name)? {
                let entry = match chosen.remove(&image) {
                    Some(entry) => entry,
                    None => {
                        let image = self.stored_image(&image.to_string())?;
                        Chosen { image, names: vec![] }
                    }
                };
                let mut entry = entry;
                entry.names.extend(reference.filter(|name| !entry.names.contains(name)));
                chosen.insert(image, entry);
            }
        }
        if chosen.is_empty() { Err(SaveError::Nothing) } else { Ok(chosen.into_values().collect()) }
    }

    /// What a name stands for: an image by one of its names or by its id, or a repository.
    fn named(&self, name: &str) -> Result<Vec<(Digest, Option<Reference>)>, SaveError> {
        let reference = name.parse::<Reference>().ok();
        if let Some(repository) =
            reference.as_ref().filter(|r| r.tag().is_none() && r.digest().is_none())
        {
            let mut found = Vec::new();
            for image in self.images()? {
                let tags =
                    image.references.iter().filter(|r| r.repository() == repository.repository());
                found.extend(tags.map(|tag| (image.id.clone(), Some(tag.clone()))));
            }
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let image = self.resolve(name)?;
        let tagged = reference.filter(|reference| image.references.contains(reference));
        Ok(vec![(image.id, tagged)])
    }

    fn write(&self, chosen: &[Chosen], sink: &mut dyn Sink) -> Result<(), SaveError> {
        let mut written = HashSet::new();
        let mut manifests = Vec::new();
        let mut items = Vec::new();
        for Chosen { image, names } in chosen {
            for layer in &image.layers {
                self.write_blob(layer, image, sink, &mut written)?;
            }
            self.write_blob(&image.config, image, sink, &mut written)?;
            let (digest, data) = &image.manifest;
            if written.insert(digest.clone()) {
                sink.file(&blob_name(digest), data.len() as u64, &mut data.as_slice())
                    .map_err(SaveError::Write)?;
            }
            manifests.extend(index_entries(image, names));
            items.push(docker_item(image, names));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        for (name, document) in [
            ("index.json", index),
            ("manifest.json", Value::Array(items)),
            ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        ] {
            let text = document.to_string();
            sink.file(name, text.len() as u64, &mut text.as_bytes()).map_err(SaveError::Write)?;
        }
        sink.finish().map_err(SaveError::Write)
    }

    fn write_blob(
        &self,
        blob: &Descriptor,
        image: &StoredImage,
        sink: &mut dyn Sink,
        written: &mut HashSet<Digest>,
    ) -> Result<(), SaveError> {
        if !written.insert(blob.digest.clone()) {
            return Ok(());
        }
        let path = self.blob_file(&blob.digest);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let image = image.id.short().to_owned();
                return Err(SaveError::NoBlob { digest: blob.digest.clone(), image });
            }
            Err(source) => return Err(SaveError::Read { path, source }),
        };
        sink.file(&blob_name(&blob.digest), blob.size, &mut file).map_err(SaveError::Write)
    }
}

/// For OCI: one entry for each name, or one without.
fn index_entries(image: &StoredImage, names: &[Reference]) -> Vec<Value> {
    let kind = if image.media_type.is_empty() { OCI_MANIFEST } else { &image.media_type };
    let entry = |name: Option<&Reference>| {
        let mut entry = json!({
            "mediaType": kind, "digest": image.manifest.0, "size": image.manifest.1.len(),
        });
        if let Some(name) = name {
            entry["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or_default(),
            });
        }
        entry
    };
    if names.is_empty() {
        vec![entry(None)]
    } else {
        names.iter().map(|n| entry(Some(n))).collect()
    }
}

/// For Docker.
fn docker_item(image: &StoredImage, names: &[Reference]) -> Value {
    let tags: Vec<String> = names.iter().map(Reference::familiar).collect();
    let layers: Vec<String> = image.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
    json!({
        "Config": blob_name(&image.config.digest),
        "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
        "Layers": layers,
    })
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::LoadSource;
    use crate::progress::Silent;
    use crate::tar::testing::TarBuilder;

    /// A store with an image `app:1` and `app:2` from a Docker archive.
    fn store() -> (tempfile::TempDir, Store, Digest) {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path()).unwrap();
        let layer = TarBuilder::new().file("hello", b"world").finish();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&layer)] },
        })
        .to_string();
        let manifest =
            json!([{ "Config": "c.json", "RepoTags": ["app:1", "app:2"], "Layers": ["l.tar"] }]);
        let archive = TarBuilder::new()
            .file("manifest.json", manifest.to_string().as_bytes())
            .file("c.json", config.as_bytes())
            .file("l.tar", &layer)
            .finish();
        let loaded = store.load(LoadSource::Reader(Box::new(archive.as_slice())), &Silent).unwrap();
        (root, store, loaded[0].id.clone())
    }

    fn saved(store: &Store, names: &[&str]) -> Result<Vec<u8>, SaveError> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut archive = Vec::new();
        store.save(&names, &mut archive).map(|()| archive)
    }

    #[test]
    fn what_is_saved_loads_as_the_same_image_with_its_names() {
        let (_root, store, id) = store();
        for (names, tags) in [
            (&["app:1"][..], &["app:1"][..]),
            (&["app"], &["app:1", "app:2"]),
            (&["app:2", "app:1"], &["app:1", "app:2"]),
        ] {
            let archive = saved(&store, names).unwrap();
            let other_root = tempfile::tempdir().unwrap();
            let other = Store::open(other_root.path()).unwrap();
            let loaded =
                other.load(LoadSource::Reader(Box::new(archive.as_slice())), &Silent).unwrap();
            assert_eq!(loaded.len(), 1);
            assert_eq!(loaded[0].id, id);
            let image = other.resolve(tags[0]).unwrap();
            let found: Vec<String> = image.references.iter().map(Reference::familiar).collect();
            assert_eq!(found, tags);
            assert_eq!(image.manifest, store.resolve("app:1").unwrap().manifest);
        }
        // By its id it has no name.
        let archive = saved(&store, &[&id.to_string()]).unwrap();
        let other_root = tempfile::tempdir().unwrap();
        let other = Store::open(other_root.path()).unwrap();
        other.load(LoadSource::Reader(Box::new(archive.as_slice())), &Silent).unwrap();
        assert!(other.resolve(&id.to_string()).unwrap().references.is_empty());
    }

    #[test]
    fn a_directory_holds_the_same() {
        let (_root, store, id) = store();
        let directory = tempfile::tempdir().unwrap();
        store.save_layout(&["app:1".to_owned()], directory.path()).unwrap();
        let other_root = tempfile::tempdir().unwrap();
        let other = Store::open(other_root.path()).unwrap();
        other.load(LoadSource::Path(directory.path().into()), &Silent).unwrap();
        assert_eq!(other.resolve("app:1").unwrap().id, id);
    }

    #[test]
    fn what_cannot_be_saved_is_told() {
        let (root, store, _) = store();
        let error = saved(&store, &["app:1", "none"]).unwrap_err();
        assert!(error.to_string().contains("no such image"), "{error}");
        assert!(matches!(saved(&store, &[]), Err(SaveError::Nothing)));
        let layer = store.stored_image("app:1").unwrap().layers[0].digest.clone();
        let path = root.path().join("blobs/sha256").join(layer.hex());
        // One that was cut must not give an archive that looks whole.
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(saved(&store, &["app:1"]), Err(SaveError::Write(_))));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(saved(&store, &["app:1"]), Err(SaveError::NoBlob { .. })));
    }
}
