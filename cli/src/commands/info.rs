//! `info`: the installation, the state and the host at a glance.

use std::process::ExitCode;

use clap::Args;
use nix::sys::utsname::uname;
use serde_json::{Value, json};

use super::{print_line, version::versions};
use crate::{
    engine::Engine,
    failure::CommandResult,
    format::{inert::inert, template::Format, units},
    globals::Globals,
    machine,
    records::State,
};

#[derive(Args, Clone, Debug)]
pub struct InfoArgs {
    /// Format output: "json" or a Go template
    #[arg(short, long, value_name = "string")]
    pub format: Option<String>,
}

pub(super) fn info(globals: &Globals, args: &InfoArgs) -> CommandResult {
    let format = Format::parse(args.format.as_deref())?;
    let engine = Engine::open(globals)?;
    let containers = engine.records.all()?;
    let count = |state| containers.iter().filter(|container| container.state == state).count();
    let running = count(State::Running);
    let host = uname()?;
    let versions = versions();
    let info = json!({
        "ServerVersion": versions["Client"]["Version"],
        "Containers": containers.len(),
        "ContainersRunning": running,
        "ContainersStopped": containers.len() - running,
        "Images": engine.store.images()?.len(),
        // The command got here, so this is where containers run.
        "Accel": if machine::is_inside() { "kvm in the emulated machine" } else { "kvm" },
        "Root": globals.root,
        "State": globals.state,
        "GuestKernel": versions["Kernel"]["Version"],
        "KernelVersion": host.release().to_string_lossy(),
        "OperatingSystem": operating_system(),
        "Architecture": host.machine().to_string_lossy(),
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from),
        "MemTotal": memory_bytes("MemTotal"),
        "Name": host.nodename().to_string_lossy(),
    });
    match format {
        Format::Json => print_line(&info.to_string())?,
        Format::Lines(template) | Format::Table(template) => print_line(&template.fill(&info)?)?,
        Format::Default => print_line(&text(&info))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn text(info: &Value) -> String {
    let field = |name: &str| match &info[name] {
        Value::String(text) => inert(text).into_owned(),
        other => other.to_string(),
    };
    let memory = units::human_size_binary(info["MemTotal"].as_u64().unwrap_or(0));
    format!(
        "Version: {}\n\
         Containers: {}\n Running: {}\n Stopped: {}\n\
         Images: {}\n\
         Accelerator: {}\n\
         Guest Kernel: {}\n\
         Root Dir: {}\n\
         State Dir: {}\n\
         Kernel Version: {}\n\
         Operating System: {}\n\
         Architecture: {}\n\
         CPUs: {}\n\
         Total Memory: {memory}\n\
         Name: {}",
        field("ServerVersion"),
        field("Containers"),
        field("ContainersRunning"),
        field("ContainersStopped"),
        field("Images"),
        field("Accel"),
        field("GuestKernel"),
        field("Root"),
        field("State"),
        field("KernelVersion"),
        field("OperatingSystem"),
        field("Architecture"),
        field("NCPU"),
        field("Name"),
    )
}

fn operating_system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|name| name.trim_matches('"').to_owned()).unwrap_or_default()
}

/// A line of `/proc/meminfo`, in bytes.
pub(super) fn memory_bytes(name: &str) -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
