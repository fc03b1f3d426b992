//! `start`: run stopped or created containers again.

use clap::Args;

use super::{
    attended::{AttachFlags, attachment, attend},
    for_each,
    run::not_started,
};
use crate::{
    attach::{
        session::{Attachment, Session},
        tty,
    },
    engine::{Engine, StdioPlan},
    failure::{CommandResult, Failure},
    globals::Globals,
};

#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short, long)]
    pub attach: bool,

    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    pub detach_keys: Option<String>,

    /// Attach container's STDIN
    #[arg(short, long)]
    pub interactive: bool,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn start(globals: &Globals, args: &StartArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    if !args.attach && !args.interactive {
        return for_each(&args.containers, |name| start_detached(&engine, name).map(Some));
    }
    match args.containers.as_slice() {
        [name] => start_attached(&engine, name, args),
        _ => Err(Failure::message("you cannot start and attach multiple containers at once")),
    }
}

pub(super) fn start_detached(engine: &Engine, name: &str) -> Result<String, Failure> {
    let container = engine.records.find(name)?;
    if container.state == crate::records::State::Running {
        return Ok(name.to_owned());
    }
    let mut session = Session::new(Attachment::default())?;
    let started = engine.start(&container, StdioPlan::Detached, None, &mut session);
    let started = started.map_err(|error| not_started(&mut session, error))?;
    session.finish();
    engine.spawn_monitor(&started.container)?;
    Ok(name.to_owned())
}

fn start_attached(engine: &Engine, name: &str, args: &StartArgs) -> CommandResult {
    let container = engine.records.find(name)?;
    let Some(config) = &container.config else {
        return Err(crate::engine::EngineError::Damaged { name: container.name }.into());
    };
    let flags = AttachFlags {
        stdin: args.interactive,
        sig_proxy: true,
        detach_keys: args.detach_keys.as_deref(),
    };
    let mut attachment = attachment(config, &flags)?;
    if config.keeps_logs() && !config.auto_remove {
        attachment.log = Some(engine.log_target(&container.id, config.log_rotation));
    }
    let mut session = Session::new(attachment)?;
    let started = engine.start(&container, StdioPlan::Attached, tty::size(), &mut session);
    let started = started.map_err(|error| not_started(&mut session, error))?;
    attend(engine, started, session)
}
