//! `restart`: stop, if it runs, and start again.

use clap::Args;

use super::{
    for_each, start,
    stop::{self, StopFlags},
};
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
    records::State,
};

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
            if container.config.as_ref().is_some_and(|config| config.auto_remove) {
                return Err(Failure::message(format!(
                    "container {name} was made with --rm: its end removes it, and it cannot be \
                     restarted; make it without --rm"
                )));
            }
            stop::stop_one(&engine, &container, patience)?;
        }
        start::start_detached(&engine, name).map(Some)
    })
}
