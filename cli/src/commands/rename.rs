//! `rename`: another name for a container.

use std::process::ExitCode;

use clap::Args;

use crate::{
    engine::Engine,
    events::Event,
    failure::{CommandResult, Failure},
    globals::Globals,
    names,
};

#[derive(Args, Clone, Debug)]
pub struct RenameArgs {
    #[arg(value_name = "CONTAINER", hide = true)]
    pub container: String,

    #[arg(value_name = "NEW_NAME", hide = true)]
    pub name: String,
}

pub(super) fn rename(globals: &Globals, args: &RenameArgs) -> CommandResult {
    let mut engine = Engine::open(globals)?;
    let name = names::validate(args.name.strip_prefix('/').unwrap_or(&args.name))?;
    let found = engine.records.find(&args.container)?;
    let (container, _lock) = engine.records.lock(&found)?;
    if container.name == name {
        return Err(Failure::message("the new name is the name that the container has"));
    }
    engine.records.rename(&container.id, name)?;
    let renamed = engine.records.by_id(&container.id)?;
    Event::of_container(&renamed, "rename")
        .with("oldName", format!("/{}", container.name))
        .tell(&globals.root);
    Ok(ExitCode::SUCCESS)
}
