//! What images take of the disk, layer by layer.

use super::{Store, StoreError};

/// One layer in one image. A layer that several images have is listed for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerUse {
    /// The image's id.
    pub image: String,
    pub diff_id: String,
    /// Uncompressed.
    pub size_bytes: u64,
}

impl Store {
    /// The layers of all images that can be seen.
    pub fn layer_uses(&self) -> Result<Vec<LayerUse>, StoreError> {
        let connection = self.connection();
        let failed = self.db_error("list layers");
        let mut statement = connection
            .prepare(
                "SELECT DISTINCT image, image_layers.diff_id, layers.size_bytes
                 FROM image_layers
                 JOIN layers ON layers.diff_id = image_layers.diff_id
                 JOIN images ON images.id = image
                 WHERE removed = 0 ORDER BY image",
            )
            .map_err(&failed)?;
        let rows = statement
            .query_map([], |row| {
                let size: i64 = row.get(2)?;
                let size_bytes = u64::try_from(size).unwrap_or(0);
                Ok(LayerUse { image: row.get(0)?, diff_id: row.get(1)?, size_bytes })
            })
            .map_err(&failed)?;
        rows.collect::<rusqlite::Result<_>>().map_err(failed)
    }
}
