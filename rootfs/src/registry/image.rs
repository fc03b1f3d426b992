//! From a tag to the image for a platform.

use super::blob::small_blob;
use super::connection::{Connection, FetchedManifest};
use super::error::RegistryError;
use super::platform::WantedPlatform;
use crate::digest::Digest;
use crate::limits::Limits;
use crate::load::{check_config, diff_ids, pair_layers};
use crate::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, Document, DocumentError, Manifest, OCI_INDEX,
    OCI_MANIFEST, is_layer, parse_config, parse_document,
};

/// An image as its registry describes it.
pub(crate) struct RemoteImage {
    /// Of what the tag names: an index or the manifest.
    pub(crate) digest: Digest,
    pub(crate) manifest: (Digest, Vec<u8>),
    pub(crate) id: Digest,
    pub(crate) config: Vec<u8>,
    /// With their diff ids, bottom first.
    pub(crate) layers: Vec<(Descriptor, Digest)>,
}

pub(crate) struct Finder<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) repository: &'a str,
    pub(crate) platform: &'a WantedPlatform,
    pub(crate) limits: &'a Limits,
}

struct Found {
    digest: Digest,
    data: Vec<u8>,
    manifest: Manifest,
}

impl Finder<'_> {
    /// The image that `reference`, a tag or a digest, names.
    pub(crate) fn find(&self, reference: &str) -> Result<RemoteImage, RegistryError> {
        let (digest, found) = self.top(reference)?;
        let limit = self.limits.config_bytes;
        let config = &found.manifest.config;
        let config = small_blob(self.connection, self.repository, config, "configuration", limit)?;
        let parsed = parse_config(&config).map_err(|source| RegistryError::Document {
            host: self.host(),
            what: "configuration".into(),
            source,
        })?;
        let (os, architecture) = (parsed.os().to_string(), parsed.architecture().to_string());
        if !self.platform.fits_config(&os, &architecture) {
            let found = format!("{}/{}", os.escape_debug(), architecture.escape_debug());
            return Err(self.no_platform(vec![found]));
        }
        check_config(&parsed, self.limits)?;
        let diff_ids = diff_ids(&parsed)?;
        pair_layers(found.manifest.layers.len(), diff_ids.len(), self.limits)?;
        let layers: Vec<_> = found.manifest.layers.into_iter().zip(diff_ids).collect();
        for (layer, _) in &layers {
            if !is_layer(&layer.media_type) {
                let kind = layer.media_type.chars().take(200).collect();
                return Err(RegistryError::NotAnImage { what: reference.into(), kind });
            }
            if layer.size > self.limits.layer_bytes {
                let (host, what) = (self.host(), format!("layer {}", layer.digest.short()));
                let limit = self.limits.layer_bytes;
                return Err(RegistryError::TooLarge { host, what, limit });
            }
        }
        let id = found.manifest.config.digest;
        let manifest = (found.digest, found.data);
        Ok(RemoteImage { digest, manifest, id, config, layers })
    }

    fn host(&self) -> String {
        self.connection.domain.clone()
    }

    fn no_platform(&self, mut found: Vec<String>) -> RegistryError {
        found.truncate(20);
        RegistryError::Platform { wanted: self.platform.to_string(), found }
    }

    fn top(&self, reference: &str) -> Result<(Digest, Found), RegistryError> {
        let fetched = self.fetch(reference)?;
        let digest = fetched.digest.clone();
        let found = self.descend(fetched, reference, 0)?;
        Ok((digest, found))
    }

    /// Through indexes to the manifest that fits best.
    fn descend(
        &self,
        fetched: FetchedManifest,
        name: &str,
        depth: usize,
    ) -> Result<Found, RegistryError> {
        let FetchedManifest { data, declared, digest } = fetched;
        match self.parse(&data, &declared)? {
            Document::Manifest(manifest) => Ok(Found { digest, data, manifest }),
            Document::Artifact(kind) => {
                let kind = kind.chars().take(200).collect();
                Err(RegistryError::NotAnImage { what: name.to_owned(), kind })
            }
            Document::Index(_) if depth >= self.limits.index_depth => {
                let limit = self.limits.index_depth;
                Err(RegistryError::TooMany { what: "indexes inside indexes", limit })
            }
            Document::Index(descriptors) => {
                let descriptor = self.best(descriptors)?;
                let inner = self.fetch(&descriptor.digest.to_string())?;
                if inner.data.len() as u64 != descriptor.size {
                    let (host, what) = (self.host(), "manifest".to_owned());
                    let (expected, actual) = (descriptor.size, inner.data.len() as u64);
                    return Err(RegistryError::Size { host, what, expected, actual });
                }
                self.descend(inner, name, depth + 1)
            }
        }
    }

    fn best(&self, descriptors: Vec<Descriptor>) -> Result<Descriptor, RegistryError> {
        let mut others = Vec::new();
        let mut ranked: Vec<(u8, Descriptor)> = Vec::new();
        for descriptor in descriptors.into_iter().filter(|d| !d.is_attestation()) {
            match &descriptor.platform {
                // The configuration will tell.
                None => ranked.push((u8::MAX, descriptor)),
                Some(platform) => match self.platform.rank(platform) {
                    Some(rank) => ranked.push((rank, descriptor)),
                    None => others.push(platform.to_string()),
                },
            }
        }
        // Of equals the first listed.
        let best = ranked.into_iter().min_by_key(|(rank, _)| *rank);
        best.map(|(_, descriptor)| descriptor).ok_or_else(|| self.no_platform(others))
    }

    fn fetch(&self, reference: &str) -> Result<FetchedManifest, RegistryError> {
        self.connection.manifest(self.repository, reference, self.limits.manifest_bytes)
    }

    /// What is declared must not contradict what is there: two readers would see two things.
    fn parse(&self, data: &[u8], declared: &str) -> Result<Document, RegistryError> {
        let document = parse_document(data).and_then(|document| {
            let contradicts = match &document {
                Document::Index(_) => matches!(declared, OCI_MANIFEST | DOCKER_MANIFEST),
                _ => matches!(declared, OCI_INDEX | DOCKER_INDEX),
            };
            let media_type = declared.to_owned();
            if contradicts { Err(DocumentError::MediaType { media_type }) } else { Ok(document) }
        });
        document.map_err(|source| RegistryError::Document {
            host: self.host(),
            what: "manifest".into(),
            source,
        })
    }
}
