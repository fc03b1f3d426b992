//! `system …`.

mod df;
mod usage;

use clap::{Args, Subcommand};

use super::{Command, events, info, prune};
use crate::{failure::CommandResult, globals::Globals};

#[derive(Args, Debug)]
pub struct SystemArgs {
    #[command(subcommand)]
    pub(super) command: SystemCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum SystemCommand {
    /// Show disk usage
    #[command(override_usage = "caisson system df [OPTIONS]")]
    Df(df::DfArgs),
    /// Get real time events
    #[command(override_usage = "caisson system events [OPTIONS]")]
    Events(events::EventsArgs),
    /// Display system-wide information
    #[command(override_usage = "caisson system info [OPTIONS]")]
    Info(info::InfoArgs),
    /// Remove unused data
    #[command(override_usage = "caisson system prune [OPTIONS]")]
    Prune(prune::SystemPruneArgs),
}

impl SystemCommand {
    /// The same command without `system` before it, where there is one.
    pub(super) fn flatten(self) -> Command {
        match self {
            Self::Events(args) => Command::Events(args),
            Self::Info(args) => Command::Info(args),
            other => Command::System(SystemArgs { command: other }),
        }
    }
}

pub(super) fn system(globals: &Globals, args: SystemArgs) -> CommandResult {
    match args.command {
        SystemCommand::Df(args) => df::df(globals, &args),
        SystemCommand::Events(args) => events::events(globals, &args),
        SystemCommand::Info(args) => info::info(globals, &args),
        SystemCommand::Prune(args) => prune::system(globals, &args),
    }
}
