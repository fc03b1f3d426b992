//! `save`: images into an archive.

use std::{
    ffi::OsString,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;

use super::{
    beside_machine::run_in_machine,
    whole_file::{ToTerminal, WriteFailed, write_whole},
};
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

pub(super) fn save(globals: &Globals, args: &SaveArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    if let Some(directory) = &args.layout {
        engine.store.save_layout(&args.images, directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err(ToTerminal.into());
        }
        engine.store.save(&args.images, BufWriter::with_capacity(1 << 18, io::stdout().lock()))?;
        return Ok(ExitCode::SUCCESS);
    };
    write_whole(path, |file| {
        let mut writer = BufWriter::with_capacity(1 << 18, file);
        engine.store.save(&args.images, &mut writer)?;
        writer.flush().map_err(|source| WriteFailed { path: path.clone(), source })?;
        Ok(ExitCode::SUCCESS)
    })
}

/// On a host whose images are in the machine: the archive comes by standard output, as
/// the machine may write only where this command was called.
pub(super) fn save_from_machine(
    globals: &Globals,
    path: &Path,
    images: &[String],
) -> CommandResult {
    let mut command: Vec<OsString> = vec!["save".into(), "--".into()];
    command.extend(images.iter().map(OsString::from));
    write_whole(path, |file| {
        let output = file.try_clone()?.into();
        match run_in_machine(globals, &command, None, output)? {
            0 => Ok(ExitCode::SUCCESS),
            // It has said why.
            code => Err(Failure::quiet(code)),
        }
    })
}
