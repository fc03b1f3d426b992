//! One process of a container, from prepared to ended.
//!
//! ```text
//!   Created ──start──► Running ──exit, output drained──► Stopped
//!      └──────────────────kill──────────────────────────────┘
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use caisson_agent_protocol::plan::StdioPorts;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use crate::{
    agent_client::AgentExit,
    error::Error,
    exit::Exit,
    sandbox::Sandbox,
    stdio::{OpenStdio, Relays, StdioError, StdioSpec, Streams},
};

/// How long an exit waits for output that another process of the container holds up.
const IDLE_GRACE: Duration = Duration::from_millis(500);
/// How long an exit waits for a reader that takes nothing.
const STALLED_GRACE: Duration = Duration::from_secs(2);
/// How long a delete gives the rest of the output to such a reader.
const DELETE_GRACE: Duration = Duration::from_secs(10);

/// How long an exit may take from a VM that has ended to here.
pub const LAST_WORD_GRACE: Duration = Duration::from_millis(100);

/// The exit code of what a lost VM held, that of SIGKILL.
pub const LOST_CODE: u8 = 137;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    Created,
    Running { paused: bool },
    Stopped(Exit),
}

/// A process that the agent has prepared.
pub struct Process {
    pub stdio: StdioSpec,
    phase: watch::Sender<Phase>,
    relays: Relays,
    exit_claimed: AtomicBool,
    /// One change of the phase at a time.
    pub changing: tokio::sync::Mutex<()>,
}

impl Process {
    /// Connects the streams of a process that was prepared with these ports.
    pub async fn connect(
        stdio: StdioSpec,
        open: OpenStdio,
        ports: StdioPorts,
        sandbox: &dyn Sandbox,
    ) -> Result<Arc<Self>, Error> {
        let streams = Streams {
            stdin: connect("stdin", ports.stdin, sandbox).await?,
            stdout: connect("stdout", ports.stdout, sandbox).await?,
            stderr: connect("stderr", ports.stderr, sandbox).await?,
        };
        Ok(Arc::new(Self {
            stdio,
            phase: watch::Sender::new(Phase::Created),
            relays: Relays::start(open, streams),
            exit_claimed: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
        }))
    }

    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    pub fn set_running(&self, paused: bool) {
        self.phase.send_if_modified(|phase| {
            // An exit is never taken back.
            let change = !matches!(phase, Phase::Stopped(_));
            if change {
                *phase = Phase::Running { paused };
            }
            change
        });
    }

    /// True once: for the one who then tells the exit.
    pub fn claim_exit(&self) -> bool {
        !self.exit_claimed.swap(true, Ordering::AcqRel)
    }

    pub fn set_stopped(&self, exit: Exit) {
        self.phase.send_replace(Phase::Stopped(exit));
    }

    /// Waits for the exit.
    pub async fn wait(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        let stopped = phase.wait_for(|phase| matches!(phase, Phase::Stopped(_))).await;
        match stopped.as_deref() {
            Ok(Phase::Stopped(exit)) => exit.clone(),
            // The sender lives in `self`.
            _ => unreachable!("a phase waits for its end while its process exists"),
        }
    }

    pub fn close_stdin(&self) {
        self.relays.close_stdin();
    }

    /// Lets the output that precedes an exit go first.
    pub async fn drain_before_exit(&self) {
        if !self.relays.drained(IDLE_GRACE, STALLED_GRACE).await {
            log::info!("a process has ended and its output has not; reporting its exit");
        }
    }

    /// Gives a slow reader the rest of the output, for a while.
    pub async fn drain_before_delete(&self) {
        if !self.relays.drained(Duration::ZERO, DELETE_GRACE).await {
            log::warn!("output that nobody took is dropped");
        }
    }
}

async fn connect(
    stream: &'static str,
    port: Option<u32>,
    sandbox: &dyn Sandbox,
) -> Result<Option<tokio::net::UnixStream>, StdioError> {
    let Some(port) = port else { return Ok(None) };
    let connected = sandbox.connect(port).await;
    connected.map(Some).map_err(|source| StdioError::Connect { stream, port, source })
}

/// The exit that the agent has told, or the loss of the VM that kept it from telling.
pub async fn exit_of(mut told: oneshot::Receiver<AgentExit>, sandbox: &dyn Sandbox) -> Exit {
    let heard = tokio::select! {
        biased;
        told = &mut told => told.ok(),
        // Its last message may still be on the way through the reader.
        _ = sandbox.ended() => timeout(LAST_WORD_GRACE, told).await.ok().and_then(Result::ok),
    };
    match heard {
        Some(told) => Exit { oom_killed: told.oom_killed, ..Exit::now(told.status.code()) },
        None => lost(sandbox).await,
    }
}

/// How a process of a VM that has ended, ended.
pub async fn lost(sandbox: &dyn Sandbox) -> Exit {
    let end = sandbox.ended().await;
    Exit { reason: Some(end.reason), oom_killed: end.oom_killed, ..Exit::now(LOST_CODE) }
}
