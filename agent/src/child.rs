//! From fork to `execve`: what a new process does to itself.
//!
//! ```text
//!   fork ─► isolate ─► build the container, or join it ─► look the user up ─► Ready
//!        ─► wait for the start ─► descriptors, limits, user, filters ─► execve
//! ```
//!
//! Everything that can fail early does so before `Ready`. The code runs in a copy of the
//! agent's memory and never returns into it.

use std::{
    convert::Infallible,
    ffi::CString,
    fs,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use caisson_agent_protocol::{
    AgentError, BootStage, ErrorKind,
    plan::{ContainerPlan, ProcessPlan},
};
use caisson_netlink::Netlink;
use nix::{
    fcntl::{OFlag, open},
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, execve, fchdir, fchown, setsid},
};

use crate::{
    command::{self, CommandError},
    credentials,
    devices::{self, is_device},
    error::{At, Kind, OsError, os_message, wire},
    kernel_settings, mounts, overlays,
    path::{PathError, Root},
    report::{self, Report},
    rootfs::{self, RootDevices},
    stamp::{self, stamp},
    stdio::ProcessEnds,
    sys,
    terminal::{self, Pty},
    user::{self, Identity},
};

/// What the child is to become.
pub struct Task<'a> {
    pub process: &'a ProcessPlan,
    pub role: &'a Role<'a>,
    pub ends: &'a ProcessEnds,
    /// The agent's `/dev/null`, should the container have none.
    pub null: BorrowedFd<'a>,
    pub report: BorrowedFd<'a>,
}

pub enum Role<'a> {
    /// The container's first process: makes the container.
    /// `network` reaches the VM's interfaces, where the plan has some.
    Init { plan: &'a ContainerPlan, devices: &'a RootDevices, network: Option<&'a Netlink> },
    /// One more process of the container whose first process `init` (a pidfd) is.
    Exec { init: BorrowedFd<'a> },
}

/// The child's whole life.
pub fn run(task: &Task<'_>) -> ! {
    let error = match live(task) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    if report::send(task.report, &Report::Failed(error), None).is_err() {
        // The agent sees the socket close and reports that instead.
    }
    // SAFETY: ends this process alone, without running the agent's destructors.
    unsafe { libc::_exit(1) }
}

fn live(task: &Task<'_>) -> Result<Infallible, AgentError> {
    let mut keep = vec![task.null.as_raw_fd()];
    match task.role {
        Role::Exec { init } => keep.push(init.as_raw_fd()),
        Role::Init { network, .. } => keep.extend(network.map(Netlink::as_raw_fd)),
    }
    isolate(task.ends, task.report, keep)?;
    if let Some(score) = task.process.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .at(|| format!("set oom_score_adj to {score}"))?;
    }
    let pty = match task.role {
        Role::Init { plan, devices, network } => build(plan, devices, *network)?,
        Role::Exec { init } => join(*init, task.process)?,
    };
    let identity = user::look_up(&task.process.user)?;
    let process_end = announce(task, pty)?;
    if !report::wait_for_start(task.report).at(|| "wait for the start")? {
        return Err(wire(ErrorKind::Internal, "the agent is gone"));
    }
    stamp(BootStage::ProcessExec);
    execute(task, &identity, process_end)
}

/// Leaves the agent's descriptors, but for these, and its signals and session behind.
pub(crate) fn isolate(
    ends: &ProcessEnds,
    report: BorrowedFd<'_>,
    mut keep: Vec<RawFd>,
) -> Result<(), AgentError> {
    keep.extend(ends.raw().into_iter().flatten());
    keep.push(report.as_raw_fd());
    keep.extend(stamp::descriptor());
    // Before anything else: a copy of another process's pipe would keep it open.
    sys::close_all_but(&mut keep).at(|| "close the agent's descriptors")?;
    sys::reset_signals().at(|| "reset signals")?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .at(|| "reset the signal mask")?;
    setsid().at(|| "start a session")?;
    // Modes in the plan are final ones.
    umask(Mode::empty());
    Ok(())
}

/// Makes the container around this process. docs/agent.md gives the order's reasons.
fn build(
    plan: &ContainerPlan,
    devices: &RootDevices,
    network: Option<&Netlink>,
) -> Result<Option<Pty>, AgentError> {
    if plan.namespaces.cgroup {
        // Not at the fork: the namespace's root is the cgroup that its maker is in.
        sys::unshare(libc::CLONE_NEWCGROUP).at(|| "make a cgroup namespace")?;
    }
    sys::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")
        .at(|| "keep mounts to this container")?;
    let root = rootfs::assemble(devices)?;
    kernel_settings::apply(plan, network)?;
    let still_writable = mounts::mount_all(&root, &plan.mounts)?;
    devices::make_all(&root, &plan.mounts, &plan.devices)?;
    overlays::bind_files(&root, &plan.files)?;
    make_cwd(&root, &plan.process.cwd)?;
    let pty = open_terminal(&root, &plan.process)?;
    if let Some(pty) = &pty {
        pty.bind_console(&root)?;
    }
    overlays::make_readonly(&root, &plan.readonly_paths)?;
    overlays::mask(&root, &plan.masked_paths)?;
    mounts::make_readonly(&still_writable)?;
    if plan.rootfs.readonly {
        sys::set_readonly(root.fd(), false).at(|| "make the root read-only")?;
    }
    fchdir(root.fd()).at(|| "enter the new root")?;
    sys::pivot_root_here().at(|| "change to the new root")?;
    Ok(pty)
}

/// Makes the working directory as far as that can be done: what stands in the way is told
/// when the process is started in it, in the words of chdir(2).
fn make_cwd(root: &Root, cwd: &str) -> Result<(), PathError> {
    match root.make_dir(cwd) {
        Err(error) if error.kind() == ErrorKind::NoSpace => Err(error),
        _ => Ok(()),
    }
}

