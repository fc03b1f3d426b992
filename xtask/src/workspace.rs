//! The directories that the tasks work in.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The repository's top directory.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").into()
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root().join(target),
        None => root().join("target"),
    }
}

/// The staged installation: `bin/` and `lib/caisson/`.
pub(crate) fn stage() -> PathBuf {
    target().join("caisson")
}

/// What is costly to make and safe to keep between checkouts.
pub(crate) fn cache() -> PathBuf {
    if let Some(cache) = env::var_os("CAISSON_CACHE") {
        return cache.into();
    }
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
    };
    base.join("caisson")
}
