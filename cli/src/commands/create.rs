//! `create`, and what `run` shares with it.

use std::{fs, path::PathBuf, process::ExitCode};

use caisson_rootfs::{Image, Reference, StoreError};
use clap::Args;

use super::{
    print_line,
    pull::{Policy, Wish},
    run::write_cidfile,
};
use crate::{
    config::ContainerConfig,
    engine::{self, Created, Engine, NewContainer},
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
    #[error("No such image: {name}; `caisson pull` or `caisson load` bring images")]
    NoImage { name: String, source: StoreError },
    #[error(
        "image {name} is for {os}/{architecture}, but containers run on linux/amd64; \
         `caisson pull --platform linux/amd64` may bring the right one"
    )]
    Platform { name: String, os: String, architecture: String },
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
    Policy::parse(&flags.pull)?;
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
    let wish = Wish { policy: Policy::here(&flags.pull)?, ..wish(flags, name)? };
    let image = wish.image(engine).map_err(|failure| {
        match failure.is(|error: &StoreError| matches!(error, StoreError::NotFound { .. })) {
            true => no_image(engine, name),
            false => failure,
        }
    })?;
    check_platform(name, &image)?;
    let caller = |variable: &str| std::env::var(variable).ok();
    let mut inherited = Vec::new();
    for text in &flags.volumes_from {
        let (container, readonly) = options::mounts::volumes_from(text)?;
        inherited.extend(engine.mounts_of(container, readonly)?);
    }
    let config = options::resolve(flags, name, command, &image.config, &caller, inherited)?;
    Ok((image, config))
}

fn wish<'a>(flags: &'a ContainerFlags, name: &'a str) -> Result<Wish<'a>, Failure> {
    let policy = Policy::parse(&flags.pull)?;
    Ok(Wish { name, policy, platform: flags.platform.as_deref(), quiet: flags.quiet })
}

/// What must happen on this host before the command is carried into the machine.
pub(super) fn prepare_machine(
    globals: &Globals,
    flags: &ContainerFlags,
    words: &[String],
) -> Result<(), Failure> {
    check(flags)?;
    let name = words.first().map_or("", String::as_str);
    wish(flags, name)?.for_machine(globals)
}

/// The directories and files of this host that the container is to see, made if they are to be.
pub(super) fn shared_with_machine(flags: &ContainerFlags) -> Result<Vec<PathBuf>, Failure> {
    let mut shared = Vec::new();
    for mount in options::resolve::mounts(flags)? {
        if let Some(path) = engine::make_source(&mount)? {
            let found = fs::canonicalize(path).and_then(|path| Ok((fs::metadata(&path)?, path)));
            // What cannot be shared is told by whoever mounts it.
            let found = found.ok().filter(|(kind, _)| kind.is_dir() || kind.is_file());
            shared.extend(found.map(|(_, path)| path));
        }
    }
    Ok(shared)
}

/// The guests' processor is this host's.
fn check_platform(name: &str, image: &Image) -> Result<(), Failure> {
    let (os, architecture) =
        (image.config.os().to_string(), image.config.architecture().to_string());
    let fits = |found: &str, ours: &str| found.is_empty() || found == ours;
    match fits(&os, "linux") && fits(&architecture, "amd64") {
        true => Ok(()),
        false => Err(CreateError::Platform { name: name.to_owned(), os, architecture }.into()),
    }
}

/// Names the image as it was understood, with its tag, which also finds those that are
/// spelled alike.
fn no_image(engine: &Engine, name: &str) -> Failure {
    let full = name.parse::<Reference>().map(|name| name.with_default_tag().familiar());
    let full = full.unwrap_or_else(|_| name.to_owned());
    match engine.store.resolve(&full) {
        Err(source) => CreateError::NoImage { name: full, source }.into(),
        // It has come meanwhile.
        Ok(_) => Failure::message(format!("image {full} has only just appeared; try again")),
    }
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
