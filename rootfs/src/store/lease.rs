//! Leases: who needs an image's layers to stay.

use caisson_failpoints::{hit, steps};

use super::{Image, Store, StoreError};

const MAX_OWNER_LEN: usize = 256;

impl Store {
    /// Keeps `image` and its layers until `owner` (such as `container/<id>`) releases them.
    /// Repeating it changes nothing.
    pub fn lease(&self, owner: &str, image: &Image) -> Result<(), StoreError> {
        let printable = owner.bytes().all(|b| b.is_ascii_graphic());
        if owner.is_empty() || owner.len() > MAX_OWNER_LEN || !printable {
            return Err(StoreError::Owner(owner.chars().take(64).collect()));
        }
        hit(&steps::STORE_LEASE).map_err(StoreError::io("lease an image in", &self.root))?;
        // The foreign key refuses an image that was deleted since it was resolved.
        let id = image.id.to_string();
        let inserted = self
            .connection()
            .execute(
                "INSERT OR IGNORE INTO leases SELECT ?1, id FROM images WHERE id = ?2",
                (owner, &id),
            )
            .map_err(self.db_error("lease an image"))?;
        if inserted == 0 && !self.owners(&id)?.iter().any(|known| known == owner) {
            return Err(StoreError::NotFound { name: image.id.short().to_owned(), near: vec![] });
        }
        Ok(())
    }

    /// Ends all leases of `owner`; none is fine.
    pub fn release(&self, owner: &str) -> Result<(), StoreError> {
        hit(&steps::STORE_RELEASE).map_err(StoreError::io("release a lease in", &self.root))?;
        self.connection()
            .execute("DELETE FROM leases WHERE owner = ?1", [owner])
            .map_err(self.db_error("release a lease"))?;
        Ok(())
    }

    /// Every owner that holds a lease, for a component that reconciles its own records.
    pub fn lease_owners(&self) -> Result<Vec<String>, StoreError> {
        self.strings("list leases", "SELECT DISTINCT owner FROM leases ORDER BY owner", [])
    }

    pub(super) fn owners(&self, image_id: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT owner FROM leases WHERE image = ?1 ORDER BY owner";
        self.strings("list leases", sql, [image_id])
    }
}
