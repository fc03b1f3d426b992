//! What the `caisson` on the host and the machine's init say to each other.
//!
//! ```text
//!   caisson (host)                       machine
//!    │ ──── Hello { argv, env, … } ────►  │   repeated until it is answered
//!    │ ◄─── Accepted | Refused ─────────  │
//!    │ ──── Go ────────────────────────►  │   only now the command is started
//!    │ ──── Stdin, StdinEnd, Signal, … ►  │
//!    │ ◄─── Output, StdinClosed ────────  │
//!    │ ◄──► Credit                        │
//!    │ ◄─── Exit ───────────────────────  │   after the last output
//! ```
//!
//! The channel is a virtio-serial port: a stream of bytes that outlives its users. A host
//! process may be killed within a frame, and the next one finds what its predecessor left.
//! So a frame ends by a byte that occurs nowhere else ([`wire`]), every frame carries the
//! number of its session, and a command runs only after `Go`: a `Hello` that lay in a
//! buffer while its sender gave up starts nothing.
//!
//! A stream's sender sends no more than its credit, which starts at [`WINDOW_BYTES`] and
//! grows by what the receiver has passed on. A reader that stands still therefore holds up
//! its own stream and nothing else.

mod boot;
mod frame;
#[cfg(test)]
mod tests;
mod text;
pub mod wire;

pub use boot::{BootArgumentError, BootArguments};
pub use frame::{Frame, FrameError, MAX_DATA_BYTES, MAX_PAYLOAD_BYTES, Stream};
pub use text::Text;
pub use wire::{Decoder, encode};

use serde::{Deserialize, Serialize};

/// Version of these messages, stated in [`Hello`] and [`Ready`].
pub const VERSION: u32 = 1;

/// The virtio-serial port for [`Frame::Query`] and [`Frame::Shutdown`].
pub const CONTROL_PORT: u32 = 1;

/// The ports of which each carries one session at a time. The device has 31 ports, of
/// which number 0 is reserved (virtio 1.2 §5.3).
pub const SESSION_PORTS: std::ops::RangeInclusive<u32> = 2..=30;

/// The credit of each stream at the start, in bytes.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// A command to run in the machine, and the surroundings that it shall find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the sender.
    pub version: u32,
    /// The program and its arguments; a program without a slash is looked up in `PATH`.
    pub argv: Vec<Text>,
    /// The whole environment, `NAME=value` each.
    pub env: Vec<Text>,
    /// Absolute; shared writable with the host.
    pub cwd: Text,
    /// Further directories and files of the host to share writable; absolute, without links.
    #[serde(default)]
    pub shared: Vec<Text>,
    pub umask: u32,
    /// The terminal to make, if any of the three standard streams is one.
    pub terminal: Option<Terminal>,
    /// CLOCK_REALTIME of the host in nanoseconds.
    pub time_ns: u64,
}

/// Which of the standard streams are the terminal; the others are pipes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub columns: u16,
    pub rows: u16,
}

/// The machine's answer on the control port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// [`VERSION`] of the machine.
    pub version: u32,
    /// `uname -r` in the machine.
    pub kernel: String,
    /// Whether `/dev/kvm` is there.
    pub kvm: bool,
    /// Sessions that run now.
    pub sessions: u32,
    /// Time since the machine's kernel started, in milliseconds.
    pub uptime_ms: u64,
    /// Memory in KiB: all, and what is left for use.
    pub memory_kib: u64,
    pub memory_available_kib: u64,
}
