//! What a plan must be before anything is done for it. The shim is trusted, but parts of
//! a plan are an image's words, and a plan that cannot work should say so at once.

use std::collections::HashSet;

use caisson_agent_protocol::{
    AgentError, ErrorKind, FIRST_STREAM_PORT, Tool, network,
    plan::{ContainerPlan, Extent, ProcessPlan, StdioPorts},
};

use crate::error::wire;

const MAX_ID_BYTES: usize = 128;
/// The kernel's PATH_MAX, its NUL included.
const MAX_PATH_BYTES: usize = 4095;
/// Layers, so that the overlay's options fit the page that mount(2) takes.
const MAX_LAYERS: usize = 200;
const MAX_MOUNTS: usize = 1024;
const MAX_PATHS: usize = 4096;
const MAX_DEVICE_RULES: usize = 512;
/// The kernel's RLIM_NLIMITS.
const RLIMITS: u32 = 16;
/// The kernel's `__NEW_UTS_LEN`.
const MAX_HOSTNAME_BYTES: usize = 64;
/// The kernel's BPF_MAXINSNS.
const MAX_SECCOMP_INSTRUCTIONS: usize = 4096;
/// `SECCOMP_FILTER_FLAG_{TSYNC,LOG,SPEC_ALLOW}`; a listener would have nobody to listen.
const SECCOMP_FLAGS: u32 = 0b111;

fn invalid(message: String) -> AgentError {
    wire(ErrorKind::InvalidArgument, message)
}

fn require(holds: bool, message: impl FnOnce() -> String) -> Result<(), AgentError> {
    if holds { Ok(()) } else { Err(invalid(message())) }
}

/// Checks everything but the paths, which only the root filesystem can tell.
pub fn container(plan: &ContainerPlan) -> Result<(), AgentError> {
    id(&plan.id)?;
    require(plan.rootfs.layers.len() <= MAX_LAYERS, || {
        format!("{} layers are more than {MAX_LAYERS}", plan.rootfs.layers.len())
    })?;
    for extent in plan.rootfs.layers.iter().chain(&plan.rootfs.writable) {
        aligned(extent)?;
    }
    for (what, count, limit) in [
        ("mounts", plan.mounts.len(), MAX_MOUNTS),
        ("files", plan.files.len(), MAX_PATHS),
        ("devices", plan.devices.len(), MAX_PATHS),
        ("masked paths", plan.masked_paths.len(), MAX_PATHS),
        ("read-only paths", plan.readonly_paths.len(), MAX_PATHS),
        ("sysctls", plan.sysctls.len(), MAX_PATHS),
        ("device rules", plan.resources.devices.len(), MAX_DEVICE_RULES),
    ] {
        require(count <= limit, || format!("{count} {what} are more than {limit}"))?;
    }
    for name in plan.hostname.iter().chain(&plan.domainname) {
        require(name.len() <= MAX_HOSTNAME_BYTES, || {
            format!("host or domain name {name:?} is longer than {MAX_HOSTNAME_BYTES} bytes")
        })?;
    }
    network::check(&plan.interfaces).map_err(|error| invalid(error.to_string()))?;
    require(plan.interfaces.is_empty() || plan.namespaces.network, || {
        "network interfaces need a network namespace of the container's own".into()
    })?;
    process(&plan.process, &plan.stdio)
}

/// Checks a process and its streams.
pub fn process(plan: &ProcessPlan, stdio: &StdioPorts) -> Result<(), AgentError> {
    require(!plan.args.is_empty(), || "no command: args is empty".into())?;
    for text in plan.args.iter().chain(&plan.env) {
        require(!text.contains('\0'), || format!("{text:?} contains a NUL byte"))?;
    }
    require(plan.cwd.starts_with('/') && !plan.cwd.contains('\0'), || {
        format!("working directory {:?} is not absolute", plan.cwd)
    })?;
    for limit in &plan.rlimits {
        require(limit.resource < RLIMITS && limit.soft <= limit.hard, || {
            format!("rlimit {} cannot be {} of {}", limit.resource, limit.soft, limit.hard)
        })?;
    }
    if let Some(score) = plan.oom_score_adj {
        require((-1000..=1000).contains(&score), || {
            format!("oom_score_adj {score} is not in -1000..=1000")
        })?;
    }
    for program in &plan.seccomp {
        let length = program.instructions.len();
        require((1..=MAX_SECCOMP_INSTRUCTIONS).contains(&length), || {
            format!(
                "a seccomp program of {length} instructions is not in 1..={MAX_SECCOMP_INSTRUCTIONS}"
            )
        })?;
        require(program.flags & !SECCOMP_FLAGS == 0, || {
            format!("seccomp flags {:#x} are not supported", program.flags)
        })?;
    }
    require(plan.terminal.is_none() || stdio.stderr.is_none(), || {
        "a terminal has no stderr of its own".into()
    })?;
    ports(stdio)
}

