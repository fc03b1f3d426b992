//! One process: the container's first, or an exec.

use caisson_agent_protocol::plan::{
    Capabilities, ProcessPlan, Rlimit, SeccompProgram, TerminalSize, UserPlan,
};
use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimitType, Process, User};

use super::{PlanError, check_container_path, invalid, unsupported};

/// Before an engine says how large the terminal is.
const DEFAULT_TERMINAL: TerminalSize = TerminalSize { columns: 80, rows: 24 };

pub(super) fn container(
    process: &Process,
    terminal: bool,
    seccomp: Vec<SeccompProgram>,
) -> Result<ProcessPlan, PlanError> {
    if process.scheduler().is_some() {
        return Err(unsupported("process.scheduler", "scheduling policies are not supported"));
    }
    if process.io_priority().is_some() {
        return Err(unsupported("process.ioPriority", "I/O priorities are not supported"));
    }
    let cwd = process.cwd().to_str().ok_or_else(|| invalid("process.cwd", "is not UTF-8"))?;
    check_container_path("process.cwd", cwd)?;
    Ok(ProcessPlan {
        args: args(process)?,
        env: env(process)?,
        cwd: cwd.to_owned(),
        user: user(process.user())?,
        terminal: terminal.then(|| terminal_size(process)),
        capabilities: capabilities(process.capabilities())?,
        rlimits: rlimits(process)?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        seccomp,
        oom_score_adj: oom_score_adj(process)?,
    })
}

/// The plan of a further process in a container whose filters are `seccomp`.
///
/// `json` is the runtime-spec's `Process`, as the Task API carries it.
pub fn exec(
    json: &[u8],
    terminal: bool,
    seccomp: Vec<SeccompProgram>,
) -> Result<ProcessPlan, PlanError> {
    let process: Process = serde_json::from_slice(json)
        .map_err(|source| PlanError::Parse { what: "the exec's process".to_owned(), source })?;
    let plan = container(&process, terminal, seccomp)?;
    super::check_size(&plan)?;
    Ok(plan)
}

fn args(process: &Process) -> Result<Vec<String>, PlanError> {
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(invalid("process.args", "names no command"));
    }
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err(invalid("process.args", "an argument holds a NUL"));
    }
    Ok(args)
}

/// The environment without entries that name no value: those would take the shim's.
fn env(process: &Process) -> Result<Vec<String>, PlanError> {
    let mut env = process.env().clone().unwrap_or_default();
    if env.iter().any(|entry| entry.contains('\0')) {
        return Err(invalid("process.env", "an entry holds a NUL"));
    }
    env.retain(|entry| entry.find('=').is_some_and(|at| at > 0));
    Ok(env)
}

fn user(user: &User) -> Result<UserPlan, PlanError> {
    let gids = user.additional_gids().clone().unwrap_or_default();
    if let Some(name) = user.username().as_ref().filter(|name| !name.is_empty()) {
        if name.contains(['\0', '\n']) {
            return Err(invalid("process.user.username", format!("{name:?} is no name")));
        }
        let additional_groups = gids.iter().map(u32::to_string).collect();
        return Ok(UserPlan::Name { user: name.clone(), additional_groups });
    }
    let umask = user.umask();
    if umask.is_some_and(|umask| umask > 0o777) {
        return Err(invalid("process.user.umask", "is above 0777"));
    }
    Ok(UserPlan::Ids { uid: user.uid(), gid: user.gid(), additional_gids: gids, umask })
}

fn terminal_size(process: &Process) -> TerminalSize {
    let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
    match process.console_size() {
        Some(size) if size.width() > 0 && size.height() > 0 => {
            TerminalSize { columns: cells(size.width()), rows: cells(size.height()) }
        }
        _ => DEFAULT_TERMINAL,
    }
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>, PlanError> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => {
            Err(invalid("process.oomScoreAdj", format!("{score} is not from -1000 to 1000")))
        }
        score => Ok(score),
    }
}

fn capabilities(sets: &Option<LinuxCapabilities>) -> Result<Capabilities, PlanError> {
    let Some(sets) = sets else { return Ok(Capabilities::default()) };
    let permitted = mask(sets.permitted());
    let inheritable = mask(sets.inheritable());
    let effective = mask(sets.effective());
    if effective & !permitted != 0 {
        return Err(invalid(
            "process.capabilities.effective",
            "holds capabilities that are not permitted",
        ));
    }
    Ok(Capabilities {
        bounding: mask(sets.bounding()),
        effective,
        permitted,
        inheritable,
        // capabilities(7): none is ambient that is not permitted and inheritable.
        ambient: mask(sets.ambient()) & permitted & inheritable,
    })
}

fn mask(set: &Option<std::collections::HashSet<Capability>>) -> u64 {
    set.iter().flatten().fold(0, |mask, &capability| mask | 1 << number(capability))
}

/// The capability's number in `linux/capability.h`.
fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>, PlanError> {
    let mut rlimits: Vec<Rlimit> = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let (field, resource) =
            (format!("process.rlimits, {}", limit.typ()), resource(limit.typ()));
        if rlimits.iter().any(|seen| seen.resource == resource) {
            return Err(invalid(field, "stands there twice"));
        }
        if limit.soft() > limit.hard() {
            let problem = format!("soft limit {} above hard limit {}", limit.soft(), limit.hard());
            return Err(invalid(field, problem));
        }
        rlimits.push(Rlimit { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(rlimits)
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}
