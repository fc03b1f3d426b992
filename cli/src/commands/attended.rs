//! Staying with a container that was started attached, until it ends or is left.

use std::{process::ExitCode, time::Duration};

use caisson_shim::stages;
use nix::libc;

use super::run::signaled;
use crate::{
    attach::{
        detach_keys::DetachKeys,
        session::{Attachment, Event, Session},
        signals::Policy,
        tty,
    },
    config::ContainerConfig,
    engine::{Engine, Started},
    failure::{BROKEN_PIPE, CommandResult, Failure},
};

/// How long a container runs before it gets a monitor that stands by, should this process
/// be killed. Most that are attended end sooner and are spared it.
const STANDBY_AFTER: Duration = Duration::from_secs(3);

/// The flags of attaching.
pub(super) struct AttachFlags<'a> {
    pub(super) stdin: bool,
    pub(super) sig_proxy: bool,
    pub(super) detach_keys: Option<&'a str>,
}

/// What a container with this configuration is attached by.
pub(super) fn attachment(
    config: &ContainerConfig,
    flags: &AttachFlags<'_>,
) -> Result<Attachment, Failure> {
    let keys = DetachKeys::parse(flags.detach_keys.unwrap_or(DetachKeys::DEFAULT))?;
    let stdin = flags.stdin && config.open_stdin;
    Ok(Attachment {
        stdin,
        terminal: config.tty,
        signals: Policy { proxy: flags.sig_proxy, terminal: config.tty, exec: None },
        detach_keys: (config.tty && stdin).then_some(keys),
        log: None,
    })
}

/// Until the container ends: its exit code is this command's.
pub(super) fn attend(engine: &Engine, started: Started, mut session: Session) -> CommandResult {
    let Started { client, container, watch } = started;
    let waiting = client.clone();
    let waiter = session.run(&client, move || waiting.wait(None))?;
    let mut standby = None;
    let mut output_closed = false;
    loop {
        let patience = standby.is_none().then_some(STANDBY_AFTER);
        match session.next_event(patience) {
            None => standby = Some(engine.spawn_monitor(&container)?),
            Some(Event::Exited) => break,
            Some(Event::OutputClosed) => {
                // As a process that writes to a closed pipe ends; a second one changes nothing.
                output_closed = true;
                let _ = client.kill(None, libc::SIGKILL as u32, true);
            }
            Some(left @ (Event::Detached | Event::Terminated(_))) => {
                if standby.is_none() {
                    engine.spawn_monitor(&container)?;
                }
                tty::restore();
                return Ok(leave(&left));
            }
        }
    }
    let ended = match waiter.join() {
        Ok(waited) => engine.judge(&container, waited),
        Err(_) => return Err(Failure::message("the thread that waits for the container failed")),
    };
    session.finish();
    stages::stamp("cli", "exited");
    // Who holds the container's lock may be waiting for this one.
    drop(watch);
    engine.finish(&container, &ended)?;
    stages::stamp("cli", "gone");
    if output_closed {
        return Err(Failure::quiet(BROKEN_PIPE));
    }
    if !ended.error.is_empty() {
        return Ok(Failure::message(ended.error).with_code(ended.code).report());
    }
    Ok(ExitCode::from(ended.code))
}

fn leave(event: &Event) -> ExitCode {
    match event {
        Event::Terminated(signal) => ExitCode::from(signaled(*signal)),
        _ => ExitCode::SUCCESS,
    }
}
