//! `update`: limits of a container that runs.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::Args;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::CommandResult;
use crate::{
    container::Container,
    error::{RuntimeError, io_error},
};

/// More than any resources take.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Args, Debug, Default)]
pub(crate) struct UpdateArgs {
    /// The runtime-spec's LinuxResources as JSON; - is standard input
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["memory", "memory_reservation", "memory_swap", "cpu_period", "cpu_quota", "cpu_share", "cpuset_cpus", "pids_limit"])]
    pub resources: Option<PathBuf>,
    /// Bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory: Option<i64>,
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_reservation: Option<i64>,
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<i64>,
    /// Microseconds
    #[arg(long, value_name = "US")]
    pub cpu_period: Option<u64>,
    /// Microseconds in a period
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    #[arg(long, value_name = "SHARES")]
    pub cpu_share: Option<u64>,
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    #[arg(value_name = "ID")]
    pub id: String,
}

pub(super) fn update(root: &Path, args: &UpdateArgs) -> CommandResult {
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => of_flags(args)?,
    };
    Container::load(root, &args.id)?.connect_alive()?.update(&resources)?;
    Ok(0)
}

fn read(path: &Path) -> Result<LinuxResources, RuntimeError> {
    let mut text = Vec::new();
    let read = match path == Path::new("-") {
        true => io::stdin().take(MAX_BYTES).read_to_end(&mut text),
        false => File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut text)),
    };
    read.map_err(io_error("read", path))?;
    serde_json::from_slice(&text)
        .map_err(|source| RuntimeError::Json { path: path.to_owned(), source })
}

fn of_flags(args: &UpdateArgs) -> Result<LinuxResources, RuntimeError> {
    let mut memory = LinuxMemory::default();
    memory.set_limit(args.memory);
    memory.set_reservation(args.memory_reservation);
    memory.set_swap(args.memory_swap);
    let mut cpu = LinuxCpu::default();
    cpu.set_period(args.cpu_period);
    cpu.set_quota(args.cpu_quota);
    cpu.set_shares(args.cpu_share);
    cpu.set_cpus(args.cpuset_cpus.clone());
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(limit) = args.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    let nothing = {
        let mut nothing = LinuxResources::default();
        nothing.set_devices(None);
        nothing
    };
    match resources == nothing {
        true => Err(RuntimeError::Usage("no limit to change; see update --help".to_owned())),
        false => Ok(resources),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_asked_for_is_changed() {
        let args = UpdateArgs { pids_limit: Some(7), memory: Some(1 << 20), ..Default::default() };
        let resources = of_flags(&args).unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1 << 20));
        assert!(resources.cpu().is_none() && resources.devices().is_none());
        assert!(of_flags(&UpdateArgs::default()).is_err());
    }

    #[test]
    fn resources_that_are_none_are_named() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("resources.json");
        std::fs::write(&path, "{").unwrap();
        let error = read(&path).unwrap_err().words();
        assert!(error.contains("resources.json is no valid JSON of its kind"), "{error}");
    }
}
