//! An OCI bundle into what the agent and the VM are asked for.
//!
//! `config.json` is parsed loosely by `oci-spec` and validated once, here; what comes out
//! cannot be invalid. What a microVM cannot do is refused by name rather than ignored,
//! and nothing on the host has changed by then.

mod annotations;
mod binds;
mod devices;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod size;

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use caisson_agent_protocol::{
    ContainerPlan, MAX_FRAME_BYTES,
    network::InterfacePlan,
    plan::{ProcessPlan, RootfsPlan, StdioPorts},
};
use oci_spec::runtime::Spec;

use mounts::Mounts;

use crate::sandbox::Share;

pub use annotations::Annotations;
pub use process::exec;
pub use resources::{cpu_limits, update};
pub use size::{DEFAULT_MEMORY_MIB, HostSize, vm_size};

/// The largest `config.json` that is read; engines write some tens of KiB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

const MAX_ID_BYTES: usize = 128;

/// A plan travels in one frame, with what the root filesystem adds to it and the envelope.
const MAX_PLAN_BYTES: usize = MAX_FRAME_BYTES - (256 << 10);

/// A bundle that cannot become a container. No error of this kind leaves a trace.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds over {MAX_CONFIG_BYTES} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error(
        "what the spec asks for takes {bytes} bytes to tell the guest: at most {MAX_PLAN_BYTES} fit, files of bind mounts included"
    )]
    PlanTooLarge { bytes: usize },
    #[error("{} is no regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{what} is no valid OCI runtime-spec")]
    Parse { what: String, source: serde_json::Error },
    /// The spec contradicts itself or the runtime-spec.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// The spec is right, and a microVM, or this version, cannot do it.
    #[error("{field}: {problem}")]
    Unsupported { field: String, problem: String },
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> PlanError {
    PlanError::Invalid { field: field.into(), problem: problem.into() }
}

fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> PlanError {
    PlanError::Unsupported { field: field.into(), problem: problem.into() }
}

/// Reads and parses `config.json` in `bundle`.
pub fn load(bundle: &Path) -> Result<Spec, PlanError> {
    let path = bundle.join("config.json");
    let failed = |source| PlanError::Read { path: path.clone(), source };
    // A FIFO in its place must not hang the open.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(PlanError::NotAFile { path });
    }
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(PlanError::TooLarge { path });
    }
    serde_json::from_slice(&bytes)
        .map_err(|source| PlanError::Parse { what: path.display().to_string(), source })
}

/// Checks a container's or an exec's id: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 128 bytes.
/// It becomes the name of directories and cgroups.
pub fn check_id(what: &str, id: &str) -> Result<(), PlanError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let valid = id.len() <= MAX_ID_BYTES
        && id.bytes().all(good)
        && id.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if valid {
        return Ok(());
    }
    let shown: String = id.chars().take(MAX_ID_BYTES).collect();
    let grammar = "must match [A-Za-z0-9][A-Za-z0-9_.-]* and have at most 128 characters";
    Err(invalid(format!("{what} {shown:?}"), grammar))
}

/// What of the plan comes from elsewhere than the spec.
pub struct Surroundings {
    pub ports: StdioPorts,
    /// The Task API's word on the terminal.
    pub terminal: bool,
    pub vcpus: u8,
    /// What stands in the network namespace of [`network_namespace`].
    pub interfaces: Vec<InterfacePlan>,
}

/// The network namespace on the host that the spec names.
pub fn network_namespace(spec: &Spec) -> Result<Option<PathBuf>, PlanError> {
    spec.linux().as_ref().map_or(Ok(None), namespaces::network)
}

/// What a container asks of the guest and of the host.
#[derive(Debug)]
pub struct Planned {
    pub container: ContainerPlan,
    /// Those of the host's directories and files that its mounts name by index.
    pub shares: Vec<Share>,
}

