//! `container prune`, and the hidden command of the monitor.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::print_line;
use crate::{
    engine::{self, Engine},
    failure::{CommandResult, Failure},
    globals::Globals,
    records::State,
};

#[derive(Args, Clone, Debug)]
pub struct ContainerArgs {
    #[command(subcommand)]
    command: ContainerCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ContainerCommand {
    /// Remove all stopped containers
    Prune(PruneArgs),
}

#[derive(Args, Clone, Debug)]
struct PruneArgs {
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    id: String,
}

pub(super) fn container(globals: &Globals, args: ContainerArgs) -> CommandResult {
    let ContainerCommand::Prune(args) = args.command;
    if !args.force {
        return Err(Failure::message(
            "this removes all stopped containers; `caisson container prune --force` does it",
        ));
    }
    let engine = Engine::open(globals)?;
    let mut removed = Vec::new();
    for container in engine.records.all()? {
        if matches!(container.state, State::Created | State::Exited) {
            engine.remove(&container, false)?;
            removed.push(container.id);
        }
    }
    if !removed.is_empty() {
        print_line("Deleted Containers:")?;
        removed.iter().try_for_each(|id| print_line(id))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn monitor(globals: &Globals, args: &MonitorArgs) -> CommandResult {
    engine::run_monitor(globals, &args.id)?;
    Ok(ExitCode::SUCCESS)
}
