//! The guest kernel, by `guest-kernel/build.sh`.

use std::path::PathBuf;

use anyhow::{Context, ensure};

use crate::{process, workspace};

/// Builds the guest kernel, or finds it in the cache, and returns its `vmlinux`.
pub(crate) fn build() -> anyhow::Result<PathBuf> {
    let script = workspace::root().join("guest-kernel/build.sh");
    let printed = process::output(
        process::command(&script, [] as [&str; 0]).env("CAISSON_CACHE", workspace::cache()),
    )
    .context("build the guest kernel")?;
    let path = PathBuf::from(printed.lines().last().unwrap_or_default());
    ensure!(path.is_file(), "{} printed no path of a kernel: {printed:?}", script.display());
    Ok(path)
}
