//! Image archives: a docker-archive of plain layers, an OCI layout of gzip layers.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use anyhow::Context;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    hex,
    layer::{Layer, digest_of},
};

/// As `docker save` writes it.
pub(crate) fn write_docker_archive(
    archive: &Path,
    tag: &str,
    command: &[&str],
    layers: &[Layer],
) -> anyhow::Result<()> {
    let config = config(command, layers).to_string();
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let mut tar = tar::Builder::new(File::create(archive)?);
    let mut names = Vec::new();
    for layer in layers {
        let name = format!("{}/layer.tar", layer.diff_id.trim_start_matches("sha256:"));
        tar.append_path_with_name(&layer.tar, &name)?;
        names.push(name);
    }
    append(&mut tar, &config_name, config.as_bytes())?;
    let manifest = json!([{ "Config": config_name, "RepoTags": [tag], "Layers": names }]);
    append(&mut tar, "manifest.json", manifest.to_string().as_bytes())?;
    tar.into_inner()?.flush().context("write the archive")
}

/// As the image-spec's layout, with the tag as `org.opencontainers.image.ref.name`.
pub(crate) fn write_oci_archive(
    archive: &Path,
    tag: &str,
    command: &[&str],
    layers: &[Layer],
) -> anyhow::Result<()> {
    let mut tar = tar::Builder::new(File::create(archive)?);
    append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut descriptors = Vec::new();
    for layer in layers {
        let compressed = layer.tar.with_extension("tar.gz");
        let mut encoder = GzEncoder::new(File::create(&compressed)?, Compression::new(6));
        io::copy(&mut File::open(&layer.tar)?, &mut encoder)?;
        encoder.finish()?;
        let digest = digest_of(&compressed)?;
        tar.append_path_with_name(&compressed, format!("blobs/sha256/{digest}"))?;
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": format!("sha256:{digest}"),
            "size": fs::metadata(&compressed)?.len(),
        }));
    }
    let config = append_blob(&mut tar, &config(command, layers), "image.config")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": descriptors,
    });
    let mut manifest = append_blob(&mut tar, &manifest, "image.manifest")?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    append(&mut tar, "index.json", index.to_string().as_bytes())?;
    tar.into_inner()?.flush().context("write the archive")
}

fn config(command: &[&str], layers: &[Layer]) -> Value {
    json!({
        "created": "2026-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": command,
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
        },
        "history": layers.iter().map(|_| json!({ "created": "2026-01-01T00:00:00Z", "created_by": "cargo xtask images" })).collect::<Vec<_>>(),
    })
}

/// Appends `value` as a blob and returns its descriptor.
fn append_blob(tar: &mut tar::Builder<File>, value: &Value, kind: &str) -> anyhow::Result<Value> {
    let bytes = value.to_string();
    let digest = hex(&Sha256::digest(&bytes));
    append(tar, &format!("blobs/sha256/{digest}"), bytes.as_bytes())?;
    Ok(json!({
        "mediaType": format!("application/vnd.oci.{kind}.v1+json"),
        "digest": format!("sha256:{digest}"),
        "size": bytes.len(),
    }))
}

fn append(tar: &mut tar::Builder<File>, name: &str, content: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).with_context(|| format!("append {name}"))
}
