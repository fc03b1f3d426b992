//! The process that stays with a container which no command waits for, until it ends.
//!
//! It is `caisson` itself under a hidden command. It records the end, ends the shim and
//! removes the container if it is to be removed. If it is killed, the next command finds
//! the container unwatched and starts another.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
};

use caisson_failpoints::{hit, steps};
use nix::unistd::setsid;

use super::{Engine, EngineError};
use crate::{
    attach::drain,
    globals::Globals,
    records::{Container, RecordError, State},
};

/// The hidden command's name.
pub const MONITOR_COMMAND: &str = "container-monitor";

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("find the running program")]
    Program(#[source] io::Error),
    #[error("start a monitor for container {id}")]
    Spawn { id: String, source: io::Error },
}

impl Engine {
    /// Starts a monitor. It watches as soon as this process does not.
    pub fn spawn_monitor(&self, container: &Container) -> Result<Child, EngineError> {
        let program = std::env::current_exe().map_err(MonitorError::Program)?;
        let mut command = Command::new(program);
        command.args(self.globals.to_args()).arg(MONITOR_COMMAND).arg(&container.id);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // SAFETY: between fork and exec only setsid is called, which is async-signal-safe.
        unsafe { command.pre_exec(|| setsid().map(drop).map_err(io::Error::from)) };
        let spawned = hit(&steps::CLI_MONITOR_SPAWN).and_then(|()| command.spawn());
        let id = container.id.clone();
        Ok(spawned.map_err(|source| MonitorError::Spawn { id, source })?)
    }
}

/// The monitor: until the container's present run has ended.
pub fn run_monitor(globals: &Globals, id: &str) -> Result<(), EngineError> {
    let engine = Engine::open_quietly(globals)?;
    let container = engine.records.by_id(id)?;
    let watch = engine.records.watch(&container)?;
    // Read again: it may have ended while another watched.
    let container = match engine.records.by_id(id) {
        Err(RecordError::NotFound(_)) => return Ok(()),
        other => other?,
    };
    if container.state != State::Running {
        return Ok(());
    }
    let drainer = drain::spawn(&engine, &container)?;
    let ended = match engine.connect(&container) {
        Ok(client) => engine.judge(&container, client.wait(None)),
        Err(error) => engine.post_mortem(&container, &error.to_string()),
    };
    drainer.finish();
    // Before the container's lock is waited for: who holds that may wait for this one.
    drop(watch);
    engine.finish(&container, &ended)
}
