//! Images: find, list, tag, remove, and what a VM needs of one.

use std::path::PathBuf;

use caisson_failpoints::{pass, steps};
use oci_spec::image::ImageConfiguration;
use rusqlite::{OptionalExtension, Params, Row, Transaction, TransactionBehavior};

use super::{Store, StoreError, names};
use crate::digest::Digest;
use crate::manifest::parse_config;
use crate::reference::Reference;

/// Shorter prefixes of an id are names.
const MIN_ID_PREFIX: usize = 4;

/// An image of the store.
#[derive(Clone, Debug)]
pub struct Image {
    /// The digest of the configuration, which is what Docker calls an image id.
    pub id: Digest,
    pub manifest: Digest,
    /// In canonical order; empty for a dangling image.
    pub references: Vec<Reference>,
    /// `repository@digest`, by which registries have it.
    pub repo_digests: Vec<Reference>,
    pub config: ImageConfiguration,
    /// Bottom layer first; the empty layer stands for an image that has none.
    pub diff_ids: Vec<Digest>,
    /// Of the uncompressed layers.
    pub size_bytes: u64,
}

/// One row of a listing; known from the database alone, so that a damaged image can be
/// listed and removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSummary {
    pub id: Digest,
    pub manifest: Digest,
    pub references: Vec<Reference>,
    /// `repository@digest`, by which registries have it.
    pub repo_digests: Vec<Reference>,
    /// RFC 3339, as the image states it.
    pub created: Option<String>,
    pub size_bytes: u64,
    /// Owners of leases.
    pub leases: u64,
}

/// What [`Store::remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Familiar names.
    pub untagged: Vec<String>,
    /// Image ids.
    pub deleted: Vec<String>,
}

/// A column's text. One that holds something else must not keep others from being read:
/// it is empty, which is no digest and no name.
fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(row.get_ref(column)?.as_str().unwrap_or_default().to_owned())
}

/// A column's number; 0 if it holds none.
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<i64> {
    Ok(row.get_ref(column)?.as_i64().unwrap_or_default())
}

/// How a name found its image.
enum Found {
    ByName(Digest, Reference),
    ById(Digest),
}

impl Store {
    /// Finds an image by `repo[:tag]`, `repo@digest`, or by its id or a unique prefix of it.
    pub fn resolve(&self, name: &str) -> Result<Image, StoreError> {
        let (Found::ByName(id, _) | Found::ById(id)) = self.find(name)?;
        self.image(&id)
    }

    /// All images, the newest first.
    pub fn images(&self) -> Result<Vec<ImageSummary>, StoreError> {
        type Row = (String, String, Option<String>, i64, i64);
        let rows: Vec<Row> = {
            let connection = self.connection();
            let failed = self.db_error("list images");
            let mut statement = connection
                .prepare(
                    "SELECT id, manifest, created, size_bytes,
                        (SELECT count(*) FROM leases WHERE leases.image = images.id)
                     FROM images WHERE removed = 0 ORDER BY created DESC, id",
                )
                .map_err(&failed)?;
            let rows = statement
                .query_map([], |row| {
                    let created = row.get_ref(2)?.as_str().ok().map(str::to_owned);
                    Ok((text(row, 0)?, text(row, 1)?, created, number(row, 3)?, number(row, 4)?))
                })
                .map_err(&failed)?;
            rows.collect::<rusqlite::Result<_>>().map_err(&failed)?
        };
        let mut images = Vec::with_capacity(rows.len());
        for (id, manifest, created, size_bytes, leases) in rows {
            // A row that cannot be read must not hide the others.
            let (Ok(digest), Ok(manifest)) = (id.parse::<Digest>(), manifest.parse()) else {
                tracing::warn!(image = %id.escape_debug(), "a damaged row in the image table");
                continue;
            };
            images.push(ImageSummary {
                references: self.references(&digest)?,
                repo_digests: self.repo_digests(&digest)?,
                id: digest,
                manifest,
                created,
                size_bytes: size_bytes.max(0) as u64,
                leases: leases.max(0) as u64,
            });
        }
        Ok(images)
    }

    /// Gives the image that `name` finds another name; a name in use moves.
    pub fn tag(&self, name: &str, reference: &Reference) -> Result<(), StoreError> {
        let image = self.resolve(name)?;
        self.add_name(&image.id, reference)
    }

    pub(crate) fn add_name(&self, id: &Digest, reference: &Reference) -> Result<(), StoreError> {
        let reference = reference.clone().with_default_tag();
        if reference.digest().is_some() {
            return Err(StoreError::TagIsDigest { name: reference.familiar() });
        }
        self.connection()
            .execute(
                "INSERT OR REPLACE INTO names VALUES (?1, ?2)",
                (reference.to_string(), id.to_string()),
            )
            .map_err(self.db_error("tag an image"))?;
        Ok(())
    }

