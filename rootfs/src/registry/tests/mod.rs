//! Registries as they should be, and as they should not.

mod access;
mod hostile;
mod images;
mod upload;

use super::testing::*;
use super::*;
use crate::progress::Silent;
use crate::store::{Store, StoreError};

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    (root, store)
}

fn pull(store: &Store, client: &RegistryClient, name: &Reference) -> Result<Pulled, RegistryError> {
    store.pull(client, name, &WantedPlatform::default(), &Silent)
}

/// Pulls `app:1` into an empty store, which must fail and leave nothing.
#[track_caller]
fn fails(server: &Server) -> RegistryError {
    let (root, store) = store();
    let error = pull(&store, &client(), &server.reference("app:1")).unwrap_err();
    assert!(store.images().unwrap().is_empty(), "{error}");
    store.gc().unwrap();
    for directory in ["layers", "blobs/sha256"] {
        let left: Vec<_> = std::fs::read_dir(root.path().join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{left:?} after {error}");
    }
    error
}

/// The error with all its causes.
fn text(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
