//! The OCI image layout (image-spec, image-layout.md): `index.json` and `blobs/`.

use std::collections::BTreeMap;

use super::config::check_config;
use super::docker::{check_platform, diff_ids, pair_layers};
use super::source::Source;
use super::{LoadError, PlannedImage, PlannedLayer};
use crate::digest::{Digest, Hasher};
use crate::limits::Limits;
use crate::manifest::{Descriptor, Document, is_layer, parse_config, parse_document};
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

/// One image of a layout: manifests for several platforms, or indexes of them.
pub(super) struct Named {
    name: Option<Reference>,
    descriptors: Vec<Descriptor>,
}

/// What has one name is one image.
pub(super) fn group(
    descriptors: Vec<Descriptor>,
    name_hint: Option<&str>,
    limits: &Limits,
) -> Result<Vec<Named>, LoadError> {
    let mut by_name: BTreeMap<Option<Reference>, Vec<Descriptor>> = BTreeMap::new();
    for descriptor in descriptors {
        let name = reference(&descriptor, name_hint)?;
        by_name.entry(name).or_default().push(descriptor);
    }
    if by_name.len() > limits.images {
        return Err(LoadError::TooMany { what: "images", limit: limits.images });
    }
    Ok(by_name.into_iter().map(|(name, descriptors)| Named { name, descriptors }).collect())
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

/// Reads a layout's documents, a bounded number of them.
pub(super) struct Planner<'s> {
    source: &'s Source,
    limits: &'s Limits,
    documents: usize,
}

/// Manifests of one image, for different platforms.
#[derive(Default)]
struct Candidates {
    /// By rank, the lowest best; equal ones in the order in which they are listed.
    manifests: Vec<(u8, Descriptor)>,
    /// What else there is, for the message.
    others: Vec<String>,
}

impl<'s> Planner<'s> {
    pub(super) fn new(source: &'s Source, limits: &'s Limits) -> Planner<'s> {
        Planner { source, limits, documents: 0 }
    }

    /// Chooses the manifest for this platform.
    pub(super) fn plan(&mut self, image: Named) -> Result<PlannedImage, LoadError> {
        let mut candidates = Candidates::default();
        self.collect(image.descriptors, 0, &mut candidates)?;
        candidates.manifests.sort_by_key(|(rank, _)| *rank);
        for (_, descriptor) in candidates.manifests {
            match self.plan_manifest(descriptor) {
                // Its configuration knew better; perhaps the next one is for this platform.
                Err(LoadError::Platform { found }) => candidates.others.extend(found),
                Err(error) => return Err(error),
                Ok(planned) => {
                    return Ok(PlannedImage { references: Vec::from_iter(image.name), ..planned });
                }
            }
        }
        candidates.others.truncate(20);
        Err(LoadError::Platform { found: candidates.others })
    }

    fn collect(
        &mut self,
        descriptors: Vec<Descriptor>,
        depth: usize,
        candidates: &mut Candidates,
    ) -> Result<(), LoadError> {
        for descriptor in descriptors.into_iter().filter(|d| !d.is_attestation()) {
            let platform = descriptor.platform.as_ref();
            // A descriptor without a platform: the configuration decides.
            let rank = platform.map_or(Some(0), |platform| platform.rank());
            let Some(rank) = rank else {
                candidates.others.extend(platform.map(ToString::to_string));
                continue;
            };
            match self.document(&descriptor)?.1 {
                Document::Index(_) if depth >= self.limits.index_depth => {
                    let limit = self.limits.index_depth;
                    return Err(LoadError::TooMany { what: "indexes inside indexes", limit });
                }
                Document::Index(nested) => self.collect(nested, depth + 1, candidates)?,
                Document::Manifest(_) => candidates.manifests.push((rank, descriptor)),
                Document::Artifact(kind) => {
                    candidates.others.push(kind.escape_debug().to_string());
                }
            }
        }
        Ok(())
    }

    fn plan_manifest(&mut self, descriptor: Descriptor) -> Result<PlannedImage, LoadError> {
        let (data, document) = self.document(&descriptor)?;
        let Document::Manifest(manifest) = document else {
            // Only for a source that changes while it is read.
            return Err(LoadError::UnknownFormat);
        };
        let limit = self.limits.config_bytes;
        let config = read_blob(self.source, &manifest.config, "configuration", limit)?;
        let id = manifest.config.digest;
        let parsed = parse_config(&config)
            .map_err(|source| LoadError::Document { name: blob_name(&id), source })?;
        check_platform(&parsed)?;
        check_config(&parsed, self.limits)?;
        let diff_ids = diff_ids(&parsed)?;
        pair_layers(manifest.layers.len(), diff_ids.len(), self.limits)?;
        let mut layers = Vec::new();
        for (descriptor, diff_id) in manifest.layers.into_iter().zip(diff_ids) {
            let file = blob_name(&descriptor.digest);
            if !is_layer(&descriptor.media_type) {
                return Err(LoadError::NotAnImage { name: file, kind: descriptor.media_type });
            }
            layers.push(PlannedLayer { file, diff_id, blob: Some(descriptor) });
        }
        let manifest = Some((descriptor.digest, data));
        Ok(PlannedImage { references: vec![], config, id, manifest, layers })
    }

    fn document(&mut self, descriptor: &Descriptor) -> Result<(Vec<u8>, Document), LoadError> {
        self.documents += 1;
        if self.documents > self.limits.documents {
            let limit = self.limits.documents;
            return Err(LoadError::TooMany { what: "indexes and manifests", limit });
        }
        let data = read_blob(self.source, descriptor, "manifest", self.limits.manifest_bytes)?;
        let document = parse(&blob_name(&descriptor.digest), &data)?;
        Ok((data, document))
    }
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

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn parse(name: &str, data: &[u8]) -> Result<Document, LoadError> {
    parse_document(data).map_err(|source| LoadError::Document { name: name.to_owned(), source })
}
