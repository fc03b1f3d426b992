//! The OCI image layout (image-spec, image-layout.md): `index.json` and `blobs/`.

use std::collections::BTreeMap;

use super::docker::{check_platform, diff_ids, pair_layers};
use super::source::Source;
use super::{LoadError, PlannedImage, PlannedLayer};
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, Manifest, is_layer, parse_config, parse_document};
use crate::reference::{Reference, is_tag};

const INDEX: &str = "index.json";
/// The full name, as BuildKit and containerd write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The layout's list of images, or `None` if this is no layout.
pub(super) fn index(
    source: &Source,
    limits: &Limits,
) -> Result<Option<Vec<Descriptor>>, LoadError> {
    let Some(data) = source.read(INDEX, limits.manifest_bytes)? else { return Ok(None) };
    match parse(INDEX, &data)? {
        Document::Index(descriptors) => Ok(Some(descriptors)),
        _ => Err(LoadError::UnknownFormat),
    }
}

pub(super) fn plan(
    source: &Source,
    descriptors: Vec<Descriptor>,
    name_hint: Option<&str>,
    limits: &Limits,
) -> Result<Vec<PlannedImage>, LoadError> {
    // What has one name is one image for several platforms.
    let mut by_name: BTreeMap<Option<Reference>, Vec<Descriptor>> = BTreeMap::new();
    check_count(&descriptors, limits)?;
    for descriptor in descriptors {
        let name = reference(&descriptor, name_hint)?;
        by_name.entry(name).or_default().push(descriptor);
    }
    let mut images: Vec<PlannedImage> = Vec::new();
    for (name, descriptors) in by_name {
        let mut candidates = Candidates::default();
        candidates.collect(source, descriptors, 0, limits)?;
        let image = plan_image(source, candidates, limits)?;
        // One image may have several names.
        match images.iter_mut().find(|known| known.id == image.id) {
            Some(known) => known.references.extend(name),
            None => images.push(PlannedImage { references: name.into_iter().collect(), ..image }),
        }
        if images.len() > limits.images {
            return Err(LoadError::TooMany { what: "images", limit: limits.images });
        }
    }
    Ok(images)
}

/// The name that annotations give. A bare tag is completed by the layout's own name, as in
/// `skopeo copy … oci:debian:12`.
fn reference(
    descriptor: &Descriptor,
    name_hint: Option<&str>,
) -> Result<Option<Reference>, LoadError> {
    if let Some(name) = descriptor.annotation(CONTAINERD_NAME) {
        return Ok(Some(name.parse::<Reference>()?.with_default_tag()));
    }
    let Some(name) = descriptor.annotation(REF_NAME) else { return Ok(None) };
    if !is_tag(name) {
        return Ok(Some(name.parse::<Reference>()?.with_default_tag()));
    }
    let stem = name_hint.and_then(|hint| hint.split('.').next()).unwrap_or_default();
    Ok(format!("{stem}:{name}").parse().ok())
}

/// Manifests of one image, for different platforms.
#[derive(Default)]
struct Candidates {
    /// By rank, the lowest best; equal ones in the order in which they are listed.
    manifests: Vec<(u8, Digest, Vec<u8>, Manifest)>,
    /// What else there is, for the message.
    others: Vec<String>,
}

