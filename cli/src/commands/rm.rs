//! `rm`: remove containers.

use clap::Args;

use super::for_each;
use crate::{
    engine::{Engine, RemovedVolumes},
    failure::{CommandResult, Failure},
    globals::Globals,
    records::RecordError,
};

#[derive(Args, Clone, Debug)]
pub struct RmArgs {
    /// Force the removal of a running container (uses SIGKILL)
    #[arg(short, long)]
    pub force: bool,

    /// Remove anonymous volumes associated with the container
    #[arg(short, long)]
    pub volumes: bool,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn rm(globals: &Globals, args: &RmArgs) -> CommandResult {
    let engine = Engine::open(globals)?;
    for_each(&args.containers, |name| match remove(&engine, name, args) {
        // What is to be forced away and is not there is no failure.
        Err(failure) if args.force && failure.is::<RecordError>(is_not_found) => {
            failure.report();
            Ok(None)
        }
        other => other.map(|()| Some(name.to_owned())),
    })
}

fn remove(engine: &Engine, name: &str, args: &RmArgs) -> Result<(), Failure> {
    let container = engine.records.find(name)?;
    let auto_removed = container.config.as_ref().is_some_and(|config| config.auto_remove);
    let volumes = match args.volumes || auto_removed {
        true => RemovedVolumes::Remove,
        false => RemovedVolumes::Keep,
    };
    Ok(engine.remove(&container, args.force, volumes)?)
}

fn is_not_found(error: &RecordError) -> bool {
    matches!(error, RecordError::NotFound(_))
}
