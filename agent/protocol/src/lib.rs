//! What the shim and the in-guest agent say to each other.
//!
//! ```text
//!   shim                               agent
//!    │ ◄─── connects, control port ────  │   once, as soon as it can serve
//!    │ ◄─── Event::Ready ──────────────  │
//!    │ ──── Request { id, call } ─────►  │
//!    │ ◄─── Reply { id, result } ──────  │   one per request, in any order
//!    │ ◄─── Event::ProcessExited ──────  │   at any time
//!    │ ──── stream port (stdin) ──────►  │   raw bytes, one connection a stream
//!    │ ◄─── stream port (stdout) ──────  │
//! ```
//!
//! Messages are data: this crate has no I/O but reading and writing one frame. Neither
//! side believes the other further than a length-checked, typed value.

pub mod event;
pub mod frame;
pub mod machine;
pub mod message;
pub mod network;
pub mod plan;
pub mod tool;

pub use event::{Event, ExitStatus, Ready};
pub use frame::{FrameError, MAX_FRAME_BYTES, read_frame, write_frame};
pub use message::{AgentError, Call, ErrorKind, FromAgent, Outcome, Request, Stats};
pub use plan::ContainerPlan;
pub use tool::Tool;

/// Version of the messages; the agent states it in [`Ready`], and a shim refuses another.
pub const PROTOCOL_VERSION: u32 = 2;

/// The vsock port on the host (CID 2) that the agent connects to for control.
pub const CONTROL_PORT: u32 = 1024;

/// The first vsock port in the guest that the shim may choose for a process's stream.
pub const FIRST_STREAM_PORT: u32 = 0x1_0000;

/// The tag of the virtio-fs device that serves the host's directories.
pub const SHARES_TAG: &str = "shares";

/// The x86 I/O port to which the guest writes one byte to stamp a stage of its boot
/// ([`BootStage`]). The vmm notes the time of the first write of each stage.
pub const BOOT_STAMP_PORT: u16 = 0x520;

/// A stage of the guest's boot, as written to [`BOOT_STAMP_PORT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BootStage {
    /// The agent's `main` was entered (the kernel has started PID 1).
    AgentStarted = 1,
    /// The agent has connected its control channel.
    AgentReady = 2,
    /// The container's process is about to be executed.
    ProcessExec = 3,
}

impl BootStage {
    /// The stage with this number, if there is one.
    pub fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::AgentStarted),
            2 => Some(Self::AgentReady),
            3 => Some(Self::ProcessExec),
            _ => None,
        }
    }
}
