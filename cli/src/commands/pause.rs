//! `pause` and `unpause`.

use clap::Args;

use super::for_each;
use crate::{engine::Engine, failure::CommandResult, globals::Globals};

#[derive(Args, Clone, Debug)]
pub struct PauseArgs {
    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn pause(globals: &Globals, args: &PauseArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    for_each(&args.containers, |name| {
        engine.pause(&engine.records.find(name)?)?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn unpause(globals: &Globals, args: &PauseArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    for_each(&args.containers, |name| {
        engine.unpause(&engine.records.find(name)?)?;
        Ok(Some(name.to_owned()))
    })
}
