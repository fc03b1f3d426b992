//! `run`: create, start, and stay or not.

use std::{
    fs,
    io::{IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

use clap::Args;

use super::{
    attended::{AttachFlags, attachment, attend},
    create, print_line,
};
use crate::{
    attach::{
        AttachError,
        session::{Attachment, Session},
        tty,
    },
    engine::{Created, Engine, EngineError, RemovedVolumes, Started, StdioPlan},
    failure::{CommandResult, Failure},
    globals::Globals,
    options::ContainerFlags,
};

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    pub flags: ContainerFlags,

    /// Run container in background and print container ID
    #[arg(short, long)]
    pub detach: bool,

    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,

    /// Proxy received signals to the process
    #[arg(long, value_name = "bool", default_value_t = true, action = clap::ArgAction::Set,
          num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sig_proxy: bool,

    #[arg(value_name = "IMAGE", required = true, num_args = 1.., trailing_var_arg = true, hide = true)]
    pub words: Vec<String>,
}

pub(super) fn run(globals: &Globals, args: &RunArgs) -> CommandResult {
    run_it(globals, args).map_err(|failure| failure.of_run("caisson run"))
}

fn run_it(globals: &Globals, args: &RunArgs) -> CommandResult {
    create::check(&args.flags)?;
    let wants_terminal = args.flags.tty && args.flags.interactive && !args.detach;
    if wants_terminal && !std::io::stdin().is_terminal() {
        return Err(AttachError::NotATerminal.into());
    }
    let mut engine = Engine::open(globals)?;
    let (image, config) = create::resolve(&engine, &args.flags, &args.words)?;
    let flags = AttachFlags {
        stdin: args.flags.interactive,
        sig_proxy: args.sig_proxy,
        detach_keys: args.detach_keys.as_deref(),
    };
    let (plan, mut attachment) = match args.detach {
        true => (StdioPlan::Detached, Attachment::default()),
        false => (StdioPlan::Attached, attachment(&config, &flags)?),
    };
    let log = (config.keeps_logs() && !config.auto_remove).then_some(config.log_rotation);
    let created = create::create_it(&mut engine, &args.flags, &image, config)?;
    if let Some(rotation) = log.filter(|_| plan == StdioPlan::Attached) {
        attachment.log = Some(engine.log_target(&created.container.id, rotation));
    }
    let mut session = Session::new(attachment)?;
    let started = start(&engine, created, plan, &mut session)?;
    if args.detach {
        session.finish();
        return detach(&engine, &started);
    }
    attend(&engine, started, session)
}

/// Starts what was just created. What cannot start stays for another try, as in Docker,
/// unless it was to be removed anyway or the user has broken it off.
fn start(
    engine: &Engine,
    created: Created,
    plan: StdioPlan,
    session: &mut Session,
) -> Result<Started, Failure> {
    let container = created.container.clone();
    let console = if plan == StdioPlan::Attached { tty::size() } else { None };
    let started = engine.start_locked(created, plan, console, session);
    let error = match started {
        Ok(started) => return Ok(started),
        Err(error) => error,
    };
    let auto_remove = container.config.as_ref().is_some_and(|config| config.auto_remove);
    let auto_removed = match auto_remove {
        true => RemovedVolumes::Remove,
        false => RemovedVolumes::Keep,
    };
    if session.signals.interrupted().is_some() || auto_remove {
        engine.remove(&container, true, auto_removed)?;
    }
    Err(not_started(session, error))
}

/// The failure of a start, which may be the user's wish.
pub(super) fn not_started(session: &mut Session, error: EngineError) -> Failure {
    session.finish();
    match session.signals.interrupted() {
        Some(signal) => Failure::quiet(signaled(signal)),
        None => error.into(),
    }
}

/// The exit code of a command that a signal has ended.
pub(super) fn signaled(signal: i32) -> u8 {
    128 | (signal & 0x7f) as u8
}

fn detach(engine: &Engine, started: &Started) -> CommandResult {
    engine.spawn_monitor(&started.container)?;
    print_line(&started.container.id)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a container's id to a file that must not exist.
pub(super) fn write_cidfile(path: &Path, id: &str) -> Result<(), Failure> {
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(id.as_bytes()));
    written.map_err(|source| {
        Failure::from(EngineError::Io {
            action: "write the container ID to",
            path: path.to_owned(),
            source,
        })
    })
}
