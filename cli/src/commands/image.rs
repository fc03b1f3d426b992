//! `image …`.

use std::process::ExitCode;

use caisson_rootfs::StoreError;
use clap::{Args, Subcommand};

use super::{Command, history, images, import, inspect, load, prune, pull, push, rmi, save, tag};
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
};

#[derive(Args, Debug)]
pub struct ImageArgs {
    #[command(subcommand)]
    pub(super) command: ImageCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum ImageCommand {
    /// Whether there is such an image, by the exit code (for internal use)
    #[command(hide = true)]
    Exists(ExistsArgs),
    /// Show the history of an image
    #[command(override_usage = "caisson image history [OPTIONS] IMAGE")]
    History(history::HistoryArgs),
    /// Import the contents from a tarball to create a filesystem image
    #[command(override_usage = "caisson image import [OPTIONS] FILE|- [REPOSITORY[:TAG]]")]
    Import(import::ImportArgs),
    /// Display detailed information on one or more images
    #[command(override_usage = "caisson image inspect [OPTIONS] IMAGE [IMAGE...]")]
    Inspect(inspect::InspectArgs),
    /// Load an image from a tar archive or STDIN
    #[command(override_usage = "caisson image load [OPTIONS]")]
    Load(load::LoadArgs),
    /// List images
    #[command(
        override_usage = "caisson image ls [OPTIONS] [REPOSITORY[:TAG]]",
        visible_alias = "list"
    )]
    Ls(images::ImagesArgs),
    /// Remove unused images
    #[command(override_usage = "caisson image prune [OPTIONS]")]
    Prune(prune::ImagePruneArgs),
    /// Download an image from a registry
    #[command(override_usage = "caisson image pull [OPTIONS] NAME[:TAG|@DIGEST]")]
    Pull(pull::PullArgs),
    /// Upload an image to a registry
    #[command(override_usage = "caisson image push [OPTIONS] NAME[:TAG]")]
    Push(push::PushArgs),
    /// Remove one or more images
    #[command(
        override_usage = "caisson image rm [OPTIONS] IMAGE [IMAGE...]",
        visible_alias = "remove"
    )]
    Rm(rmi::RmiArgs),
    /// Save one or more images to a tar archive (streamed to STDOUT by default)
    #[command(override_usage = "caisson image save [OPTIONS] IMAGE [IMAGE...]")]
    Save(save::SaveArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    #[command(override_usage = "caisson image tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]")]
    Tag(tag::TagArgs),
}

#[derive(Args, Clone, Debug)]
pub(super) struct ExistsArgs {
    #[arg(value_name = "IMAGE", hide = true)]
    image: String,
}

impl ImageCommand {
    /// The same command without `image` before it.
    pub(super) fn flatten(self) -> Command {
        match self {
            Self::Exists(args) => Command::Image(ImageArgs { command: Self::Exists(args) }),
            Self::History(args) => Command::History(args),
            Self::Import(args) => Command::Import(args),
            Self::Inspect(args) => {
                Command::Inspect(inspect::InspectArgs { kind: Some(inspect::Kind::Image), ..args })
            }
            Self::Load(args) => Command::Load(args),
            Self::Ls(args) => Command::Images(args),
            Self::Prune(args) => Command::Image(ImageArgs { command: Self::Prune(args) }),
            Self::Pull(args) => Command::Pull(args),
            Self::Push(args) => Command::Push(args),
            Self::Rm(args) => Command::Rmi(args),
            Self::Save(args) => Command::Save(args),
            Self::Tag(args) => Command::Tag(args),
        }
    }
}

pub(super) fn exists(globals: &Globals, args: &ExistsArgs) -> CommandResult {
    match Engine::open(globals)?.store.resolve(&args.image) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(StoreError::NotFound { .. }) => Err(Failure::quiet(1)),
        Err(error) => Err(error.into()),
    }
}
