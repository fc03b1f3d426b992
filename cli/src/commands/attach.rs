//! `attach`: a detached container's output from now on, its input and its signals.

use std::{process::ExitCode, thread};

use clap::Args;

use super::{
    logs::{Log, Selection, follow},
    run::signaled,
};
use crate::{
    attach::{
        AttachError,
        detach_keys::DetachKeys,
        session::{Attachment, Event, Session},
        signals::Policy,
        tty,
    },
    engine::{Engine, EngineError},
    failure::{CommandResult, Failure},
    globals::Globals,
};

#[derive(Args, Clone, Debug)]
pub struct AttachArgs {
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,

    /// Do not attach STDIN
    #[arg(long)]
    pub no_stdin: bool,

    /// Proxy all received signals to the process
    #[arg(long, value_name = "bool", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,

    #[arg(value_name = "CONTAINER", hide = true)]
    pub container: String,
}

#[derive(Debug, thiserror::Error)]
enum CannotAttach {
    #[error("container {0} keeps no logs, and its output cannot be had otherwise")]
    NoLog(String),
    #[error("you cannot attach to container {0}: it has not written anything yet; try again")]
    NotYet(String),
}

pub(super) fn attach(globals: &Globals, args: &AttachArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    let container = engine.records.find(&args.container)?;
    let client = engine.connect_running(&container)?;
    let name = || container.name.clone();
    let Some(config) = &container.config else {
        return Err(EngineError::Damaged { name: name() }.into());
    };
    if !config.keeps_logs() {
        return Err(CannotAttach::NoLog(name()).into());
    }
    let log = Log::open(&engine.log_path(&container.id))?;
    let mut log = log.ok_or_else(|| CannotAttach::NotYet(name()))?;
    log.skip_to_end()?;
    let stdin = config.open_stdin && !args.no_stdin;
    let keys = DetachKeys::parse(args.detach_keys.as_deref().unwrap_or(DetachKeys::DEFAULT))?;
    let mut session = Session::new(Attachment {
        stdin,
        terminal: config.tty,
        signals: Policy { proxy: args.sig_proxy, terminal: config.tty, exec: None },
        detach_keys: (config.tty && stdin).then_some(keys),
        log: None,
    })?;
    session.use_input(engine.globals.bundle_dir(&container.id).join("stdin"));
    session.copy_output()?;
    // The output is followed on this process's other thread; this one has the events.
    let waiting = client.clone();
    let waiter = session.run(&client, move || waiting.wait(None))?;
    let (globals, followed) = (engine.globals.clone(), container.clone());
    let follower = thread::Builder::new().name("output".into()).spawn(move || {
        let engine = Engine::open_quietly(&globals)?;
        follow(&engine, &followed, &mut log, &Selection::new_output())
    });
    let follower = follower.map_err(|source| AttachError::Thread { what: "the output", source })?;
    match session.next_event(None) {
        Some(Event::Detached) => {
            tty::restore();
            return Ok(ExitCode::SUCCESS);
        }
        Some(Event::Terminated(signal)) => {
            tty::restore();
            return Ok(ExitCode::from(signaled(signal)));
        }
        _ => {}
    }
    let waited = waiter.join().map_err(|_| Failure::message("the thread that waits failed"))?;
    follower.join().map_err(|_| Failure::message("the thread that shows the output failed"))??;
    session.finish();
    Ok(ExitCode::from(engine.judge(&container, waited).code))
}
