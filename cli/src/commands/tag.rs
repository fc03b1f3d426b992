//! `tag`: another name for an image.

use std::process::ExitCode;

use caisson_rootfs::Reference;
use clap::Args;

use crate::{engine::Engine, events::Event, failure::CommandResult, globals::Globals};

#[derive(Args, Clone, Debug)]
pub struct TagArgs {
    #[arg(value_name = "SOURCE_IMAGE[:TAG]", hide = true)]
    pub source: String,

    #[arg(value_name = "TARGET_IMAGE[:TAG]", hide = true)]
    pub target: String,
}

pub(super) fn tag(globals: &Globals, args: &TagArgs) -> CommandResult {
    let target: Reference = args.target.parse()?;
    let target = target.with_default_tag();
    Engine::open(globals)?.store.tag(&args.source, &target)?;
    Event::of_image(&target.familiar(), "tag").tell(&globals.root);
    Ok(ExitCode::SUCCESS)
}
