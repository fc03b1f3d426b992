//! `import`: an image from a root filesystem's tarball.

use std::{io, process::ExitCode};

use caisson_rootfs::{ImportConfig, ImportError, ImportSource, Reference, progress};
use clap::Args;

use super::print_line;
use crate::{engine::Engine, events::Event, failure::CommandResult, globals::Globals};

#[derive(Args, Clone, Debug)]
pub struct ImportArgs {
    /// Apply Dockerfile instruction to the created image
    #[arg(short, long, value_name = "list")]
    pub change: Vec<String>,

    /// Set commit message for imported image
    #[arg(short, long, value_name = "string")]
    pub message: Option<String>,

    #[arg(value_name = "FILE", hide = true)]
    pub file: String,

    #[arg(value_name = "REPOSITORY[:TAG]", hide = true)]
    pub reference: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("import {input}")]
struct Failed {
    input: String,
    source: ImportError,
}

pub(super) fn import(globals: &Globals, args: &ImportArgs) -> CommandResult {
    let reference = args.reference.as_deref().map(str::parse::<Reference>).transpose()?;
    let source = match args.file.as_str() {
        "-" => ImportSource::Reader(Box::new(io::stdin())),
        path => ImportSource::Path(path.into()),
    };
    let config =
        ImportConfig { changes: args.change.clone(), message: args.message.clone(), created: None };
    let engine = Engine::open(globals)?;
    let imported =
        engine.store.import(source, reference.as_ref(), &config, progress::on_stderr().as_ref());
    let id = imported.map_err(|source| Failed { input: args.file.clone(), source })?;
    let told = reference.as_ref().map_or(id.to_string(), Reference::familiar);
    Event::of_image(&told, "import").tell(&globals.root);
    print_line(&id.to_string())?;
    Ok(ExitCode::SUCCESS)
}
