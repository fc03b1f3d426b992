//! Calls to the agent and their replies.

use serde::{Deserialize, Serialize};

use crate::{
    event::Event,
    plan::{ContainerPlan, ProcessPlan, Resources, StdioPorts},
    tool::Tool,
};

/// A call, with a number that its reply repeats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    pub id: u64,
    pub call: Call,
}

/// What the shim may ask. A process is named by its container and, for an exec, the
/// exec's id; `exec: None` is the container's first process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// Mounts the root filesystem and prepares everything up to the execution of the
    /// process; listens on the stream ports before it replies with [`Outcome::Created`].
    CreateContainer(Box<ContainerPlan>),
    /// Prepares a further process in a running container, as `CreateContainer` does.
    CreateExec {
        container: String,
        exec: String,
        process: Box<ProcessPlan>,
        stdio: StdioPorts,
    },
    /// Prepares a [`Tool`] as `CreateExec` does a process, in a container that is prepared
    /// or runs.
    CreateTool {
        container: String,
        exec: String,
        tool: Box<Tool>,
        stdio: StdioPorts,
    },
    /// Executes a prepared process. Replies when `execve` has succeeded, or with why not.
    Start {
        container: String,
        exec: Option<String>,
    },
    /// Sends `signal` (a Linux signal number) to the process, or with `all` to every
    /// process of the container.
    Signal {
        container: String,
        exec: Option<String>,
        signal: i32,
        all: bool,
    },
    /// Sets the size of the process's terminal.
    Resize {
        container: String,
        exec: Option<String>,
        columns: u16,
        rows: u16,
    },
    /// Closes the process's standard input once what has arrived is delivered.
    CloseStdin {
        container: String,
        exec: Option<String>,
    },
    /// The guest's pids of the container's processes, as its cgroup lists them.
    Pids {
        container: String,
    },
    Stats {
        container: String,
    },
    Update {
        container: String,
        resources: Resources,
    },
    Pause {
        container: String,
    },
    Resume {
        container: String,
    },
    /// Forgets a process that has exited or never started, and with it, for `exec: None`,
    /// the whole container: mounts, cgroup and remaining processes.
    Delete {
        container: String,
        exec: Option<String>,
    },
    /// Unmounts and flushes every filesystem, replies, and ends the VM.
    Shutdown,
}

/// What the agent sends on the control channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromAgent {
    Reply { id: u64, result: Result<Outcome, AgentError> },
    Event(Event),
}

/// The value of a call that succeeded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Done,
    /// The process is prepared; `pid` is its number in the guest.
    Created {
        pid: u32,
    },
    Started {
        pid: u32,
    },
    Pids(Vec<u32>),
    Stats(Box<Stats>),
}

/// A call that failed: what kind, for the caller to act on, and words for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct AgentError {
    pub kind: ErrorKind,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// No such container or process.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The call does not fit the state, such as a second start.
    FailedPrecondition,
    /// The plan asks for something that cannot be.
    InvalidArgument,
    /// The executable does not exist in the container (exit code 127).
    CommandNotFound,
    /// The executable exists but cannot be executed (exit code 126).
    CommandNotExecutable,
    /// No space or inodes left on the writable disk.
    NoSpace,
    /// Anything else.
    Internal,
}

/// What a container uses, from its cgroup (v2). Zero where the controller says nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub cpu_usage_usec: u64,
    pub cpu_user_usec: u64,
    pub cpu_system_usec: u64,
    pub cpu_periods: u64,
    pub cpu_throttled_periods: u64,
    pub cpu_throttled_usec: u64,
    pub memory_bytes: u64,
    /// `memory.max`; `None` without a limit.
    pub memory_limit_bytes: Option<u64>,
    pub memory_peak_bytes: u64,
    pub memory_anon_bytes: u64,
    pub memory_file_bytes: u64,
    pub memory_inactive_file_bytes: u64,
    pub memory_kernel_stack_bytes: u64,
    pub memory_slab_bytes: u64,
    pub memory_page_faults: u64,
    pub memory_major_page_faults: u64,
    pub oom_kills: u64,
    pub pids: u64,
    pub pids_limit: Option<u64>,
    pub io_read_bytes: u64,
    pub io_written_bytes: u64,
    pub io_reads: u64,
    pub io_writes: u64,
}
