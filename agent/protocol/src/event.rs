//! What the agent reports unasked.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first message on the control channel.
    Ready(Ready),
    /// A started process has ended; sent once for each, after its last output was
    /// handed to its streams.
    ProcessExited {
        container: String,
        exec: Option<String>,
        status: ExitStatus,
        /// The kernel's OOM killer ended a process of this container since it started.
        oom_killed: bool,
    },
    /// The OOM killer has struck in the container.
    OutOfMemory { container: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`crate::PROTOCOL_VERSION`] of the agent.
    pub protocol: u32,
    /// The agent's version, for messages.
    pub agent: String,
    /// `uname -r` of the guest.
    pub kernel: String,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Exited(u8),
    /// Ended by this signal (1..=64).
    Signaled(u8),
}

impl ExitStatus {
    /// The code a shell would report: the exit code, or 128 + the signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128_u8.saturating_add(signal),
        }
    }
}
