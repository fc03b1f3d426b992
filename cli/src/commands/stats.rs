//! `stats`: what containers use, now.

use std::{
    io::{IsTerminal, Write, stdout},
    process::ExitCode,
    thread,
    time::Duration,
};

use caisson_shim::plan::DEFAULT_MEMORY_MIB;
use clap::Args;
use serde_json::{Value, json};

use super::listing;
use crate::{
    engine::{Engine, Sample},
    failure::{CommandResult, Failure},
    format::{template::Format, units},
    globals::Globals,
    names::short_id,
    records::{Container, RecordError, State},
};

/// Between two samples, whose difference is the use of the CPUs.
const INTERVAL: Duration = Duration::from_secs(1);

/// Erases the terminal and goes to its upper left corner.
const CLEAR: &[u8] = b"\x1b[2J\x1b[H";

#[derive(Args, Clone, Debug)]
pub struct StatsArgs {
    /// Show all containers (default shows just running)
    #[arg(short, long)]
    pub all: bool,

    /// Format output: "table", "table TEMPLATE", "json" or a Go template
    #[arg(long, value_name = "string")]
    pub format: Option<String>,

    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    pub no_stream: bool,

    /// Do not truncate output
    #[arg(long)]
    pub no_trunc: bool,

    #[arg(value_name = "CONTAINER", hide = true)]
    pub containers: Vec<String>,
}

pub(super) fn stats(globals: &Globals, args: &StatsArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let engine = Engine::open(globals)?;
    let mut before = sampled(&engine, args)?;
    loop {
        thread::sleep(INTERVAL);
        let now = sampled(&engine, args)?;
        if !args.no_stream && stdout().is_terminal() {
            stdout().write_all(CLEAR)?;
        }
        print(&before, &now, args, &format)?;
        if args.no_stream {
            return Ok(ExitCode::SUCCESS);
        }
        before = now;
    }
}

/// The containers that are asked for, each with what it uses.
fn sampled(
    engine: &Engine,
    args: &StatsArgs,
) -> Result<Vec<(Container, Option<Sample>)>, RecordError> {
    let containers = if args.containers.is_empty() {
        let mut containers = engine.records.all()?;
        containers.retain(|container| args.all || container.state == State::Running);
        containers
    } else {
        let names = args.containers.iter();
        names.map(|name| engine.records.find(name)).collect::<Result<_, _>>()?
    };
    let sampled = containers.into_iter().map(|container| {
        let sample = engine.sample(&container);
        (container, sample)
    });
    Ok(sampled.collect())
}

fn print(
    before: &[(Container, Option<Sample>)],
    now: &[(Container, Option<Sample>)],
    args: &StatsArgs,
    format: &Format,
) -> Result<(), Failure> {
    let columns = [
        ("CONTAINER ID", "ID"),
        ("NAME", "Name"),
        ("CPU %", "CPUPerc"),
        ("MEM USAGE / LIMIT", "MemUsage"),
        ("MEM %", "MemPerc"),
        ("NET I/O", "NetIO"),
        ("BLOCK I/O", "BlockIO"),
        ("PIDS", "PIDs"),
    ];
    let rows = now.iter().map(|(container, sample)| {
        let earlier = before.iter().find(|(earlier, _)| earlier.id == container.id);
        fields(container, earlier.and_then(|(_, sample)| sample.as_ref()), sample.as_ref(), args)
    });
    listing::print(format, rows, &columns)
}

/// The names that Docker's `--format` knows. What does not run uses nothing.
fn fields(
    container: &Container,
    before: Option<&Sample>,
    now: Option<&Sample>,
    args: &StatsArgs,
) -> Value {
    let stats = now.map(|now| now.stats.clone()).unwrap_or_default();
    let used = stats.memory_bytes.saturating_sub(stats.memory_inactive_file_bytes);
    let limit = match now {
        // A container without a limit has all that its VM has.
        Some(_) => stats.memory_limit_bytes.unwrap_or(u64::from(DEFAULT_MEMORY_MIB) << 20),
        None => 0,
    };
    let memory = if limit == 0 { 0.0 } else { used as f64 / limit as f64 * 100.0 };
    let (size, binary) = (units::human_size, units::human_size_binary);
    json!({
        "BlockIO": format!("{} / {}", size(stats.io_read_bytes), size(stats.io_written_bytes)),
        "CPUPerc": format!("{:.2}%", cpu_percent(before, now)),
        "Container": container.name,
        "ID": if args.no_trunc { &container.id } else { short_id(&container.id) },
        "MemPerc": format!("{memory:.2}%"),
        "MemUsage": format!("{} / {}", binary(used), binary(limit)),
        "Name": container.name,
        "NetIO": "0B / 0B",
        "PIDs": stats.pids.to_string(),
    })
}

/// Of one CPU: two busy ones are 200.
fn cpu_percent(before: Option<&Sample>, now: Option<&Sample>) -> f64 {
    let (Some(before), Some(now)) = (before, now) else { return 0.0 };
    let used = now.stats.cpu_usage_usec.saturating_sub(before.stats.cpu_usage_usec);
    let passed = now.at.saturating_duration_since(before.at).as_micros();
    if passed == 0 { 0.0 } else { used as f64 / passed as f64 * 100.0 }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use caisson_agent_protocol::message::Stats;

    use super::*;

    fn container() -> Container {
        Container::sample("c0ffee".repeat(10), "web", State::Running, None)
    }

    fn args() -> StatsArgs {
        StatsArgs { all: false, format: None, no_stream: true, no_trunc: false, containers: vec![] }
    }

    #[test]
    fn memory_is_what_cannot_be_dropped_and_cpus_are_a_difference() {
        let start = Instant::now();
        let stats = Stats {
            cpu_usage_usec: 500_000,
            memory_bytes: 96 << 20,
            memory_inactive_file_bytes: 32 << 20,
            memory_limit_bytes: Some(256 << 20),
            io_read_bytes: 1_500,
            pids: 3,
            ..Stats::default()
        };
        let before = Sample { at: start, stats: stats.clone() };
        let later = Stats { cpu_usage_usec: 2_000_000, ..stats };
        let now = Sample { at: start + INTERVAL, stats: later };
        let fields = fields(&container(), Some(&before), Some(&now), &args());
        assert_eq!(fields["CPUPerc"], "150.00%");
        assert_eq!(fields["MemUsage"], "64MiB / 256MiB");
        assert_eq!(fields["MemPerc"], "25.00%");
        assert_eq!(fields["BlockIO"], "1.5kB / 0B");
        assert_eq!(fields["PIDs"], "3");
    }

    #[test]
    fn what_does_not_run_uses_nothing() {
        let fields = fields(&container(), None, None, &args());
        assert_eq!(fields["CPUPerc"], "0.00%");
        assert_eq!(fields["MemUsage"], "0B / 0B");
        assert_eq!(fields["PIDs"], "0");
    }

    #[test]
    fn without_a_limit_a_container_has_its_vms_memory() {
        let now = Sample { at: Instant::now(), stats: Stats::default() };
        let fields = fields(&container(), None, Some(&now), &args());
        assert_eq!(fields["MemUsage"], "0B / 1GiB");
    }
}
