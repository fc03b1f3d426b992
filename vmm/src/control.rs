//! Messages on the vmm's control socket: one JSON object a line, in both directions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the parent may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum ControlRequest {
    /// Stops all vCPUs; answered by [`ControlEvent::Paused`].
    Pause,
    Resume,
    /// Answered by [`ControlEvent::Report`].
    Report,
    /// Ends the VM at once; the process exits with code 0.
    Stop,
}

/// What of its jail depends on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailReport {
    /// Why the vmm has no user namespace, where the host allows none.
    #[serde(default)]
    pub no_user_namespace: Option<String>,
    /// The kernel's Landlock ABI; 0 where it has none.
    #[serde(default)]
    pub landlock_abi: u32,
}

/// What the vmm says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum ControlEvent {
    /// The process has confined itself; before anything else, if the config asks for it.
    Jailed(JailReport),
    /// The VM is built and its vCPUs are entered.
    Running,
    Paused,
    Resumed,
    Report(Report),
    /// The last line before the process exits.
    Ended {
        reason: EndReason,
        report: Report,
    },
}

/// Why a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The guest asked for a reset (i8042, or a triple fault).
    Reset,
    TripleFault,
    /// All vCPUs halted for good.
    Halted,
    /// The parent asked, or closed the control socket.
    Stopped,
    /// A vCPU or a thread failed.
    Failed {
        message: String,
    },
}

/// Times and counts since the process began.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Microseconds of CLOCK_MONOTONIC at each stage: `main`, `jailed`, `loaded`,
    /// `first_run`, and the guest's stamps `agent_started`, `agent_ready`,
    /// `process_exec` as far as reached.
    pub stages_usec: BTreeMap<String, u64>,
    /// VM exits by reason: those that the vmm handled (`io_out`, `mmio_write`, …), and,
    /// with `kvm_` before their names, what KVM counts of its own (`kvm_exits` is all of
    /// them).
    pub exits: BTreeMap<String, u64>,
    /// Of each network device, in the config's order.
    #[serde(default)]
    pub net: Vec<NetReport>,
    /// CPU time of the process, in microseconds.
    pub cpu_usec: u64,
}

/// What went through a network device, seen from the guest. Bytes are those of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    pub received_frames: u64,
    pub received_bytes: u64,
    /// The driver had no buffers that hold the frame, or had not negotiated its kind.
    pub receive_dropped: u64,
    pub sent_frames: u64,
    pub sent_bytes: u64,
    /// A header or a length that is wrong.
    pub send_malformed: u64,
    /// From an address that is not the guest's.
    pub send_spoofed: u64,
    /// The host did not take it.
    pub send_dropped: u64,
}
