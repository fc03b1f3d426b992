//! `save`: images into an archive.

use std::{
    ffi::OsString,
    fs,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::beside_machine::run_in_machine;
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
};

#[derive(Args, Clone, Debug)]
pub struct SaveArgs {
    /// Write to a file, instead of STDOUT
    #[arg(short, long, value_name = "string")]
    pub output: Option<PathBuf>,

    /// Write an OCI layout into a directory instead (for internal use)
    #[arg(long, value_name = "string", hide = true)]
    pub layout: Option<PathBuf>,

    #[arg(value_name = "IMAGE", required = true, hide = true)]
    pub images: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("cowardly refusing to save to a terminal. Use the -o flag or redirect")]
    Terminal,
    #[error("write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

pub(super) fn save(globals: &Globals, args: &SaveArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    if let Some(directory) = &args.layout {
        engine.store.save_layout(&args.images, directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err(Failed::Terminal.into());
        }
        engine.store.save(&args.images, BufWriter::with_capacity(1 << 18, io::stdout().lock()))?;
        return Ok(ExitCode::SUCCESS);
    };
    let failed = |source| Failed::Write { path: path.clone(), source };
    // Whole or not at all; what is no file, such as a device, is written to as it is.
    let is_special = fs::metadata(path).is_ok_and(|metadata| !metadata.is_file());
    if is_special {
        let file = fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
        engine.store.save(&args.images, BufWriter::with_capacity(1 << 18, file))?;
        return Ok(ExitCode::SUCCESS);
    }
    let file = tempfile::Builder::new()
        .prefix(".caisson-save-")
        .tempfile_in(directory_of(path))
        .map_err(failed)?;
    let mut writer = BufWriter::with_capacity(1 << 18, file);
    engine.store.save(&args.images, &mut writer)?;
    writer.flush().map_err(failed)?;
    let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(ExitCode::SUCCESS)
}

/// On a host whose images are in the machine, which shares one directory with it: the one
/// of the archive.
pub(super) fn save_from_machine(
    globals: &Globals,
    path: &Path,
    images: &[String],
) -> CommandResult {
    let path = std::path::absolute(path)?;
    let name = path
        .file_name()
        .ok_or_else(|| Failure::message(format!("{} is no name for an archive", path.display())))?;
    let mut command: Vec<OsString> =
        vec!["save".into(), "--output".into(), name.to_owned(), "--".into()];
    command.extend(images.iter().map(OsString::from));
    let code = run_in_machine(globals, &command, Some(directory_of(&path)))?;
    Ok(ExitCode::from(code))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
