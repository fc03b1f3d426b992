//! Output files that are whole or not there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::failure::CommandResult;

#[derive(Debug, thiserror::Error)]
#[error("write {}", .path.display())]
pub(super) struct WriteFailed {
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("cowardly refusing to save to a terminal. Use the -o flag or redirect")]
pub(super) struct ToTerminal;

/// Lets `write` fill the file at `path`, whole or not at all; what is no file, such as a
/// device, is written to as it is.
pub(super) fn write_whole(
    path: &Path,
    write: impl FnOnce(&fs::File) -> CommandResult,
) -> CommandResult {
    let failed = |source| WriteFailed { path: path.to_owned(), source };
    let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if is_special {
        return write(&fs::OpenOptions::new().write(true).open(path).map_err(failed)?);
    }
    let file = tempfile::Builder::new()
        .prefix(".caisson-")
        .tempfile_in(directory_of(path))
        .map_err(failed)?;
    let code = write(file.as_file())?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(code)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
