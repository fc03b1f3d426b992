//! Work on a container's files and processes ([`Tool`]) in a forked child of the agent.
//!
//! ```text
//!   fork ─► isolate ─► open what is worked on ─► Ready ─► wait for the start ─► work ─► exit
//! ```
//!
//! The child is in the agent's pid namespace, so the container does not see it, and has what
//! the agent has: its paths are resolved inside the container's root, whatever links there
//! say, and it executes nothing.

mod files;
mod processes;

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use caisson_agent_protocol::{AgentError, ErrorKind, Tool};
use caisson_archive::{
    compare::CompareError, pack::PackError, placing::PlacingError, unpack::UnpackError,
};
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};

use self::files::Warnings;
use crate::{
    child,
    error::{At, OsError, chain, wire},
    path::Root,
    report::{self, Report},
    rootfs,
    runtime::Container,
    stdio::ProcessEnds,
    sys,
};

/// What the child is to do.
pub struct Task<'a> {
    pub tool: &'a Tool,
    pub container: &'a Container,
    /// A pidfd of the container's first process.
    pub init: BorrowedFd<'a>,
    /// That process runs, rather than waits for its start.
    pub is_started: bool,
    pub ends: &'a ProcessEnds,
    pub report: BorrowedFd<'a>,
}

/// Why a tool failed, for whoever reads its standard error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// Shown as `docker cp` shows it, with the container's name in place of `container`.
    #[error("Could not find the file {path} in container")]
    NotFound { path: String },
    #[error("destination \"{path}\" must be a directory")]
    NotADirectory { path: String },
    #[error("{path} goes through more than {} symbolic links", files::MAX_LINKS)]
    TooManyLinks { path: String },
    #[error("container rootfs is marked read-only")]
    ReadOnly,
    #[error(
        "{path} is in memory, which a container has only while it runs; start the container first"
    )]
    InMemory { path: String },
    #[error(transparent)]
    Placing(#[from] PlacingError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Os(#[from] OsError),
}

/// The child's whole life.
pub fn run(task: &Task<'_>) -> ! {
    let prepared = prepare(task);
    let code = match prepared {
        Ok((subject, input, output)) => finish(task, work(task, &subject, input, output)),
        Err(error) => {
            // Without it the agent sees the socket close and reports that instead.
            let _ = report::send(task.report, &Report::Failed(error), None);
            1
        }
    };
    // SAFETY: ends this process alone, without running the agent's destructors.
    unsafe { libc::_exit(code) }
}

/// What is worked on, open.
enum Subject {
    Processes(processes::Sources),
    /// The root filesystem and nothing that is mounted in it.
    Tree(OwnedFd),
    Trees {
        image: OwnedFd,
        container: OwnedFd,
    },
    /// The container's root as its processes see it.
    Root(Root),
}

/// Everything up to the start, and the start.
fn prepare(task: &Task<'_>) -> Result<(Subject, File, File), AgentError> {
    child::isolate(task.ends, task.report, vec![task.init.as_raw_fd()])?;
    // Nothing that is mounted here is to appear elsewhere.
    sys::mount("", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")
        .at(|| "keep mounts to this process")?;
    let subject = open_subject(task)?;
    let stream = |index: usize| -> Result<File, OsError> {
        let end = match &task.ends.fds[index] {
            Some(end) => end.try_clone(),
            None => open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                .map_err(io::Error::from),
        };
        Ok(end.at(|| "open a stream")?.into())
    };
    let (input, output) = (stream(0)?, stream(1)?);
    report::send(task.report, &Report::Ready, None).at(|| "report to the agent")?;
    if !report::wait_for_start(task.report).at(|| "wait for the start")? {
        return Err(wire(ErrorKind::Internal, "the agent is gone"));
    }
    // To the agent this is what a successful execve looks like.
    // SAFETY: the descriptor is not used any more; its owner never drops it in this process.
    unsafe { libc::close(task.report.as_raw_fd()) };
    Ok((subject, input, output))
}

fn open_subject(task: &Task<'_>) -> Result<Subject, AgentError> {
    Ok(match task.tool {
        Tool::Top => {
            let pids = task.container.cgroup.pids()?;
            let sources = processes::Sources::open(pids)?;
            join(task.init)?;
            Subject::Processes(sources)
        }
        Tool::Export => Subject::Tree(bare_root(&join(task.init)?)?),
        Tool::Diff => {
            let image = rootfs::assemble_image(&task.container.roots)?;
            Subject::Trees { image, container: bare_root(&join(task.init)?)? }
        }
        Tool::Read { .. } | Tool::Write { .. } => Subject::Root(Root::new(join(task.init)?)),
    })
}

/// Joins the container's mount namespace; its root.
fn join(init: BorrowedFd<'_>) -> Result<OwnedFd, OsError> {
    sys::setns(init, libc::CLONE_NEWNS).at(|| "join the container's mount namespace")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open("/", flags, Mode::empty()).at(|| "open the container's root")
}

/// The filesystem that `root` is, without what is mounted in it.
fn bare_root(root: &OwnedFd) -> Result<OwnedFd, OsError> {
    sys::clone_tree(root.as_fd(), false).at(|| "look at the container's root filesystem")
}

fn work(
    task: &Task<'_>,
    subject: &Subject,
    input: File,
    output: File,
) -> Result<Warnings, ToolError> {
    match (task.tool, subject) {
        (Tool::Top, Subject::Processes(sources)) => sources.list(BufWriter::new(output)),
        (Tool::Export, Subject::Tree(tree)) => files::export(tree, output),
        (Tool::Diff, Subject::Trees { image, container }) => {
            files::diff(image, container, &task.container.mount_points, output)
        }
        (Tool::Read { path, follow }, Subject::Root(root)) => {
            files::read(root, path, *follow, output)
        }
        (Tool::Write { path, source }, Subject::Root(root)) => {
            files::write(root, path, *source, task.is_started, input)
        }
        _ => unreachable!("open_subject opens what the tool works on"),
    }
}

/// Tells what there is to say; the exit code.
fn finish(task: &Task<'_>, result: Result<Warnings, ToolError>) -> i32 {
    let (lines, code) = match result {
        Ok(warnings) => (warnings, 0),
        Err(error) => (vec![chain(&error)], 1),
    };
    if let Some(stderr) = &task.ends.fds[2]
        && let Ok(stderr) = stderr.try_clone()
    {
        // Nobody may be listening.
        let _ = File::from(stderr).write_all((lines.join("\n") + "\n").as_bytes());
    }
    code
}
