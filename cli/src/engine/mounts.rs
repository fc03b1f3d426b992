//! The host's side of a container's mounts, looked at before it is started.

use std::{fs, io, path::Path};

use super::{Engine, EngineError, io_error};
use crate::{
    config::{ContainerConfig, MountSource},
    machine,
};

impl Engine {
    /// Checks that what must be there is: `--mount` makes no directories of the host.
    pub(super) fn check_mounts(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        for mount in &config.mounts {
            let MountSource::Bind { path, create, .. } = &mount.source else { continue };
            if !create && is_missing(Path::new(path)) {
                return Err(EngineError::NoBindSource { path: path.clone() });
            }
        }
        Ok(())
    }

    /// Makes the directories that `--volume` names and nobody has made.
    pub(super) fn make_mounts(&self, config: &ContainerConfig) -> Result<(), EngineError> {
        self.check_mounts(config)?;
        for mount in &config.mounts {
            let MountSource::Bind { path, .. } = &mount.source else { continue };
            let path = Path::new(path);
            if is_missing(path) {
                fs::create_dir_all(path).map_err(io_error("make the directory", path))?;
            }
            if !mount.readonly && machine::is_inside() && !is_below_working_directory(path) {
                eprintln!(
                    "caisson: what the container writes to {} stays in the machine's memory: there, only the \
                     working directory is the host's",
                    path.display()
                );
            }
        }
        Ok(())
    }
}

/// What cannot be looked at is not missing: whoever opens it tells why.
fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn is_below_working_directory(path: &Path) -> bool {
    let working_directory = std::env::current_dir();
    working_directory.is_ok_and(|directory| {
        directory != Path::new("/")
            && fs::canonicalize(path).is_ok_and(|path| path.starts_with(directory))
    })
}
