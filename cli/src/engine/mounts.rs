//! The host's side of a container's mounts, looked at before it is started.

use std::{fs, io, path::Path};

use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use super::{Engine, EngineError, io_error};
use crate::{
    config::{ContainerConfig, Mount, MountSource},
    machine,
};

impl Engine {
    /// Checks that what must be there is: `--mount` makes no directories of the host.
    pub(super) fn check_mounts(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        for mount in &config.mounts {
            if let MountSource::Bind { path, create: false, .. } = &mount.source {
                check_source(path)?;
            }
        }
        Ok(())
    }

    /// Makes the directories that `--volume` names and nobody has made.
    pub(super) fn make_mounts(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        for mount in &config.mounts {
            let Some(path) = make_source(mount)? else { continue };
            if !mount.readonly && machine::is_inside() && is_in_memory(path) {
                eprintln!(
                    "caisson: what the container writes to {} stays in the machine's memory; `run` or \
                     `create` it with `-v` there, or start it from that directory, to share it with the host",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

/// The file or directory of the host behind a mount, if there is one, made if it is to be.
pub fn make_source(mount: &Mount) -> Result<Option<&Path>, EngineError> {
    let MountSource::Bind { path, create, .. } = &mount.source else { return Ok(None) };
    if *create && is_missing(Path::new(path)) {
        fs::create_dir_all(path).map_err(io_error("make the directory", Path::new(path)))?;
    }
    check_source(path)?;
    Ok(Some(Path::new(path)))
}

fn check_source(path: &str) -> Result<(), EngineError> {
    match is_missing(Path::new(path)) {
        true => Err(EngineError::NoBindSource { path: path.to_owned() }),
        false => Ok(()),
    }
}

/// What cannot be looked at is not missing: whoever opens it tells why.
fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether a path of the machine is of the layer over the host's root, not the host's own.
fn is_in_memory(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == OVERLAYFS_SUPER_MAGIC)
}
