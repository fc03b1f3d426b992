//! Rows that someone has tampered with, and databases that are none.

use rusqlite::types::Value;

use super::*;
use crate::progress::Silent;
use crate::tar::testing::TarBuilder;
use crate::{ImportConfig, ImportSource, Reference};

/// A store with the images `good` and `bad`.
fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    for name in ["good", "bad"] {
        let tar = TarBuilder::new().file(name, name.as_bytes()).finish();
        let reference: Reference = name.parse().unwrap();
        let source = ImportSource::Reader(Box::new(&tar[..]));
        store.import(source, Some(&reference), &ImportConfig::default(), &Silent).unwrap();
    }
    (root, store)
}

#[test]
fn a_row_with_hostile_content_hides_no_other_image_and_can_be_removed() {
    let hostile = || {
        [
            Value::Text("../../../../etc/passwd".to_owned()),
            Value::Text(String::new()),
            Value::Text("sha256:\u{1b}[2J".to_owned()),
            Value::Integer(-1),
            Value::Integer(i64::MAX),
            Value::Real(f64::NAN),
            Value::Blob(vec![0xff; 70]),
        ]
    };
    let columns = [
        ("images", "manifest"),
        ("images", "created"),
        ("images", "size_bytes"),
        ("image_layers", "diff_id"),
        ("image_layers", "blob"),
        ("layers", "size_bytes"),
        ("layers", "file_bytes"),
        ("layers", "opaque"),
    ];
    for (table, column) in columns {
        for value in hostile() {
            let (_root, store) = store();
            let bad = store.resolve("bad").unwrap();
            let key = match table {
                "images" => ("id", bad.id.to_string()),
                "image_layers" => ("image", bad.id.to_string()),
                _ => {
                    let of_bad = "SELECT diff_id FROM image_layers WHERE image = ?1";
                    let id = bad.id.to_string();
                    let row = store.connection().query_row(of_bad, [id], |row| row.get(0));
                    ("diff_id", row.unwrap())
                }
            };
            let sql = format!("UPDATE {table} SET {column} = ?1 WHERE {} = ?2", key.0);
            let shown = format!("{table}.{column} = {value:?}");
            if store.connection().execute(&sql, (value, key.1)).is_err() {
                continue; // NaN is NULL, which the column does not take.
            }
            let good = store.resolve("good").unwrap_or_else(|error| panic!("{shown}: {error}"));
            store.layers(&good).unwrap_or_else(|error| panic!("{shown}: {error}"));
            let listed = store.images().unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert!(listed.iter().any(|image| image.id == good.id), "{shown}");
            // Whatever is said of the bad one, it is said with its way out, not by a panic.
            let _ = store.resolve("bad").and_then(|bad| store.layers(&bad));
            store.gc().unwrap_or_else(|error| panic!("{shown}: {error}"));
            store.remove("bad", true).unwrap_or_else(|error| panic!("{shown}: {error}"));
            assert!(store.layers(&good).is_ok(), "{shown}");
            assert_eq!(store.images().unwrap().len(), 1, "{shown}");
        }
    }
}

#[test]
fn a_database_cut_anywhere_is_reported_and_left_as_it_is() {
    let (root, store) = store();
    drop(store);
    let path = schema::database_path(root.path());
    // All of it in the one file.
    let connection = Connection::open(&path).unwrap();
    connection
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = DELETE;")
        .unwrap();
    drop(connection);
    let whole = fs::read(&path).unwrap();
    for length in (1..whole.len()).step_by(997) {
        fs::write(&path, &whole[..length]).unwrap();
        for suffix in ["-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(root.path().join(format!("caisson.db{suffix}")));
        }
        // Refused when it is opened or when it is asked; never a panic, never an empty list.
        let listed = Store::open(root.path()).and_then(|store| store.images());
        match listed {
            Err(error) => assert!(error.to_string().contains("caisson.db"), "{length}: {error}"),
            Ok(images) => assert_eq!(images.len(), 2, "{length}"),
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_eq!(Store::open(root.path()).unwrap().images().unwrap().len(), 2);
}

#[test]
fn a_database_that_is_gone_does_not_make_garbage_of_the_layers() {
    let (root, store) = store();
    let layers = store.layers(&store.resolve("good").unwrap()).unwrap();
    drop(store);
    let path = schema::database_path(root.path());
    for content in [None, Some(&b""[..]), Some(b"S")] {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(root.path().join(format!("caisson.db{suffix}")));
        }
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let error = Store::open(root.path()).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::DatabaseLost { .. }), "{content:?}: {error}");
        assert!(error.to_string().contains("begin anew"), "{error}");
        assert!(layers.iter().all(|layer| layer.exists()));
    }
    // The way out that the message names.
    for directory in ["layers", "blobs"] {
        fs::remove_dir_all(root.path().join(directory)).unwrap();
    }
    assert!(Store::open(root.path()).unwrap().images().unwrap().is_empty());
}