/// Joins the namespaces that `init` lives in; the pid namespace and the cgroup were
/// joined at the fork.
fn join(init: BorrowedFd<'_>, process: &ProcessPlan) -> Result<Option<Pty>, AgentError> {
    let kinds = libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    sys::setns(init, kinds).at(|| "join the container's namespaces")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open("/", flags, Mode::empty()).at(|| "open the container's root")?;
    Ok(open_terminal(&Root::new(root), process)?)
}

fn open_terminal(root: &Root, process: &ProcessPlan) -> Result<Option<Pty>, PathError> {
    Ok(process.terminal.map(|size| terminal::open(root, size)).transpose()?)
}

/// Tells the agent that all is prepared and hands it the master of the terminal.
fn announce(task: &Task<'_>, pty: Option<Pty>) -> Result<Option<OwnedFd>, AgentError> {
    let master = pty.as_ref().map(|pty| pty.master.as_fd());
    report::send(task.report, &Report::Ready, master).at(|| "report to the agent")?;
    Ok(pty.map(|pty| pty.process))
}

/// Becomes the program.
fn execute(
    task: &Task<'_>,
    identity: &Identity,
    terminal: Option<OwnedFd>,
) -> Result<Infallible, AgentError> {
    let process = task.process;
    connect_stdio(task, identity, terminal)?;
    sys::close_all_on_exec().at(|| "mark descriptors close-on-exec")?;
    umask(Mode::from_bits_truncate(identity.umask & 0o777));
    let (args, env) = strings(process, identity)?;
    credentials::set_all_rlimits(&process.rlimits)?;
    let entered = enter_as_root(&process.cwd)?;
    let mut program = None;
    credentials::become_user(process, identity, || {
        if !entered {
            enter(&process.cwd)?;
        }
        program = Some(command::find(&process.args[0], &process.env)?);
        Ok::<_, AgentError>(())
    })?;
    let path = program.expect("become_user calls settle before it succeeds");
    let c_path = sys::c_string(&path).at(|| "name the program")?;
    match execve(&c_path, &args, &env) {
        Ok(never) => match never {},
        Err(error) => Err(CommandError::Exec { path, source: error.into() }.into()),
    }
}

/// Descriptors 0, 1 and 2: the pipes, the terminal, or the container's `/dev/null`.
fn connect_stdio(
    task: &Task<'_>,
    identity: &Identity,
    terminal: Option<OwnedFd>,
) -> Result<(), AgentError> {
    let null = null_device(task.null)?;
    let mut wanted = [null.as_fd(); 3];
    for (slot, end) in wanted.iter_mut().zip(&task.ends.fds) {
        if let Some(end) = terminal.as_ref().or(end.as_ref()) {
            *slot = end.as_fd();
            // So that the user may open /dev/stdout; not every file can be owned.
            let _ = fchown(end, Some(Uid::from_raw(identity.uid)), None::<Gid>);
        }
    }
    if let Some(terminal) = &terminal {
        wanted = [terminal.as_fd(); 3];
        terminal::take_control(terminal)?;
    }
    dup2_stdin(wanted[0]).at(|| "connect standard input")?;
    dup2_stdout(wanted[1]).at(|| "connect standard output")?;
    dup2_stderr(wanted[2]).at(|| "connect standard error")?;
    Ok(())
}

/// The container's `/dev/null` if it is one.
fn null_device(fallback: BorrowedFd<'_>) -> Result<OwnedFd, OsError> {
    let path = open("/dev/null", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    if path.as_ref().is_ok_and(|path| is_device(path, 1, 3).unwrap_or(false)) {
        // Nothing but a device filter refuses it now.
        if let Ok(null) = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()) {
            return Ok(null);
        }
    }
    fallback.try_clone_to_owned().at(|| "copy a descriptor")
}

fn strings(
    process: &ProcessPlan,
    identity: &Identity,
) -> Result<(Vec<CString>, Vec<CString>), AgentError> {
    // An entry without a value defines nothing, least of all the agent's own.
    let mut env: Vec<_> = process.env.iter().filter(|entry| entry.contains('=')).cloned().collect();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| entry != "HOME=");
        env.push(format!("HOME={}", identity.home));
    }
    let convert = |texts: &[String]| {
        texts.iter().map(sys::c_string).collect::<Result<Vec<_>, _>>().at(|| "pass arguments")
    };
    Ok((convert(&process.args)?, convert(&env)?))
}

/// Enters the working directory with root's rights, as Docker does; false if only the
/// user itself may be able to.
fn enter_as_root(cwd: &str) -> Result<bool, AgentError> {
    match std::env::set_current_dir(cwd) {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => Ok(false),
        other => entered(cwd, other).map(|()| true),
    }
}

fn enter(cwd: &str) -> Result<(), AgentError> {
    entered(cwd, std::env::set_current_dir(cwd))
}

fn entered(cwd: &str, result: std::io::Result<()>) -> Result<(), AgentError> {
    // A directory outside the root would show as unreachable.
    let result = result.and_then(|()| match std::env::current_dir()?.starts_with(Path::new("/")) {
        true => Ok(()),
        false => Err(std::io::Error::from_raw_os_error(libc::ENOENT)),
    });
    result.map_err(|error| {
        let kind = match error.raw_os_error() {
            Some(libc::EACCES | libc::ENOTDIR) => ErrorKind::CommandNotExecutable,
            Some(libc::ENOENT) => ErrorKind::CommandNotFound,
            _ => ErrorKind::InvalidArgument,
        };
        wire(kind, format!("chdir to cwd ({cwd:?}) failed: {}", os_message(&error)))
    })
}
