//! The OCI runtime-spec `config.json` of a container, with Docker's defaults.

mod mounts;
mod process;
mod resources;
mod seccomp;

use std::path::Path;

use caisson_vmm::config::RateLimit;
use oci_spec::runtime::{LinuxResources, Spec};
use serde_json::{Map, Value, json};

pub use process::{ExecOptions, exec_process};

use crate::{
    config::{ContainerConfig, Limits, Network, Seccomp},
    options::rates,
};

/// The runtime-spec's version that `config.json` states.
const OCI_VERSION: &str = "1.0.2";

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("decoding the seccomp profile failed")]
    SeccompProfile(#[source] serde_json::Error),
    #[error("the container's configuration does not make a valid OCI spec")]
    Invalid(#[source] serde_json::Error),
}

/// What the spec needs beside the container's configuration.
pub struct Context<'a> {
    pub id: &'a str,
    /// Where the generated `hosts`, `hostname` and `resolv.conf` are.
    pub bundle: &'a Path,
    /// The directory of all volumes.
    pub volumes: &'a Path,
    /// The container has not been started before.
    pub first_start: bool,
    /// `(columns, rows)` of the caller's terminal.
    pub console: Option<(u16, u16)>,
}

/// Builds the spec.
pub fn build(config: &ContainerConfig, context: &Context<'_>) -> Result<Spec, SpecError> {
    let privileged = config.security.privileged;
    let (masked, readonly): (&[&str], &[&str]) =
        if privileged { (&[], &[]) } else { (&MASKED_PATHS, &READONLY_PATHS) };
    let mut linux = json!({
        "resources": resources::build(config),
        "namespaces": namespaces(&config.network),
        "maskedPaths": masked,
        "readonlyPaths": readonly,
        "sysctl": config.sysctls,
    });
    if let Some(seccomp) = seccomp_of(config)? {
        linux["seccomp"] = seccomp;
    }
    let mut process = process::build(config, config.hostname_or(context.id));
    if let (true, Some((columns, rows))) = (config.tty, context.console) {
        process["consoleSize"] = json!({ "width": columns, "height": rows });
    }
    let spec = json!({
        "ociVersion": OCI_VERSION,
        "process": process,
        "root": { "path": "rootfs", "readonly": config.read_only },
        "hostname": config.hostname_or(context.id),
        "mounts": mounts::build(config, context),
        "annotations": annotations(config),
        "linux": linux,
    });
    serde_json::from_value(spec).map_err(SpecError::Invalid)
}

fn namespaces(network: &Network) -> Vec<Value> {
    let mut namespaces = NAMESPACES.map(|kind| json!({ "type": kind })).to_vec();
    namespaces.push(match network {
        Network::Namespace { path } => json!({ "type": "network", "path": path }),
        Network::None | Network::Bridge { .. } => json!({ "type": "network" }),
    });
    namespaces
}

/// The limits alone, as an update takes them: what is not limited stays as it is.
pub fn limits(limits: &Limits) -> Result<LinuxResources, SpecError> {
    let config = ContainerConfig { limits: limits.clone(), ..ContainerConfig::default() };
    let mut resources = resources::build(&config);
    if let Some(fields) = resources.as_object_mut() {
        fields.remove("devices");
    }
    serde_json::from_value(resources).map_err(SpecError::Invalid)
}

/// What the VM's size and limits are beside the container's.
fn annotations(config: &ContainerConfig) -> Map<String, Value> {
    let RateLimit { bandwidth, operations } = config.limits.disk_limit;
    [("io.caisson.disk-bandwidth", bandwidth), ("io.caisson.disk-iops", operations)]
        .into_iter()
        .filter_map(|(name, rate)| Some((name.to_owned(), rates::annotation(rate?).into())))
        .collect()
}

fn seccomp_of(config: &ContainerConfig) -> Result<Option<Value>, SpecError> {
    let capabilities = &config.security.capabilities;
    match &config.security.seccomp {
        Seccomp::Unconfined => Ok(None),
        Seccomp::Default if config.security.privileged => Ok(None),
        Seccomp::Default => Ok(Some(seccomp::default_profile(capabilities))),
        Seccomp::Profile(text) => {
            seccomp::parse(text, capabilities).map(Some).map_err(SpecError::SeccompProfile)
        }
    }
}

const NAMESPACES: [&str; 5] = ["mount", "uts", "pid", "ipc", "cgroup"];

const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

const READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[cfg(test)]
mod tests;
