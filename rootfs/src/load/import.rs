//! `import`: a root file system's tar becomes an image of one layer.

mod changes;

use std::io::Read;
use std::path::PathBuf;
use std::time::SystemTime;

use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use self::changes::ChangeError;
use self::changes::{RunConfig, apply};
use super::{LoadError, synthesize_manifest};
use crate::digest::Digest;
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::{ImageRecord, LayerInput, Store};

/// What [`Store::import`] reads; gzip, zstd or plain.
pub enum ImportSource<'a> {
    Path(PathBuf),
    Reader(Box<dyn Read + 'a>),
}

/// How the imported image is to run.
#[derive(Clone, Debug, Default)]
pub struct ImportConfig {
    /// Dockerfile instructions as `docker import --change` takes them: `CMD`, `ENTRYPOINT`,
    /// `ENV`, `EXPOSE`, `LABEL`, `STOPSIGNAL`, `USER`, `VOLUME`, `WORKDIR`.
    pub changes: Vec<String>,
    /// The history's comment.
    pub message: Option<String>,
    /// When the image was made; now by default.
    pub created: Option<SystemTime>,
}

#[derive(Debug, Error)]
pub enum ImportError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Load(#[from] LoadError),
}

impl Store {
    /// Makes an image of a root file system's tar and gives it `reference`, if any.
    pub fn import(
        &self,
        source: ImportSource<'_>,
        reference: Option<&Reference>,
        config: &ImportConfig,
        progress: &dyn Progress,
    ) -> Result<Digest, ImportError> {
        let mut run_config = RunConfig::default();
        for change in &config.changes {
            apply(change, &mut run_config)?;
        }
        let reader: Box<dyn Read + '_> = match source {
            ImportSource::Path(path) => match std::fs::File::open(&path) {
                Ok(file) => Box::new(file),
                Err(source) => return Err(LoadError::Open { path, source }.into()),
            },
            ImportSource::Reader(reader) => reader,
        };
        let mut reader = Some(reader);
        let open = || Ok(reader.take().expect("a layer without a diff id is opened once"));
        let _adding = self.lock_to_add().map_err(LoadError::Store)?;
        let input = LayerInput { diff_id: None, blob: None };
        let layer = self.add_layer(input, open, progress)?;
        let created = timestamp(config.created.unwrap_or_else(SystemTime::now));
        let json = serde_json::json!({
            "architecture": "amd64",
            "os": "linux",
            "created": created,
            "config": run_config,
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id] },
            "history": [{ "created": created, "comment": config.message.clone().unwrap_or_default() }],
        });
        let json = serde_json::to_vec(&json).expect("a configuration is plain data");
        let id = Digest::of(&json);
        let manifest = synthesize_manifest(&id, json.len() as u64, vec![layer.descriptor.clone()]);
        let references: Vec<Reference> =
            reference.map(|name| name.clone().with_default_tag()).into_iter().collect();
        self.record_image(&ImageRecord {
            id: &id,
            config: &json,
            manifest: (&manifest.0, &manifest.1),
            created: Some(&created),
            layers: &[layer],
            references: &references,
        })
        .map_err(LoadError::Store)?;
        Ok(id)
    }
}

fn timestamp(time: SystemTime) -> String {
    OffsetDateTime::from(time)
        .format(&Rfc3339)
        .unwrap_or_else(|_| "1970-01-01T00:00:00Z".to_owned())
}
