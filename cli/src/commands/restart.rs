//! `restart`: stop, if it runs, and start again.

use clap::Args;

use super::{
    for_each, start,
    stop::{self, StopFlags},
};
use crate::{engine::Engine, failure::CommandResult, globals::Globals, records::State};

#[derive(Args, Clone, Debug)]
pub struct RestartArgs {
    #[command(flatten)]
    pub flags: StopFlags,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn restart(globals: &Globals, args: &RestartArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    let patience = args.flags.patience()?;
    for_each(&args.containers, |name| {
        let container = engine.records.find(name)?;
        if container.state == State::Running {
            engine.records.set_restarting(&container.id)?;
            stop::stop_one(&engine, &container, patience)?;
        }
        let started = start::start_detached(&engine, name)?;
        engine.tell(&engine.records.find(name)?, "restart");
        Ok(Some(started))
    })
}
