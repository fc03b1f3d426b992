//! One process as the agent knows it, from fork to report.
//!
//! ```text
//!   Preparing ──Ready──► Created ──Start──► Starting ──execve──► Running
//!       │                   │                  │                    │
//!     Failed              killed             Failed               reaped
//!       ▼                   ▼                  ▼                    ▼
//!    Failing ──reaped──► Exited ◄───────── Failing              Draining ──outputs end──► Exited
//! ```

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use caisson_agent_protocol::{AgentError, ExitStatus};

use crate::stdio::Stdio;

/// How long an exit waits for output that does not come, or that nobody takes.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Process {
    pub container: String,
    /// `None` for the container's first process.
    pub exec: Option<String>,
    /// The agent's own work: nothing else holds its outputs.
    pub is_tool: bool,
    /// In the agent's pid namespace; for signals only while [`Self::is_alive`].
    pub pid: i32,
    /// For joining its namespaces.
    pub pidfd: OwnedFd,
    /// To the child until it has executed its program.
    pub report: Option<OwnedFd>,
    pub stdio: Stdio,
    pub state: State,
    /// OOM kills in the container when the process started.
    pub oom_kills_before: u64,
}

#[derive(Debug)]
pub enum State {
    /// The call `request` waits for the child to be ready.
    Preparing {
        request: u64,
    },
    Created,
    /// The call `request` waits for `execve`.
    Starting {
        request: u64,
    },
    /// The call `request` gets `error` when the child is reaped, so that nothing is left
    /// of it by then.
    Failing {
        request: u64,
        error: AgentError,
        forget: bool,
    },
    /// Killed before it ever ran, as the call `request` asked.
    Forgetting {
        request: u64,
    },
    Running,
    /// Reaped; the last output is on its way.
    Draining {
        status: ExitStatus,
        deadline: Instant,
    },
    Exited {
        status: ExitStatus,
    },
}

impl Process {
    /// Whether its pid is still its own: not yet reaped.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, State::Draining { .. } | State::Exited { .. })
    }

    /// Whether it may be joined, paused, asked.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running)
    }

    pub fn name(&self) -> String {
        match &self.exec {
            None => format!("container {:?}", self.container),
            Some(exec) => format!("exec {exec:?} of container {:?}", self.container),
        }
    }

    /// What the state is called in messages.
    pub fn describe(&self) -> &'static str {
        match self.state {
            State::Preparing { .. } => "still being created",
            State::Created => "created and not started",
            State::Starting { .. } => "being started",
            State::Failing { .. } | State::Forgetting { .. } => "being removed",
            State::Running => "running",
            State::Draining { .. } | State::Exited { .. } => "not running any more",
        }
    }
}
