//! The Docker archive format (`docker save`): `manifest.json` lists images, each with the
//! names of its configuration and layers.

use serde::Deserialize;

use super::config::check_config;
use super::source::Source;
use super::{LoadError, PlannedImage, PlannedLayer};
use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{DocumentError, Platform, parse_config};
use crate::reference::Reference;

const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The list of images, or `None` if this is no Docker archive.
pub(super) fn manifest(source: &Source, limits: &Limits) -> Result<Option<Vec<Item>>, LoadError> {
    let Some(data) = source.read(MANIFEST, limits.manifest_bytes)? else { return Ok(None) };
    let items: Vec<Item> = serde_json::from_slice(&data).map_err(|error| LoadError::Document {
        name: MANIFEST.to_owned(),
        source: DocumentError::Json(error),
    })?;
    if items.len() > limits.images {
        return Err(LoadError::TooMany { what: "images", limit: limits.images });
    }
    Ok(Some(items))
}

pub(super) fn plan_image(
    source: &Source,
    item: Item,
    limits: &Limits,
) -> Result<PlannedImage, LoadError> {
    let name: String = item.config.chars().take(300).collect();
    let config = source
        .read(&item.config, limits.config_bytes)?
        .ok_or_else(|| LoadError::Missing { what: "configuration", name: name.clone() })?;
    let id = Digest::of(&config);
    // Names are digests by convention; one that is must be right.
    let stem = name.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if let Ok(expected) = format!("sha256:{stem}").parse::<Digest>()
        && expected != id
    {
        return Err(LoadError::Mismatch { what: "configuration", expected, actual: id });
    }
    let parsed = parse_config(&config)
        .map_err(|source| LoadError::Document { name: name.clone(), source })?;
    check_platform(&parsed)?;
    check_config(&parsed, limits)?;
    let diff_ids = diff_ids(&parsed)?;
    let layers = item.layers.unwrap_or_default();
    pair_layers(layers.len(), diff_ids.len(), limits)?;
    let mut references = Vec::new();
    for tag in item.repo_tags.unwrap_or_default() {
        references.push(tag.parse::<Reference>()?.with_default_tag());
    }
    Ok(PlannedImage {
        references,
        config,
        id,
        manifest: None,
        layers: layers
            .into_iter()
            .zip(diff_ids)
            .map(|(file, diff_id)| PlannedLayer { file, diff_id, blob: None })
            .collect(),
    })
}

/// A configuration's diff ids, well-formed.
pub(crate) fn diff_ids(
    config: &oci_spec::image::ImageConfiguration,
) -> Result<Vec<Digest>, LoadError> {
    Ok(config.rootfs().diff_ids().iter().map(|text| text.parse()).collect::<Result<_, _>>()?)
}

pub(crate) fn pair_layers(
    layers: usize,
    diff_ids: usize,
    limits: &Limits,
) -> Result<(), LoadError> {
    if layers > limits.layers {
        return Err(LoadError::TooMany { what: "layers", limit: limits.layers });
    }
    if layers != diff_ids {
        return Err(LoadError::LayerCount { layers, diff_ids });
    }
    Ok(())
}

/// A configuration that names no platform is taken for one of ours.
pub(super) fn check_platform(
    config: &oci_spec::image::ImageConfiguration,
) -> Result<(), LoadError> {
    let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
    let platform = Platform {
        architecture: or(config.architecture().to_string(), "amd64"),
        os: or(config.os().to_string(), "linux"),
        variant: None,
    };
    match platform.rank() {
        Some(_) => Ok(()),
        None => Err(LoadError::Platform { found: vec![platform.to_string()] }),
    }
}
