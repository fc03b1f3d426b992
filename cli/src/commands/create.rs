//! `create`, and what `run` shares with it.

use std::process::ExitCode;

use caisson_rootfs::{Image, Reference, StoreError};
use clap::Args;

use super::{print_line, run::write_cidfile};
use crate::{
    config::ContainerConfig,
    engine::{Created, Engine, NewContainer},
    failure::{CommandResult, Failure},
    globals::Globals,
    names,
    options::{self, ContainerFlags},
};

#[derive(Args, Clone, Debug)]
pub struct CreateArgs {
    #[command(flatten)]
    pub flags: ContainerFlags,

    #[arg(value_name = "IMAGE", required = true, num_args = 1.., trailing_var_arg = true, hide = true)]
    pub words: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
enum CreateError {
    #[error(
        "Unable to find image '{name}' locally; put it there with `caisson load -i ARCHIVE` or `caisson \
         import TARBALL {name}`: this version does not pull from registries"
    )]
    NoImage { name: String, source: StoreError },
    #[error(
        "--pull {0}: this version does not pull from registries; load the image with `caisson load`"
    )]
    Pull(String),
    #[error("invalid pull option {0:?}: must be one of \"always\", \"missing\" or \"never\"")]
    PullPolicy(String),
    #[error(
        "container ID file found, make sure the other container isn't running or delete {}",
        .0.display()
    )]
    CidFileExists(std::path::PathBuf),
}

pub(super) fn create(globals: &Globals, args: &CreateArgs) -> CommandResult {
    let create = || -> CommandResult {
        check(&args.flags)?;
        let mut engine = Engine::open(globals)?;
        let (image, config) = resolve(&engine, &args.flags, &args.words)?;
        let created = create_it(&mut engine, &args.flags, &image, config)?;
        let container = engine.settle(created)?;
        print_line(&container.id)?;
        Ok(ExitCode::SUCCESS)
    };
    create().map_err(|failure| failure.of_run("caisson create"))
}

/// What can be refused before any state is touched.
pub(super) fn check(flags: &ContainerFlags) -> Result<(), Failure> {
    options::resolve::check(flags)?;
    if let Some(name) = &flags.name {
        names::validate(name)?;
    }
    match flags.pull.as_str() {
        "missing" | "never" => {}
        "always" => return Err(CreateError::Pull(flags.pull.clone()).into()),
        _ => return Err(CreateError::PullPolicy(flags.pull.clone()).into()),
    }
    match &flags.cidfile {
        Some(path) if path.exists() => Err(CreateError::CidFileExists(path.clone()).into()),
        _ => Ok(()),
    }
}

/// The image, and the container's configuration from it and the flags.
pub(super) fn resolve(
    engine: &Engine,
    flags: &ContainerFlags,
    words: &[String],
) -> Result<(Image, ContainerConfig), Failure> {
    let (name, command) = words.split_first().map_or(("", &[][..]), |(n, c)| (n.as_str(), c));
    let image = engine.store.resolve(name).map_err(|error| match error {
        StoreError::NotFound { .. } => no_image(engine, name, error),
        other => other.into(),
    })?;
    let caller = |variable: &str| std::env::var(variable).ok();
    let config = options::resolve(flags, name, command, &image.config, &caller)?;
    Ok((image, config))
}

/// Names the image as it was understood, with its tag, which also finds those that are
/// spelled alike.
fn no_image(engine: &Engine, name: &str, error: StoreError) -> Failure {
    let full = name.parse::<Reference>().map(|name| name.with_default_tag().familiar());
    let full = full.unwrap_or_else(|_| name.to_owned());
    let source = engine.store.resolve(&full).err().unwrap_or(error);
    CreateError::NoImage { name: full, source }.into()
}

/// Creates the container and writes its id where the flags say.
pub(super) fn create_it(
    engine: &mut Engine,
    flags: &ContainerFlags,
    image: &Image,
    config: ContainerConfig,
) -> Result<Created, Failure> {
    let name = flags.name.as_deref().map(names::validate).transpose()?;
    let created = engine.create(NewContainer { name, image, config })?;
    if let Some(path) = &flags.cidfile
        && let Err(failure) = write_cidfile(path, &created.container.id)
    {
        engine.abandon(created)?;
        return Err(failure);
    }
    Ok(created)
}
