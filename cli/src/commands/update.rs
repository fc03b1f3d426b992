//! `update`: other limits for containers that are there.

use clap::Args;

use super::for_each;
use crate::{
    engine::Engine,
    failure::{CommandResult, Failure},
    globals::Globals,
    options::{flags::ContainerFlags, resolve},
};

#[derive(Args, Clone, Debug)]
pub struct UpdateArgs {
    /// CPU shares (relative weight)
    #[arg(short, long, value_name = "int")]
    pub cpu_shares: Option<u64>,

    /// Number of CPUs
    #[arg(long, value_name = "decimal")]
    pub cpus: Option<String>,

    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    pub cpuset_cpus: Option<String>,

    /// Memory limit
    #[arg(short, long, value_name = "bytes")]
    pub memory: Option<String>,

    /// Memory soft limit
    #[arg(long, value_name = "bytes")]
    pub memory_reservation: Option<String>,

    /// Swap limit equal to memory plus swap: -1 to enable unlimited swap
    #[arg(long, value_name = "bytes", requires = "memory")]
    pub memory_swap: Option<String>,

    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, value_name = "int")]
    pub pids_limit: Option<i64>,

    #[arg(value_name = "CONTAINER", required = true, hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn update(globals: &Globals, args: &UpdateArgs) -> CommandResult {
    let flags = ContainerFlags {
        cpu_shares: args.cpu_shares,
        cpus: args.cpus.clone(),
        cpuset_cpus: args.cpuset_cpus.clone(),
        memory: args.memory.clone(),
        memory_reservation: args.memory_reservation.clone(),
        memory_swap: args.memory_swap.clone(),
        pids_limit: args.pids_limit,
        ..ContainerFlags::default()
    };
    let limits = resolve::limits(&flags)?;
    let unlimited_pids = matches!(args.pids_limit, Some(-1 | 0));
    if limits == Default::default() && !unlimited_pids {
        return Err(Failure::message("you must provide one or more flags when using this command"));
    }
    let engine = Engine::open(globals)?;
    for_each(&args.containers, |name| {
        engine.update(&engine.records.find(name)?, &limits, unlimited_pids)?;
        Ok(Some(name.to_owned()))
    })
}
