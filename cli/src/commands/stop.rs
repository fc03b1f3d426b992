//! `stop`: the stop signal, then, if need be, SIGKILL.

use std::{sync::mpsc, thread, time::Duration};

use caisson_shim::client::ShimClient;
use clap::Args;
use nix::libc;

use super::for_each;
use crate::{
    engine::Engine,
    events::Event,
    failure::{CommandResult, Failure},
    globals::Globals,
    options::signal,
    records::{Container, State},
};

const DEFAULT_TIMEOUT_SECS: i64 = 10;

/// How a container is asked to end.
#[derive(Args, Clone, Debug)]
pub struct StopFlags {
    /// Signal to send to the container
    #[arg(short, long, value_name = "string")]
    pub signal: Option<String>,

    /// Seconds to wait before killing the container (-1 for no limit)
    #[arg(short, long, visible_alias = "time", value_name = "int")]
    pub timeout: Option<i64>,
}

#[derive(Args, Clone, Debug)]
pub struct StopArgs {
    #[command(flatten)]
    pub flags: StopFlags,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

/// As [`StopFlags`], validated; what is absent is the container's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    signal: Option<i32>,
    /// Until it is killed; below zero: for ever.
    timeout_secs: Option<i64>,
}

impl StopFlags {
    pub(super) fn patience(&self) -> Result<Patience, Failure> {
        let signal = self.signal.as_deref().map(signal::parse).transpose()?;
        Ok(Patience { signal, timeout_secs: self.timeout })
    }
}

pub(super) fn stop(globals: &Globals, args: &StopArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    let patience = args.flags.patience()?;
    for_each(&args.containers, |name| {
        let container = engine.records.find(name)?;
        if container.state == State::Running {
            stop_one(&engine, &container, patience)?;
        }
        Ok(Some(name.to_owned()))
    })
}

/// Ends a container that runs. The end is recorded when this returns.
pub(super) fn stop_one(
    engine: &Engine,
    container: &Container,
    patience: Patience,
) -> Result<(), Failure> {
    let config = container.config.as_ref();
    let signal =
        patience.signal.or(config.map(|config| config.stop_signal)).unwrap_or(libc::SIGTERM);
    let own = config.and_then(|config| config.stop_timeout_secs);
    let own = own.map(|seconds| i64::try_from(seconds).unwrap_or(i64::MAX));
    let timeout_secs = patience.timeout_secs.or(own).unwrap_or(DEFAULT_TIMEOUT_SECS);
    let client = engine.connect_running(container)?;
    tell_signal(engine, container, signal);
    if let Err(error) = client.kill(None, signal as u32, false) {
        tracing::debug!(%error, "signal {signal} to {}", container.id);
    }
    // A frozen process takes no signal but SIGKILL.
    if container.paused
        && let Err(error) = client.resume()
    {
        tracing::debug!(%error, "resume {}", container.id);
    }
    end(engine, container, &client, u64::try_from(timeout_secs).ok())?;
    engine.tell(container, "stop");
    Ok(())
}

/// Tells that a signal is sent: before it is, as another process may tell the end that follows.
pub(super) fn tell_signal(engine: &Engine, container: &Container, signal: i32) {
    Event::of_container(container, "kill").with("signal", signal).tell(&engine.globals.root);
}

/// Waits for the end, for `timeout_secs` if there is a limit; then kills. The end is
/// recorded when this returns.
pub(super) fn end(
    engine: &Engine,
    container: &Container,
    client: &ShimClient,
    timeout_secs: Option<u64>,
) -> Result<(), Failure> {
    let (sender, ended) = mpsc::channel();
    let waiting = client.clone();
    thread::spawn(move || {
        // The receiver waits, or this process has ended.
        let _ = sender.send(waiting.wait(None));
    });
    let waited = match timeout_secs {
        None => ended.recv().ok(),
        Some(seconds) => ended.recv_timeout(Duration::from_secs(seconds)).ok(),
    };
    let waited = match waited {
        Some(waited) => waited,
        None => {
            tell_signal(engine, container, libc::SIGKILL);
            client.kill(None, libc::SIGKILL as u32, true)?;
            client.wait(None)
        }
    };
    let ended = engine.judge(container, waited);
    Ok(engine.finish(container, &ended)?)
}