impl Candidates {
    fn collect(
        &mut self,
        source: &Source,
        descriptors: Vec<Descriptor>,
        depth: usize,
        limits: &Limits,
    ) -> Result<(), LoadError> {
        check_count(&descriptors, limits)?;
        for descriptor in descriptors.into_iter().filter(|d| !d.is_attestation()) {
            let platform = descriptor.platform.as_ref();
            // A descriptor without a platform: the configuration decides.
            let rank = platform.map_or(Some(0), |platform| platform.rank());
            let Some(rank) = rank else {
                self.others.extend(platform.map(ToString::to_string));
                continue;
            };
            let name = blob_name(&descriptor.digest);
            let data = read_blob(source, &descriptor, "manifest", limits.manifest_bytes)?;
            match parse(&name, &data)? {
                Document::Index(_) if depth >= limits.index_depth => {
                    let limit = limits.index_depth;
                    return Err(LoadError::TooMany { what: "indexes inside indexes", limit });
                }
                Document::Index(nested) => self.collect(source, nested, depth + 1, limits)?,
                Document::Manifest(manifest) => {
                    if self.manifests.len() >= limits.index_entries {
                        let limit = limits.index_entries;
                        return Err(LoadError::TooMany { what: "manifests", limit });
                    }
                    self.manifests.push((rank, descriptor.digest, data, manifest));
                }
                Document::Artifact(kind) => self.others.push(kind.escape_debug().to_string()),
            }
        }
        Ok(())
    }
}

fn plan_image(
    source: &Source,
    mut candidates: Candidates,
    limits: &Limits,
) -> Result<PlannedImage, LoadError> {
    candidates.manifests.sort_by_key(|(rank, ..)| *rank);
    let mut mismatch = None;
    for (_, digest, data, manifest) in candidates.manifests {
        match plan_manifest(source, digest, data, manifest, limits) {
            // Perhaps the next one is for this platform.
            Err(LoadError::Platform { found }) => candidates.others.extend(found),
            Err(error) => mismatch = mismatch.or(Some(error)),
            Ok(image) => return Ok(image),
        }
    }
    candidates.others.truncate(20);
    Err(mismatch.unwrap_or(LoadError::Platform { found: candidates.others }))
}

fn plan_manifest(
    source: &Source,
    digest: Digest,
    data: Vec<u8>,
    manifest: Manifest,
    limits: &Limits,
) -> Result<PlannedImage, LoadError> {
    let config = read_blob(source, &manifest.config, "configuration", limits.config_bytes)?;
    let id = manifest.config.digest;
    let parsed = parse_config(&config)
        .map_err(|source| LoadError::Document { name: blob_name(&id), source })?;
    check_platform(&parsed)?;
    let diff_ids = diff_ids(&parsed)?;
    pair_layers(manifest.layers.len(), diff_ids.len(), limits)?;
    let mut layers = Vec::new();
    for (descriptor, diff_id) in manifest.layers.into_iter().zip(diff_ids) {
        let file = blob_name(&descriptor.digest);
        if !is_layer(&descriptor.media_type) {
            return Err(LoadError::NotAnImage { name: file, kind: descriptor.media_type });
        }
        layers.push(PlannedLayer { file, diff_id, blob: Some(descriptor) });
    }
    Ok(PlannedImage { references: vec![], config, id, manifest: Some((digest, data)), layers })
}

/// A small blob whose size and digest are right.
fn read_blob(
    source: &Source,
    descriptor: &Descriptor,
    what: &'static str,
    limit: u64,
) -> Result<Vec<u8>, LoadError> {
    let name = blob_name(&descriptor.digest);
    let data = source
        .read(&name, limit)?
        .ok_or_else(|| LoadError::Missing { what, name: name.clone() })?;
    if data.len() as u64 != descriptor.size {
        return Err(LoadError::Size {
            what,
            digest: descriptor.digest.clone(),
            expected: descriptor.size,
            actual: data.len() as u64,
        });
    }
    let mut hasher = Hasher::new(descriptor.digest.algorithm());
    hasher.update(&data);
    let actual = hasher.finish();
    if actual != descriptor.digest {
        return Err(LoadError::Mismatch { what, expected: descriptor.digest.clone(), actual });
    }
    Ok(data)
}

fn check_count(descriptors: &[Descriptor], limits: &Limits) -> Result<(), LoadError> {
    if descriptors.len() > limits.index_entries {
        return Err(LoadError::TooMany { what: "manifests", limit: limits.index_entries });
    }
    Ok(())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn parse(name: &str, data: &[u8]) -> Result<Document, LoadError> {
    parse_document(data).map_err(|source| LoadError::Document { name: name.to_owned(), source })
}
