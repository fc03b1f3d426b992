//! `container …`, and the hidden command of the monitor.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{
    Command, attach, cp, create, diff, exec, export, inspect, kill, logs, pause, prune, ps, rename,
    restart, rm, run, start, stats, stop, top, update, wait,
};
use crate::{engine, failure::CommandResult, globals::Globals};

#[derive(Args, Debug)]
pub struct ContainerArgs {
    #[command(subcommand)]
    pub(super) command: ContainerCommand,
}

#[derive(Subcommand, Debug)]
pub(super) enum ContainerCommand {
    /// Attach local standard input, output, and error streams to a running container
    #[command(override_usage = "caisson container attach [OPTIONS] CONTAINER")]
    Attach(attach::AttachArgs),
    /// Copy files/folders between a container and the local filesystem
    #[command(
        override_usage = "caisson container cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n       caisson container cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH"
    )]
    Cp(cp::CpArgs),
    /// Create a new container
    #[command(override_usage = "caisson container create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Create(create::CreateArgs),
    /// Inspect changes to files or directories on a container's filesystem
    #[command(override_usage = "caisson container diff CONTAINER")]
    Diff(diff::DiffArgs),
    /// Execute a command in a running container
    #[command(override_usage = "caisson container exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
    Exec(exec::ExecArgs),
    /// Export a container's filesystem as a tar archive
    #[command(override_usage = "caisson container export [OPTIONS] CONTAINER")]
    Export(export::ExportArgs),
    /// Display detailed information on one or more containers
    #[command(override_usage = "caisson container inspect [OPTIONS] CONTAINER [CONTAINER...]")]
    Inspect(inspect::InspectArgs),
    /// Kill one or more running containers
    #[command(override_usage = "caisson container kill [OPTIONS] CONTAINER [CONTAINER...]")]
    Kill(kill::KillArgs),
    /// Fetch the logs of a container
    #[command(override_usage = "caisson container logs [OPTIONS] CONTAINER")]
    Logs(logs::LogsArgs),
    /// List containers
    #[command(override_usage = "caisson container ls [OPTIONS]", visible_aliases = ["list", "ps"])]
    Ls(ps::PsArgs),
    /// Pause all processes within one or more containers
    #[command(override_usage = "caisson container pause CONTAINER [CONTAINER...]")]
    Pause(pause::PauseArgs),
    /// Remove all stopped containers
    #[command(override_usage = "caisson container prune [OPTIONS]")]
    Prune(prune::ContainerPruneArgs),
    /// Rename a container
    #[command(override_usage = "caisson container rename CONTAINER NEW_NAME")]
    Rename(rename::RenameArgs),
    /// Restart one or more containers
    #[command(override_usage = "caisson container restart [OPTIONS] CONTAINER [CONTAINER...]")]
    Restart(restart::RestartArgs),
    /// Remove one or more containers
    #[command(
        override_usage = "caisson container rm [OPTIONS] CONTAINER [CONTAINER...]",
        visible_alias = "remove"
    )]
    Rm(rm::RmArgs),
    /// Create and run a new container from an image
    #[command(override_usage = "caisson container run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Run(run::RunArgs),
    /// Start one or more stopped containers
    #[command(override_usage = "caisson container start [OPTIONS] CONTAINER [CONTAINER...]")]
    Start(start::StartArgs),
    /// Display a live stream of container(s) resource usage statistics
    #[command(override_usage = "caisson container stats [OPTIONS] [CONTAINER...]")]
    Stats(stats::StatsArgs),
    /// Stop one or more running containers
    #[command(override_usage = "caisson container stop [OPTIONS] CONTAINER [CONTAINER...]")]
    Stop(stop::StopArgs),
    /// Display the running processes of a container
    #[command(override_usage = "caisson container top CONTAINER [ps OPTIONS]")]
    Top(top::TopArgs),
    /// Unpause all processes within one or more containers
    #[command(override_usage = "caisson container unpause CONTAINER [CONTAINER...]")]
    Unpause(pause::PauseArgs),
    /// Update configuration of one or more containers
    #[command(override_usage = "caisson container update [OPTIONS] CONTAINER [CONTAINER...]")]
    Update(update::UpdateArgs),
    /// Block until one or more containers stop, then print their exit codes
    #[command(override_usage = "caisson container wait CONTAINER [CONTAINER...]")]
    Wait(wait::WaitArgs),
}

#[derive(Args, Clone, Debug)]
pub struct MonitorArgs {
    id: String,
}

impl ContainerCommand {
    /// The same command without `container` before it.
    pub(super) fn flatten(self) -> Command {
        match self {
            Self::Attach(args) => Command::Attach(args),
            Self::Cp(args) => Command::Cp(args),
            Self::Create(args) => Command::Create(args),
            Self::Diff(args) => Command::Diff(args),
            Self::Exec(args) => Command::Exec(args),
            Self::Export(args) => Command::Export(args),
            Self::Inspect(args) => Command::Inspect(inspect::InspectArgs {
                kind: Some(inspect::Kind::Container),
                ..args
            }),
            Self::Kill(args) => Command::Kill(args),
            Self::Logs(args) => Command::Logs(args),
            Self::Ls(args) => Command::Ps(args),
            Self::Pause(args) => Command::Pause(args),
            Self::Prune(args) => Command::Container(ContainerArgs { command: Self::Prune(args) }),
            Self::Rename(args) => Command::Rename(args),
            Self::Restart(args) => Command::Restart(args),
            Self::Rm(args) => Command::Rm(args),
            Self::Run(args) => Command::Run(args),
            Self::Start(args) => Command::Start(args),
            Self::Stats(args) => Command::Stats(args),
            Self::Stop(args) => Command::Stop(args),
            Self::Top(args) => Command::Top(args),
            Self::Unpause(args) => Command::Unpause(args),
            Self::Update(args) => Command::Update(args),
            Self::Wait(args) => Command::Wait(args),
        }
    }
}

pub(super) fn monitor(globals: &Globals, args: &MonitorArgs) -> CommandResult {
    engine::run_monitor(globals, &args.id)?;
    Ok(ExitCode::SUCCESS)
}
