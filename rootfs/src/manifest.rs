//! OCI and Docker JSON documents: index, manifest, configuration. Parsed loosely (unknown
//! fields and types are fine), used strictly (digests and sizes are checked).

use std::collections::BTreeMap;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use crate::digest::Digest;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Descriptor {
        let media_type = media_type.to_owned();
        Descriptor { media_type, digest, size, platform: None, annotations: None }
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// BuildKit's provenance and SBOM documents, which are listed beside the images.
    pub(crate) fn is_attestation(&self) -> bool {
        self.annotation("vnd.docker.reference.type") == Some("attestation-manifest")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// How well an image for this platform runs here: `None` not at all, the lowest best.
    pub(crate) fn rank(&self) -> Option<u8> {
        if self.os != "linux" || self.architecture != "amd64" {
            return None;
        }
        match self.variant.as_deref() {
            None | Some("" | "v1") => Some(0),
            Some("v2") => Some(1),
            Some("v3") => Some(2),
            Some(_) => Some(3),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os.escape_debug(), self.architecture.escape_debug())?;
        match self.variant.as_deref() {
            None | Some("") => Ok(()),
            Some(variant) => write!(f, "/{}", variant.escape_debug()),
        }
    }
}

/// An index or a manifest; which of them, the fields tell (media types may be absent or
/// lie). A document that is both is refused: two readers would see two images.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AnyDocument {
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
    /// Something that is no container image, such as a Helm chart.
    Artifact(String),
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

#[derive(Debug, Error)]
pub enum DocumentError {
    #[error("it is not valid JSON of the expected shape")]
    Json(#[source] serde_json::Error),
    #[error("it is both an index and a manifest")]
    Ambiguous,
    #[error("it is neither an index nor a manifest")]
    Neither,
    #[error("it has the obsolete schema 1; push the image again with a current tool")]
    SchemaOne,
    #[error("its media type {media_type:?} contradicts its content")]
    MediaType { media_type: String },
}

pub(crate) fn parse_document(data: &[u8]) -> Result<Document, DocumentError> {
    let any: AnyDocument = serde_json::from_slice(data).map_err(DocumentError::Json)?;
    let media_type = any.media_type.unwrap_or_default();
    let contradicts = |wrong: [&str; 2]| wrong.contains(&media_type.as_str());
    match (any.manifests, any.config) {
        (Some(_), Some(_)) => Err(DocumentError::Ambiguous),
        (Some(_), None) if any.layers.is_some() => Err(DocumentError::Ambiguous),
        (Some(_), None) if contradicts([OCI_MANIFEST, DOCKER_MANIFEST]) => {
            Err(DocumentError::MediaType { media_type })
        }
        (Some(manifests), None) => Ok(Document::Index(manifests)),
        (None, Some(_)) if contradicts([OCI_INDEX, DOCKER_INDEX]) => {
            Err(DocumentError::MediaType { media_type })
        }
        (None, Some(config)) if !is_image_config(&config.media_type) => {
            Ok(Document::Artifact(any.artifact_type.unwrap_or(config.media_type)))
        }
        (None, Some(config)) => Ok(Document::Manifest(Manifest {
            schema_version: 2,
            media_type,
            config,
            layers: any.layers.unwrap_or_default(),
        })),
        (None, None) if any.fs_layers.is_some() => Err(DocumentError::SchemaOne),
        (None, None) => Err(DocumentError::Neither),
    }
}

fn is_image_config(media_type: &str) -> bool {
    matches!(media_type, "" | OCI_CONFIG | "application/vnd.docker.container.image.v1+json")
}

/// Whether a layer of this type is a tar archive of files; its compression is recognised
/// by content.
pub(crate) fn is_layer(media_type: &str) -> bool {
    let base = media_type.split(['+', ';']).next().unwrap_or_default();
    matches!(
        base,
        "" | OCI_LAYER
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    )
}

/// A configuration. Docker's `null` where the specification wants a list is an empty list.
pub(crate) fn parse_config(data: &[u8]) -> Result<ImageConfiguration, DocumentError> {
    let mut value: serde_json::Value = serde_json::from_slice(data).map_err(DocumentError::Json)?;
    if let Some(object) = value.as_object_mut() {
        let rootfs = object.entry("rootfs").or_insert_with(|| serde_json::json!({}));
        if rootfs.is_null() {
            *rootfs = serde_json::json!({});
        }
        if let Some(rootfs) = rootfs.as_object_mut() {
            rootfs.entry("type").or_insert_with(|| "layers".into());
            let diff_ids = rootfs.entry("diff_ids").or_insert_with(|| serde_json::json!([]));
            if diff_ids.is_null() {
                *diff_ids = serde_json::json!([]);
            }
        }
        for key in ["architecture", "os"] {
            object.entry(key).or_insert_with(|| "".into());
        }
    }
    serde_json::from_value(value).map_err(DocumentError::Json)
}

/// When an image was made, as its configuration says: RFC 3339 in UTC, or nothing.
pub(crate) fn created(config: &[u8]) -> Option<String> {
    let created = parse_config(config).ok()?.created().clone()?;
    OffsetDateTime::parse(&created, &Rfc3339).ok()?.to_offset(UtcOffset::UTC).format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":0}}"#)
    }

    #[test]
    fn an_index_a_manifest_and_an_artifact_are_told_apart() {
        let d = descriptor(OCI_CONFIG);
        let index = format!(r#"{{"manifests":[{d}]}}"#);
        assert!(matches!(parse_document(index.as_bytes()), Ok(Document::Index(_))));
        let manifest = format!(r#"{{"config":{d},"layers":[{d}]}}"#);
        assert!(matches!(parse_document(manifest.as_bytes()), Ok(Document::Manifest(_))));
        let chart = descriptor("application/vnd.cncf.helm.config.v1+json");
        let artifact = format!(r#"{{"config":{chart},"layers":[]}}"#);
        assert!(matches!(parse_document(artifact.as_bytes()), Ok(Document::Artifact(_))));
    }

    #[test]
    fn a_document_that_two_readers_would_see_differently_is_refused() {
        let d = descriptor(OCI_CONFIG);
        for bad in [
            format!(r#"{{"manifests":[{d}],"config":{d},"layers":[]}}"#),
            format!(r#"{{"manifests":[{d}],"layers":[{d}]}}"#),
            format!(r#"{{"mediaType":"{OCI_INDEX}","config":{d},"layers":[]}}"#),
            format!(r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[]}}"#),
            r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(),
            "{}".to_owned(),
            "[]".to_owned(),
            format!(r#"{{"config":{},"layers":[]}}"#, d.replace(DIGEST, "sha256:0")),
            format!(r#"{{"config":{},"layers":[]}}"#, d.replace(":0}", ":-1}")),
        ] {
            assert!(parse_document(bad.as_bytes()).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn configurations_as_docker_writes_them_are_read() {
        let config = parse_config(
            br#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z",
                "config":{"Env":null,"Cmd":["sh"],"Entrypoint":null,"Labels":null,
                          "Volumes":null,"ExposedPorts":{"80/tcp":{}},"OnBuild":null,
                          "Healthcheck":{"Test":["NONE"]},"ArgsEscaped":true},
                "container_config":{},"history":null,"rootfs":{"type":"layers","diff_ids":null}}"#,
        )
        .unwrap();
        assert!(config.rootfs().diff_ids().is_empty());
        let config = config.config().as_ref().unwrap();
        assert_eq!(config.cmd().as_deref(), Some(&["sh".to_owned()][..]));
        assert!(parse_config(b"{}").unwrap().rootfs().diff_ids().is_empty());
        assert!(parse_config(b"[]").is_err());
    }

    #[test]
    fn times_are_normalised() {
        let created = |text: &str| created(format!(r#"{{"created":"{text}"}}"#).as_bytes());
        let utc = created("2024-05-06T01:02:03.5+02:00");
        assert_eq!(utc.as_deref(), Some("2024-05-05T23:02:03.5Z"));
        assert_eq!(created("yesterday"), None);
    }

    #[test]
    fn the_platform_without_a_variant_is_preferred() {
        let rank = |architecture: &str, os: &str, variant: Option<&str>| {
            let variant = variant.map(str::to_owned);
            Platform { architecture: architecture.into(), os: os.into(), variant }.rank()
        };
        assert_eq!(rank("arm64", "linux", None), None);
        assert_eq!(rank("amd64", "windows", None), None);
        assert!(rank("amd64", "linux", None) < rank("amd64", "linux", Some("v2")));
        assert!(rank("amd64", "linux", Some("v2")) < rank("amd64", "linux", Some("v3")));
    }
}
