//! `push`: an image to a registry.

use std::{
    ffi::OsString,
    process::{ExitCode, Stdio},
};

use caisson_rootfs::{Reference, StoreError};
use clap::Args;

use super::beside_machine::{run_in_machine, staging_directory};
use super::registry::{Direction, RegistryFlags, Teller};
use crate::{
    engine::Engine,
    events::Event,
    failure::{CommandResult, Failure},
    globals::Globals,
};

#[derive(Args, Clone, Debug)]
pub struct PushArgs {
    /// Push all tags of an image to the repository
    #[arg(short, long)]
    pub all_tags: bool,

    /// Suppress verbose output
    #[arg(short, long)]
    pub quiet: bool,

    #[command(flatten)]
    pub registry: RegistryFlags,

    #[arg(value_name = "NAME[:TAG]", hide = true)]
    pub name: String,
}

#[derive(Debug, thiserror::Error)]
enum PushError {
    #[error("tag can't be used with --all-tags/-a")]
    TagWithAll,
    #[error("An image does not exist locally with the tag: {name}")]
    NoImage { name: String, source: StoreError },
    #[error("--all-tags is for hosts whose containers run here; name each tag")]
    AllOfMachine,
    #[error("take the image out of the machine (`caisson save` in it failed with {0})")]
    Machine(u8),
}

pub(super) fn push(globals: &Globals, args: &PushArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    let (name, teller) = begin(args)?;
    let client = args.registry.client(name.domain())?;
    let tags = match args.all_tags {
        true => all_tags(&engine, &name)?,
        false => vec![name.clone().with_default_tag()],
    };
    for name in tags {
        let known = engine.store.resolve(&name.to_string());
        known.map_err(|source| PushError::NoImage { name: name.familiar(), source })?;
        let progress = teller.progress(Direction::Push);
        let pushed = engine.store.push(&client, &name, progress.as_ref())?;
        Event::of_image(&name.familiar(), "push").tell(&globals.root);
        drop(progress);
        end(&name, &pushed.digest.to_string(), pushed.bytes, teller)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// On a host whose images are in the machine, which has no network: through a directory of
/// this host.
pub(super) fn push_for_machine(globals: &Globals, args: &PushArgs) -> CommandResult {
    if args.all_tags {
        return Err(PushError::AllOfMachine.into());
    }
    let (name, teller) = begin(args)?;
    let name = name.with_default_tag();
    let client = args.registry.client(name.domain())?;
    let staging = staging_directory()?;
    let full = name.to_string();
    let save = ["save", "--layout", ".", &full].map(OsString::from);
    match run_in_machine(globals, &save, Some(staging.path()), Stdio::inherit())? {
        0 => {}
        code => return Err(PushError::Machine(code).into()),
    }
    let progress = teller.progress(Direction::Push);
    let pushed = client.push_layout(staging.path(), &name, progress.as_ref())?;
    drop(progress);
    end(&name, &pushed.digest.to_string(), pushed.bytes, teller)?;
    Ok(ExitCode::SUCCESS)
}

fn begin(args: &PushArgs) -> Result<(Reference, Teller), Failure> {
    let name: Reference = args.name.parse()?;
    if args.all_tags && (name.tag().is_some() || name.digest().is_some()) {
        return Err(PushError::TagWithAll.into());
    }
    let teller = if args.quiet { Teller::Nobody } else { Teller::Stdout };
    if !args.all_tags && name.tag().is_none() && name.digest().is_none() {
        teller.say("Using default tag: latest")?;
    }
    teller.say(&format!("The push refers to repository [{}]", name.repository()))?;
    Ok((name, teller))
}

fn all_tags(engine: &Engine, name: &Reference) -> Result<Vec<Reference>, Failure> {
    let mut tags: Vec<Reference> = Vec::new();
    for image in engine.store.images()? {
        tags.extend(image.references.into_iter().filter(|r| r.repository() == name.repository()));
    }
    tags.sort();
    match tags.is_empty() {
        true => Err(Failure::message(format!(
            "An image does not exist locally with the tag: {}",
            name.familiar_repository()
        ))),
        false => Ok(tags),
    }
}

fn end(name: &Reference, digest: &str, bytes: u64, teller: Teller) -> Result<(), Failure> {
    let tag = name.tag().unwrap_or_default();
    teller.say(&format!("{tag}: digest: {digest} size: {bytes}"))?;
    if teller == Teller::Nobody {
        Teller::Stdout.say(&name.to_string())?;
    }
    Ok(())
}