/// The grammar of container and exec ids, which become file names.
pub fn id(id: &str) -> Result<(), AgentError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let good = (1..=MAX_ID_BYTES).contains(&id.len())
        && id.as_bytes()[0].is_ascii_alphanumeric()
        && id.bytes().all(plain);
    require(good, || {
        format!("id {id:?} is not [A-Za-z0-9][A-Za-z0-9_.-]* of at most {MAX_ID_BYTES} bytes")
    })
}

fn aligned(extent: &Extent) -> Result<(), AgentError> {
    let (offset, length) = (extent.offset, extent.length);
    require(offset % 4096 == 0 && length % 4096 == 0 && length > 0, || {
        format!("extent {length}@{offset} of {:?} is not aligned to 4096", extent.device)
    })
}

pub fn tool(tool: &Tool, stdio: &StdioPorts) -> Result<(), AgentError> {
    if let Tool::Read { path, .. } | Tool::Write { path, .. } = tool {
        let good = path.len() <= MAX_PATH_BYTES && !path.contains('\0');
        require(good, || format!("a path is up to {MAX_PATH_BYTES} bytes without NUL"))?;
    }
    ports(stdio)
}

fn ports(stdio: &StdioPorts) -> Result<(), AgentError> {
    let mut seen = HashSet::new();
    for port in [stdio.stdin, stdio.stdout, stdio.stderr].into_iter().flatten() {
        require(port >= FIRST_STREAM_PORT && port != u32::MAX, || {
            format!("stream port {port} is below {FIRST_STREAM_PORT} or the wildcard")
        })?;
        require(seen.insert(port), || format!("stream port {port} is used twice"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use caisson_agent_protocol::plan::{Capabilities, UserPlan};

    use super::*;

    fn plan() -> ProcessPlan {
        ProcessPlan {
            args: vec!["sh".into()],
            env: vec!["A=".into(), "B=c=d".into()],
            cwd: "/".into(),
            user: UserPlan::Ids { uid: 0, gid: 0, additional_gids: vec![], umask: None },
            terminal: None,
            capabilities: Capabilities::default(),
            rlimits: vec![],
            no_new_privileges: true,
            seccomp: vec![],
            oom_score_adj: None,
        }
    }

    fn refused(change: impl FnOnce(&mut ProcessPlan)) -> String {
        let mut plan = plan();
        change(&mut plan);
        let error = process(&plan, &StdioPorts::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        error.message
    }

    #[test]
    fn hostile_ids_are_refused() {
        id("a.b_c-9").unwrap();
        id(&"a".repeat(128)).unwrap();
        let long = "a".repeat(129);
        for bad in ["", "../x", ".", "-a", "a/b", "a\n", "a\0", "é", &long] {
            id(bad).unwrap_err();
        }
    }

    #[test]
    fn impossible_processes_are_refused() {
        process(&plan(), &StdioPorts::default()).unwrap();
        refused(|plan| plan.args.clear());
        refused(|plan| plan.args.push("a\0b".into()));
        refused(|plan| plan.env.push("A=b\0c".into()));
        refused(|plan| plan.cwd = "relative".into());
        refused(|plan| plan.oom_score_adj = Some(1001));
    }

    #[test]
    fn ports_are_distinct_and_above_the_first() {
        let ports = |stdin, stdout| StdioPorts { stdin, stdout, stderr: None };
        let first = FIRST_STREAM_PORT;
        process(&plan(), &ports(Some(first), Some(first + 1))).unwrap();
        process(&plan(), &ports(Some(first), Some(first))).unwrap_err();
        process(&plan(), &ports(Some(1024), None)).unwrap_err();
        process(&plan(), &ports(Some(u32::MAX), None)).unwrap_err();
    }
}
