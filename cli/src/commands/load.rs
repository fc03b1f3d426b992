//! `load`: images from an archive or an OCI layout.

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
};

use caisson_rootfs::{LoadError, LoadSource, LoadedImage, Reference, progress};
use clap::Args;

use super::print_line;
use crate::{engine::Engine, events::Event, failure::CommandResult, globals::Globals};

#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Read from tar archive file or OCI layout, instead of STDIN
    #[arg(short, long, value_name = "string")]
    pub input: Option<PathBuf>,

    /// Suppress the load output
    #[arg(short, long)]
    pub quiet: bool,

    /// Say nothing, and note that a registry has the image so (for internal use)
    #[arg(long, value_name = "string", hide = true)]
    pub pulled_as: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("requested load from stdin, but stdin is a terminal; name an archive with `-i`")]
    Terminal,
    #[error("load {input}")]
    Load { input: String, source: LoadError },
}

pub(super) fn load(globals: &Globals, args: &LoadArgs) -> CommandResult {
    let (source, input) = match &args.input {
        Some(path) => (LoadSource::Path(path.clone()), path.display().to_string()),
        None if io::stdin().is_terminal() => return Err(Failed::Terminal.into()),
        None => (LoadSource::Reader(Box::new(io::stdin())), "standard input".to_owned()),
    };
    let progress = match args.quiet || args.pulled_as.is_some() {
        true => Box::new(progress::Silent),
        false => progress::on_stderr(),
    };
    let engine = Engine::open(globals)?;
    let loaded = engine.store.load(source, progress.as_ref());
    for image in loaded.map_err(|source| Failed::Load { input, source })? {
        let told = image.references.first().map_or(image.id.to_string(), Reference::familiar);
        let action = if args.pulled_as.is_some() { "pull" } else { "load" };
        Event::of_image(&told, action).tell(&globals.root);
        if let Some(name) = &args.pulled_as {
            engine.store.add_repo_digest(&image.id, &name.parse()?)?;
            continue;
        }
        names(&image).iter().try_for_each(|line| print_line(line))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn names(image: &LoadedImage) -> Vec<String> {
    match image.references.as_slice() {
        [] => vec![format!("Loaded image ID: {}", image.id)],
        names => names.iter().map(|name| format!("Loaded image: {}", name.familiar())).collect(),
    }
}
