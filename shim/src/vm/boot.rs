//! Waiting for a VM to come up, and saying how far it came if it does not.

use std::{fs, sync::Arc, time::Duration};

use tokio::{net::UnixStream, time::timeout};

use super::supervise::{Watched, with_tails};
use crate::{
    agent_client::{AgentClient, Deadlines, ReadyError},
    kind::ErrorKind,
    sandbox::{Cancelled, LaunchError},
};

/// The environment variable with another deadline, in seconds.
const TIMEOUT_VARIABLE: &str = "CAISSON_BOOT_TIMEOUT";

/// A boot takes a tenth of a second on hardware.
const TIMEOUT: Duration = Duration::from_secs(10);
/// And some seconds where QEMU emulates every instruction.
const EMULATED_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a vmm may take to say how far its guest came.
const REPORT_GRACE: Duration = Duration::from_secs(1);

/// The stages of a boot, in the order in which they are reached.
const STAGES: [(&str, &str); 6] = [
    ("main", "the vmm has started"),
    ("jailed", "the vmm is confined"),
    ("loaded", "the kernel is loaded"),
    ("first_run", "the guest runs"),
    ("agent_started", "the guest's kernel has started the agent"),
    ("agent_ready", "the agent has connected"),
];

/// The agent, once it serves. The caller ends the VM after an error.
pub(super) async fn await_agent(
    channel: UnixStream,
    vm: &Arc<Watched>,
    mut cancelled: Cancelled,
) -> Result<AgentClient, LaunchError> {
    let deadline = deadline();
    let problem = tokio::select! {
        accepted = timeout(deadline, AgentClient::accept(channel, Deadlines::default())) => {
            match accepted {
                Ok(Ok((agent, ready))) => {
                    log::debug!("agent ready: {ready:?}");
                    return Ok(agent);
                }
                // The VM's end comes with a better reason.
                Ok(Err(ReadyError::Closed)) => {
                    match timeout(REPORT_GRACE, vm.ended()).await {
                        Ok(end) => Problem::Ended(end.reason),
                        Err(_) => Problem::Agent(ReadyError::Closed),
                    }
                }
                Ok(Err(error)) => Problem::Agent(error),
                Err(_) => Problem::Deadline(deadline),
            }
        }
        end = vm.ended() => Problem::Ended(end.reason),
        () = cancelled.cancelled() => {
            return Err(LaunchError {
                kind: ErrorKind::Cancelled,
                message: "the boot was cancelled".to_owned(),
                source: None,
            });
        }
    };
    Err(problem.into_error(vm).await)
}

enum Problem {
    Ended(String),
    Agent(ReadyError),
    Deadline(Duration),
}

impl Problem {
    async fn into_error(self, vm: &Watched) -> LaunchError {
        let stage = stage(vm).await;
        let (message, source): (_, Option<Box<dyn std::error::Error + Send + Sync>>) = match self {
            Self::Ended(reason) => {
                (format!("the VM ended while it booted ({stage}): {reason}"), None)
            }
            Self::Agent(error) => {
                let text = format!("the VM's agent does not serve ({stage}): {error}");
                (with_tails(text, vm), None)
            }
            Self::Deadline(deadline) => {
                let seconds = deadline.as_secs();
                let text = format!(
                    "the VM did not boot within {seconds} s ({stage}); ${TIMEOUT_VARIABLE} gives it more"
                );
                (with_tails(text, vm), None)
            }
        };
        LaunchError { kind: ErrorKind::BootFailed, message, source }
    }
}

/// The last stage reached, in words.
async fn stage(vm: &Watched) -> String {
    let Some(report) = vm.report(REPORT_GRACE).await else {
        return "the vmm does not say how far it came".to_owned();
    };
    let reached = STAGES.iter().rev().find(|(name, _)| report.stages_usec.contains_key(*name));
    match reached {
        Some((name, words)) => format!("stage reached: {name}, {words}"),
        None => "no stage was reached".to_owned(),
    }
}

fn deadline() -> Duration {
    let configured = std::env::var(TIMEOUT_VARIABLE).ok().and_then(|text| text.parse().ok());
    match configured {
        Some(seconds) => Duration::from_secs(seconds),
        None if is_emulated() => EMULATED_TIMEOUT,
        None => TIMEOUT,
    }
}

/// Whether this host is itself an emulation (the machine).
fn is_emulated() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| cpus.contains("QEMU TCG"))
}
