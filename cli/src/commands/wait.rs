//! `wait`: until containers have ended; their exit codes.

use clap::Args;

use super::for_each;
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
    records::{Container, State},
};

#[derive(Args, Clone, Debug)]
pub struct WaitArgs {
    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn wait(globals: &Globals, args: &WaitArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    for_each(&args.containers, |name| {
        let container = engine.records.find(name)?;
        let code = exit_code(&engine, &container)?;
        Ok(Some(code.to_string()))
    })
}

/// The exit code, once there is one. The end is recorded when this returns.
fn exit_code(engine: &Engine, container: &Container) -> Result<u8, Failure> {
    if container.state != State::Running {
        return Ok(container.exit_code);
    }
    let ended = match engine.connect(container) {
        Ok(client) => engine.judge(container, client.wait(None)),
        // Ended since the record was read.
        Err(error) => engine.post_mortem(container, &error.to_string()),
    };
    engine.finish(container, &ended)?;
    Ok(ended.code)
}
