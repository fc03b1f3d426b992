//! `restart`: stop, if it runs, and start again.

use clap::Args;

use super::{
    for_each, start,
    stop::{self, Patience},
};
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
    options::signal,
    records::State,
};

#[derive(Args, Clone, Debug)]
pub struct RestartArgs {
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    pub signal: Option<String>,

    /// Seconds to wait before killing the container (-1 for no limit)
    #[arg(short, long, visible_alias = "time", value_name = "int")]
    pub timeout: Option<i64>,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn restart(globals: &Globals, args: &RestartArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    let signal = args.signal.as_deref().map(signal::parse).transpose()?;
    let patience = Patience { signal, timeout_secs: args.timeout };
    for_each(&args.containers, |name| {
        let container = engine.records.find(name)?;
        let goes = container.config.as_ref().is_some_and(|config| config.auto_remove);
        if goes && container.state == State::Running {
            return Err(Failure::message(format!(
                "container {name} was made with --rm: its end removes it, and it cannot be restarted; \
                 make it without --rm"
            )));
        }
        if container.state == State::Running {
            stop::stop_one(&engine, &container, patience)?;
        }
        start::start_detached(&engine, name).map(Some)
    })
}