/// The plan of container `id`, its root filesystem's images still to be filled in: those are
/// opened, or even made, only for a spec that is good.
pub fn container(id: &str, spec: &Spec, surroundings: Surroundings) -> Result<Planned, PlanError> {
    check_id("the container's id", id)?;
    refuse_whole_sections(spec)?;
    let process = spec.process().as_ref().ok_or_else(|| invalid("process", "is missing"))?;
    let process: ProcessPlan =
        process::container(process, surroundings.terminal, seccomp::of(spec)?)?;
    let Mounts { mounts, files, shares } = mounts::translate(spec)?;
    let linux = spec.linux().clone().unwrap_or_default();
    let namespaces = namespaces::translate(&linux)?;
    let sysctls = namespaces::sysctls(&linux, &namespaces)?;
    let resources = linux.resources().clone().unwrap_or_default();
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let plan = ContainerPlan {
        id: id.to_owned(),
        rootfs: RootfsPlan { layers: Vec::new(), writable: None, readonly },
        process,
        stdio: surroundings.ports,
        hostname: uts_name("hostname", spec.hostname(), namespaces.uts)?,
        domainname: uts_name("domainname", spec.domainname(), namespaces.uts)?,
        namespaces,
        interfaces: surroundings.interfaces,
        mounts,
        files,
        devices: devices::nodes(&linux)?,
        masked_paths: container_paths("linux.maskedPaths", linux.masked_paths())?,
        readonly_paths: container_paths("linux.readonlyPaths", linux.readonly_paths())?,
        sysctls,
        resources: resources::create(&resources, surroundings.vcpus)?,
    };
    check_size(&plan)?;
    Ok(Planned { container: plan, shares })
}

/// Checks that a plan can be sent, before there is anybody to send it to.
fn check_size(plan: &impl serde::Serialize) -> Result<(), PlanError> {
    struct Count(usize);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, plan)
        .expect("a plan is plain data, and counting cannot fail");
    match count.0 {
        bytes if bytes > MAX_PLAN_BYTES => Err(PlanError::PlanTooLarge { bytes }),
        _ => Ok(()),
    }
}

/// Parts of a spec that change what a container is, and that cannot be had.
fn refuse_whole_sections(spec: &Spec) -> Result<(), PlanError> {
    let hooks = spec.hooks().as_ref().map(|hooks| serde_json::json!(hooks));
    let has_hooks = hooks.as_ref().and_then(serde_json::Value::as_object).is_some_and(|kinds| {
        kinds.values().any(|list| list.as_array().is_some_and(|l| !l.is_empty()))
    });
    let linux = spec.linux().as_ref();
    let mapped = linux.is_some_and(|linux| {
        linux.uid_mappings().as_ref().is_some_and(|list| !list.is_empty())
            || linux.gid_mappings().as_ref().is_some_and(|list| !list.is_empty())
    });
    let refusals = [
        (has_hooks, "hooks", "runtime hooks are not supported in this version"),
        (
            mapped,
            "linux.uidMappings",
            "user namespaces are not supported; the VM itself isolates the container's root",
        ),
        (
            linux.is_some_and(|linux| linux.intel_rdt().is_some()),
            "linux.intelRdt",
            "cache and bandwidth allocation cannot be had inside a VM",
        ),
        (
            linux.is_some_and(|linux| linux.personality().is_some()),
            "linux.personality",
            "execution domains are not supported",
        ),
        (
            linux.is_some_and(|linux| linux.net_devices().as_ref().is_some_and(|n| !n.is_empty())),
            "linux.netDevices",
            "host network devices cannot be moved into a VM",
        ),
        (
            linux.is_some_and(|linux| linux.memory_policy().is_some()),
            "linux.memoryPolicy",
            "the VM has one memory node",
        ),
        (
            linux.is_some_and(|linux| linux.time_offsets().as_ref().is_some_and(|t| !t.is_empty())),
            "linux.timeOffsets",
            "time namespaces are not supported",
        ),
    ];
    match refusals.into_iter().find(|(present, ..)| *present) {
        Some((_, field, problem)) => Err(unsupported(field, problem)),
        None => Ok(()),
    }
}

fn uts_name(
    field: &str,
    name: &Option<String>,
    own_namespace: bool,
) -> Result<Option<String>, PlanError> {
    // As long as `struct utsname` holds.
    const MAX_BYTES: usize = 64;
    let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { return Ok(None) };
    if name.len() > MAX_BYTES || name.contains('\0') {
        return Err(invalid(field, format!("{name:?} has over {MAX_BYTES} bytes or a NUL")));
    }
    if !own_namespace {
        return Err(invalid(field, "needs a uts namespace of the container's own"));
    }
    Ok(Some(name.clone()))
}

fn container_paths(field: &str, paths: &Option<Vec<String>>) -> Result<Vec<String>, PlanError> {
    let paths = paths.clone().unwrap_or_default();
    for path in &paths {
        check_container_path(field, path)?;
    }
    Ok(paths)
}

/// Checks a path inside the container. The agent resolves it beneath the root.
fn check_container_path(field: &str, path: &str) -> Result<(), PlanError> {
    if !path.starts_with('/') || path.contains('\0') || path.len() >= libc::PATH_MAX as usize {
        return Err(invalid(field, format!("{path:?} is no absolute path")));
    }
    Ok(())
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
