//! What a process may do: rlimits, capabilities, user, seccomp. The order is the point.
//!
//! | step | why here |
//! |---|---|
//! | rlimits | raising one needs privileges |
//! | seccomp, unless no_new_privs | installing without no_new_privs needs CAP_SYS_ADMIN |
//! | bounding set | dropping from it needs CAP_SETPCAP |
//! | groups, gid, uid | with the permitted set kept over the change |
//! | permitted, effective, inheritable, ambient | the final ones |
//! | no_new_privs, then seccomp | last, so that the filter need not allow the above |

use std::{
    io,
    os::raw::{c_int, c_ulong},
};

use caisson_agent_protocol::plan::{Capabilities, ProcessPlan, Rlimit, SeccompProgram};

use crate::{
    error::{At, OsError},
    sys::{check, prctl},
    user::Identity,
};

/// Open files of a process whose plan says nothing, soft and at most: what systemd gives
/// a service. A larger soft limit slows programs that close every possible descriptor.
const OPEN_FILES: (u64, u64) = (1024, 524_288);
/// Open files of the agent itself, which holds some for every process.
const AGENT_OPEN_FILES: u64 = 65_536;

/// Raises the kernel's limits for PID 1, which every process inherits, to what users of
/// containers expect: cgroups limit processes, and files are limited as in [`OPEN_FILES`].
pub fn raise_limits() -> Result<(), OsError> {
    let infinity = libc::RLIM_INFINITY;
    set_rlimits(&[
        Rlimit { resource: libc::RLIMIT_NPROC, soft: infinity, hard: infinity },
        Rlimit { resource: libc::RLIMIT_NOFILE, soft: AGENT_OPEN_FILES, hard: OPEN_FILES.1 },
    ])
}

/// Sets the limits of a new process: the usual ones, then the plan's.
pub fn set_all_rlimits(limits: &[Rlimit]) -> Result<(), OsError> {
    // SAFETY: plain data, valid when zero.
    let mut files: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: the value is a whole `rlimit` that outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) })
        .at(|| "read rlimit NOFILE")?;
    let hard = files.rlim_max.min(OPEN_FILES.1);
    let usual = Rlimit { resource: libc::RLIMIT_NOFILE, soft: OPEN_FILES.0.min(hard), hard };
    // One call each: a hard limit that went down could not come up again.
    if !limits.iter().any(|limit| limit.resource == usual.resource) {
        set_rlimits(&[usual])?;
    }
    set_rlimits(limits)
}

fn set_rlimits(limits: &[Rlimit]) -> Result<(), OsError> {
    for limit in limits {
        let value = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
        // SAFETY: the value is a whole `rlimit` that outlives the call.
        check(unsafe { libc::setrlimit(limit.resource, &raw const value) })
            .at(|| format!("set rlimit {} to {} of {}", limit.resource, limit.soft, limit.hard))?;
    }
    Ok(())
}

/// Becomes `identity` with the plan's capabilities and filters. `settle` runs as the new
/// user with its final capabilities, before a filter that is to come last.
pub fn become_user<E: From<OsError>>(
    plan: &ProcessPlan,
    identity: &Identity,
    settle: impl FnOnce() -> Result<(), E>,
) -> Result<(), E> {
    if !plan.no_new_privileges {
        install_filters(&plan.seccomp)?;
    }
    drop_bounding(plan.capabilities.bounding).at(|| "limit the capability bounding set")?;
    prctl(libc::PR_SET_KEEPCAPS, 1, 0).at(|| "keep capabilities over the change of user")?;
    set_ids(identity).at(|| format!("become uid {} and gid {}", identity.uid, identity.gid))?;
    prctl(libc::PR_SET_KEEPCAPS, 0, 0).at(|| "end keeping capabilities")?;
    set_capabilities(&plan.capabilities).at(|| "set the capabilities")?;
    settle()?;
    if plan.no_new_privileges {
        prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).at(|| "set no_new_privs")?;
        install_filters(&plan.seccomp)?;
    }
    Ok(())
}

/// Capability numbers up to the last that this kernel knows.
fn known_capabilities() -> impl Iterator<Item = c_ulong> {
    (0..64).take_while(|&number| prctl(libc::PR_CAPBSET_READ, number, 0).is_ok())
}

fn drop_bounding(keep: u64) -> io::Result<()> {
    for number in known_capabilities() {
        let held = prctl(libc::PR_CAPBSET_READ, number, 0)? == 1;
        if held && keep & (1 << number) == 0 {
            prctl(libc::PR_CAPBSET_DROP, number, 0)?;
        }
    }
    Ok(())
}

fn set_ids(identity: &Identity) -> io::Result<()> {
    // SAFETY: the list is as long as stated and outlives the call.
    check(unsafe { libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresgid(identity.gid, identity.gid, identity.gid) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::setresuid(identity.uid, identity.uid, identity.uid) })?;
    Ok(())
}

fn set_capabilities(wanted: &Capabilities) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;

    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let known = known_capabilities().fold(0_u64, |mask, number| mask | 1 << number);
    let half = |shift: u32| Data {
        effective: ((wanted.effective & known) >> shift) as u32,
        permitted: ((wanted.permitted & known) >> shift) as u32,
        inheritable: ((wanted.inheritable & known) >> shift) as u32,
    };
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [half(0), half(32)];
    // SAFETY: header and data have the kernel's layout for version 3 and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    let ambient = wanted.ambient & wanted.permitted & wanted.inheritable & known;
    for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as c_ulong, number)?;
    }
    Ok(())
}

fn install_filters(programs: &[SeccompProgram]) -> Result<(), OsError> {
    for (index, program) in programs.iter().enumerate() {
        install(program).at(|| {
            format!(
                "install seccomp program {index} of {} instructions",
                program.instructions.len()
            )
        })?;
    }
    Ok(())
}

fn install(program: &SeccompProgram) -> io::Result<()> {
    let instruction =
        |&(code, jt, jf, k): &(u16, u8, u8, u32)| libc::sock_filter { code, jt, jf, k };
    let mut filter: Vec<_> = program.instructions.iter().map(instruction).collect();
    let length =
        u16::try_from(filter.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program_header = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: the header and the instructions that it points to outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            program.flags,
            &raw const program_header,
        )
    })
    .map(drop)
}
