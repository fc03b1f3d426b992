//! The database file, its pragmas and its migrations.
//!
//! Several components keep tables in the one file (images here, containers in the CLI).
//! Each brings its own migrations and has its own version number.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::error::StoreError;

/// How long a command waits for another one's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

const IMAGES: &[&str] = &[
    "
    CREATE TABLE images (
        id         TEXT PRIMARY KEY,   -- digest of the configuration
        manifest   TEXT NOT NULL,      -- digest of the manifest
        created    TEXT,               -- as the configuration says, RFC 3339
        size_bytes INTEGER NOT NULL,   -- uncompressed layers
        removed    INTEGER NOT NULL DEFAULT 0  -- goes with its last lease
    );
    CREATE TABLE image_layers (
        image      TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
        position   INTEGER NOT NULL,   -- 0 is the bottom
        diff_id    TEXT NOT NULL,
        blob       TEXT NOT NULL,      -- digest of the layer as it came
        PRIMARY KEY (image, position)
    );
    CREATE TABLE layers (
        diff_id    TEXT PRIMARY KEY,
        size_bytes INTEGER NOT NULL,   -- uncompressed
        file_bytes INTEGER NOT NULL,   -- of the EROFS file
        opaque     INTEGER NOT NULL    -- hides all layers below
    );
    CREATE TABLE names (
        name       TEXT PRIMARY KEY,   -- canonical: docker.io/library/debian:12
        image      TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
    );
    CREATE TABLE leases (
        owner      TEXT NOT NULL,
        image      TEXT NOT NULL REFERENCES images(id),
        PRIMARY KEY (owner, image)
    );
    CREATE INDEX names_image ON names(image);
    CREATE INDEX leases_image ON leases(image);
    CREATE INDEX image_layers_diff_id ON image_layers(diff_id);
",
    "
    CREATE TABLE repo_digests (
        name       TEXT PRIMARY KEY,   -- docker.io/library/debian@sha256:…
        image      TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
    );
    CREATE INDEX repo_digests_image ON repo_digests(image);
    CREATE INDEX image_layers_blob ON image_layers(blob);
",
];

pub(crate) fn database_path(root: &Path) -> PathBuf {
    root.join("caisson.db")
}

/// Opens `<root>/caisson.db`, creating it if need be, with the pragmas all components
/// share. The directory must exist.
pub fn open_database(root: &Path) -> Result<Connection, StoreError> {
    let path = database_path(root);
    let failed = |action| {
        let database = path.clone();
        move |source| StoreError::database(action, &database, source)
    };
    let connection = Connection::open(&path).map_err(failed("open the state"))?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed("set up the state"))?;
    // WAL: readers and a writer do not block each other. NORMAL: a power loss may undo the
    // last transactions, in order and whole; what deletes files asks for more.
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON;",
        )
        .map_err(failed("set up the state"))?;
    Ok(connection)
}

/// Brings `component`'s tables up to date: `steps[n]` leads from version n to n + 1, and is
/// never changed once released.
pub fn migrate(
    connection: &mut Connection,
    component: &str,
    steps: &[&str],
) -> Result<(), StoreError> {
    let database = PathBuf::from(connection.path().unwrap_or("caisson.db"));
    let failed = |source| StoreError::database("migrate the tables", &database, source);
    let known = u32::try_from(steps.len()).expect("a component has few migrations");
    let version = |connection: &Connection| -> rusqlite::Result<Option<u32>> {
        connection
            .query_row("SELECT version FROM versions WHERE component = ?1", [component], |row| {
                row.get(0)
            })
            .optional()
    };
    // The common case takes no write lock.
    if version(connection).is_ok_and(|found| found == Some(known)) {
        return Ok(());
    }
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    transaction
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS versions (
                component TEXT PRIMARY KEY, version INTEGER NOT NULL);",
        )
        .map_err(failed)?;
    let found = version(&transaction).map_err(failed)?.unwrap_or(0);
    if found > known {
        let component = component.to_owned();
        return Err(StoreError::NewerSchema { database, component, found, known });
    }
    for step in &steps[found as usize..] {
        transaction.execute_batch(step).map_err(failed)?;
    }
    transaction
        .execute("INSERT OR REPLACE INTO versions VALUES (?1, ?2)", (component, known))
        .map_err(failed)?;
    transaction.commit().map_err(failed)
}

pub(super) fn migrate_images(connection: &mut Connection) -> Result<(), StoreError> {
    migrate(connection, "images", IMAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_migrate_apart_and_a_newer_version_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let mut connection = open_database(root.path()).unwrap();
        let first = ["CREATE TABLE a (x)"];
        let both = ["CREATE TABLE a (x)", "ALTER TABLE a ADD COLUMN y"];
        migrate(&mut connection, "containers", &first).unwrap();
        migrate(&mut connection, "containers", &first).unwrap();
        migrate(&mut connection, "volumes", &["CREATE TABLE b (x)"]).unwrap();
        migrate(&mut connection, "containers", &both).unwrap();
        connection.execute("INSERT INTO a (x, y) VALUES (1, 2)", []).unwrap();
        let error = migrate(&mut connection, "containers", &first).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 2, known: 1, .. }), "{error}");
    }

    #[test]
    fn a_failed_migration_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut connection = open_database(root.path()).unwrap();
        let bad = ["CREATE TABLE a (x)", "nonsense"];
        assert!(migrate(&mut connection, "c", &bad).is_err());
        migrate(&mut connection, "c", &["CREATE TABLE a (x)"]).unwrap();
    }

    #[test]
    fn a_file_that_is_no_database_is_reported_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let garbage = vec![0x5a; 8192];
        std::fs::write(database_path(root.path()), &garbage).unwrap();
        let opened = open_database(root.path())
            .and_then(|mut connection| migrate_images(&mut connection))
            .unwrap_err();
        assert!(opened.to_string().contains("caisson.db"), "{opened}");
        assert_eq!(std::fs::read(database_path(root.path())).unwrap(), garbage);
    }
}
