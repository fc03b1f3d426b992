//! `kill`: a signal, SIGKILL by default.

use clap::Args;
use nix::libc;

use super::{for_each, stop};
use crate::{engine::Engine, failure::CommandResult, globals::Globals, options::signal};

/// How long SIGKILL may take to show.
const KILLED_SECS: u64 = 10;

#[derive(Args, Clone, Debug)]
pub struct KillArgs {
    /// Signal to send to the container
    #[arg(short, long, value_name = "string", default_value = "KILL")]
    pub signal: String,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn kill(globals: &Globals, args: &KillArgs) -> CommandResult {
    let signal = signal::parse(&args.signal)?;
    let engine = Engine::open(globals)?;
    for_each(&args.containers, |name| {
        let container = engine.records.find(name)?;
        let client = engine.connect_running(&container)?;
        stop::tell_signal(&engine, &container, signal);
        client.kill(None, signal as u32, signal == libc::SIGKILL)?;
        if signal == libc::SIGKILL {
            stop::end(&engine, &container, &client, Some(KILLED_SECS))?;
        }
        Ok(Some(name.to_owned()))
    })
}