    /// Removes a name and, with its last name, the image, as `docker rmi` does. While the
    /// image is leased that is refused; `force` takes its names and leaves the rest to the
    /// end of the last lease.
    pub fn remove(&self, name: &str, force: bool) -> Result<Removed, StoreError> {
        let removed = match self.find(name)? {
            Found::ByName(id, reference) => self.remove_name(&id, &reference, force),
            Found::ById(id) => self.remove_image(&id, force),
        }?;
        if !removed.deleted.is_empty() {
            self.gc()?;
        }
        Ok(removed)
    }

    /// The EROFS files to stack, bottom first, each checked to be there with its full size.
    /// There is always at least one: an image without layers has an empty one.
    pub fn layers(&self, image: &Image) -> Result<Vec<PathBuf>, StoreError> {
        let mut paths = Vec::with_capacity(image.diff_ids.len());
        for diff_id in &image.diff_ids {
            let row = self.layer_row(diff_id)?;
            let Some((file_bytes, opaque)) = row else {
                let what = format!("the store does not know layer {diff_id}");
                return Err(StoreError::damaged(&image.id, what));
            };
            let path = self.layer_path(diff_id);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() == file_bytes => {}
                Ok(metadata) => {
                    let what = format!(
                        "layer {} has {} bytes instead of {file_bytes}",
                        path.display(),
                        metadata.len()
                    );
                    return Err(StoreError::damaged(&image.id, what));
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    let what = format!("layer {} is missing", path.display());
                    return Err(StoreError::damaged(&image.id, what));
                }
                Err(error) => return Err(StoreError::io("look at", &path)(error)),
            }
            if opaque {
                // Its root hides all below, which overlayfs does not do by itself for roots.
                paths.clear();
            }
            paths.push(path);
        }
        Ok(paths)
    }

    /// `(file_bytes, opaque)` of a converted layer.
    pub(super) fn layer_row(&self, diff_id: &Digest) -> Result<Option<(u64, bool)>, StoreError> {
        self.connection()
            .query_row(
                "SELECT file_bytes, opaque FROM layers WHERE diff_id = ?1",
                [diff_id.to_string()],
                |row| Ok((row.get::<_, i64>(0)?.max(0) as u64, row.get(1)?)),
            )
            .optional()
            .map_err(self.db_error("look up a layer"))
    }

    pub(super) fn image(&self, id: &Digest) -> Result<Image, StoreError> {
        let (manifest, size_bytes): (String, i64) = self
            .connection()
            .query_row(
                "SELECT manifest, size_bytes FROM images WHERE id = ?1",
                [id.to_string()],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .map_err(self.db_error("read an image"))?;
        let damaged_row = |source| StoreError::DamagedRow { image: id.short().to_owned(), source };
        let config = self
            .read_blob(id, self.options.limits.config_bytes)?
            .ok_or_else(|| StoreError::damaged(id, "its configuration is missing or altered"))?;
        let config = parse_config(&config)
            .map_err(|error| StoreError::damaged(id, format!("its configuration: {error}")))?;
        let sql = "SELECT diff_id FROM image_layers WHERE image = ?1 ORDER BY position";
        let diff_ids = self.strings("read an image's layers", sql, [id.to_string()])?;
        Ok(Image {
            id: id.clone(),
            manifest: manifest.parse().map_err(damaged_row)?,
            references: self.references(id)?,
            repo_digests: self.repo_digests(id)?,
            config,
            diff_ids: diff_ids
                .iter()
                .map(|diff_id| diff_id.parse())
                .collect::<Result<_, _>>()
                .map_err(damaged_row)?,
            size_bytes: size_bytes.max(0) as u64,
        })
    }

    fn find(&self, name: &str) -> Result<Found, StoreError> {
        // `sha256:…` would parse as a repository called sha256.
        let reference = match name.strip_prefix("sha256:") {
            Some(_) => None,
            None => name.parse::<Reference>().ok().map(Reference::with_default_tag),
        };
        if let Some(reference) = reference
            && let Some(id) = self.find_reference(&reference)?
        {
            return Ok(Found::ByName(id, reference));
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        let lower_hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if (MIN_ID_PREFIX..=64).contains(&prefix.len()) && prefix.bytes().all(lower_hex) {
            let sql = "SELECT id FROM images WHERE removed = 0 AND id GLOB ?1 || '*' LIMIT 3";
            let ids = self.strings("find an image", sql, [format!("sha256:{prefix}")])?;
            match ids.as_slice() {
                [] => {}
                [id] => {
                    let id = id.parse().map_err(|source| StoreError::DamagedRow {
                        image: prefix.to_owned(),
                        source,
                    })?;
                    return Ok(Found::ById(id));
                }
                _ => return Err(StoreError::AmbiguousId { prefix: prefix.to_owned(), ids }),
            }
        }
        Err(self.not_found(name)?)
    }

    /// By tag, or by the digest of a manifest that has a name in that repository.
    fn find_reference(&self, reference: &Reference) -> Result<Option<Digest>, StoreError> {
        let ids = match reference.digest() {
            None => {
                let sql = "SELECT image FROM names WHERE name = ?1";
                self.strings("find an image", sql, [reference.to_string()])?
            }
            Some(digest) => {
                let sql = "SELECT image FROM repo_digests WHERE name = ?2 || '@' || ?1
                           UNION
                           SELECT id FROM images JOIN names ON image = id
                           WHERE (manifest = ?1 OR id = ?1)
                           AND substr(name, 1, length(?2) + 1) = ?2 || ':'";
                self.strings("find an image", sql, (digest.to_string(), reference.repository()))?
            }
        };
        Ok(ids.first().and_then(|id| id.parse().ok()))
    }

    fn not_found(&self, name: &str) -> Result<StoreError, StoreError> {
        let known = self.strings("list names", "SELECT name FROM names", [])?;
        let familiar: Vec<String> = known
            .iter()
            .filter_map(|name| name.parse::<Reference>().ok())
            .map(|reference| reference.familiar())
            .collect();
        let near = names::near(name, familiar.iter().map(String::as_str));
        Ok(StoreError::NotFound { name: name.chars().take(300).collect(), near })
    }

    fn references(&self, id: &Digest) -> Result<Vec<Reference>, StoreError> {
        let sql = "SELECT name FROM names WHERE image = ?1 ORDER BY name";
        let names = self.strings("list names", sql, [id.to_string()])?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn remove_name(
        &self,
        id: &Digest,
        reference: &Reference,
        force: bool,
    ) -> Result<Removed, StoreError> {
        let references = self.references(id)?;
        if references.len() <= 1 || reference.digest().is_some() {
            return self.remove_image(id, force);
        }
        self.durably("untag an image", |transaction| {
            transaction
                .execute("DELETE FROM names WHERE name = ?1", [reference.to_string()])
                .map(drop)
        })?;
        Ok(Removed { untagged: vec![reference.familiar()], deleted: vec![] })
    }

    fn remove_image(&self, id: &Digest, force: bool) -> Result<Removed, StoreError> {
        let references = self.references(id)?;
        let untagged: Vec<String> = references.iter().map(Reference::familiar).collect();
        let key = id.to_string();
        let owners = self.owners(&key)?;
        if !owners.is_empty() && !force {
            let image = untagged.first().cloned().unwrap_or_else(|| id.short().to_owned());
            return Err(StoreError::InUse { image, owners });
        }
        if references.len() > 1 && !force {
            let id = id.short().to_owned();
            return Err(StoreError::SeveralNames { id, names: untagged });
        }
        // The lease check is repeated inside: a container may have appeared since.
        let deleted = self.durably("remove an image", |transaction| {
            transaction.execute("DELETE FROM names WHERE image = ?1", [&key])?;
            transaction.execute("DELETE FROM repo_digests WHERE image = ?1", [&key])?;
            let deleted = transaction.execute(
                "DELETE FROM images WHERE id = ?1
                 AND NOT EXISTS (SELECT 1 FROM leases WHERE image = ?1)",
                [&key],
            )?;
            if deleted == 0 {
                transaction.execute("UPDATE images SET removed = 1 WHERE id = ?1", [&key])?;
            }
            Ok(deleted == 1)
        })?;
        Ok(Removed { untagged, deleted: if deleted { vec![key] } else { vec![] } })
    }

    /// A transaction that survives a power loss once it has returned: files are deleted on
    /// its word.
    pub(super) fn durably<T>(
        &self,
        action: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let failed = self.db_error(action);
        let mut connection = self.connection();
        connection.pragma_update(None, "synchronous", "FULL").map_err(&failed)?;
        let result = connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(
            |transaction| {
                let value = change(&transaction)?;
                pass(&steps::STORE_COMMIT);
                transaction.commit()?;
                pass(&steps::STORE_COMMITTED);
                Ok(value)
            },
        );
        connection.pragma_update(None, "synchronous", "NORMAL").map_err(&failed)?;
        result.map_err(failed)
    }

    pub(super) fn strings(
        &self,
        action: &'static str,
        sql: &str,
        parameters: impl Params,
    ) -> Result<Vec<String>, StoreError> {
        let connection = self.connection();
        let rows = connection.prepare(sql).and_then(|mut statement| {
            statement.query_map(parameters, |row| text(row, 0))?.collect()
        });
        rows.map_err(self.db_error(action))
    }
}
