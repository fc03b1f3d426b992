//! How a container ends, and what is told about it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use caisson_agent_protocol::Call;
use caisson_failpoints::{pass, steps};
use containerd_shim::protos::events::task::{TaskExit, TaskOOM};
use tokio::{sync::oneshot, time::timeout};

use super::{Container, LOST_GRACE};
use crate::{
    agent_client::{AgentExit, CallError},
    error::Error,
    events,
    exit::Exit,
    kind::ErrorKind,
    process::{self, Phase, Process},
    stages,
};

/// How long the agent may flush and unmount.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How long execs may tell their exits after the container's own process has ended.
const EXEC_GRACE: Duration = Duration::from_millis(500);

/// Between two OOM notices.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

impl Container {
    /// The container whose process cannot be executed has ended, with the code that a shell
    /// gives; its VM is of no more use.
    pub(super) fn end_unstartable(self: &Arc<Self>, process: &Process, error: &Error) {
        let code = match error.kind() {
            ErrorKind::CommandNotFound => 127,
            ErrorKind::CommandNotExecutable => 126,
            // The loss of the VM is told by who watches it.
            ErrorKind::SandboxLost => return,
            _ => 128,
        };
        self.finish(process, None, Exit::now(code));
        let container = self.clone();
        tokio::spawn(async move { container.shut_down().await });
    }

    pub(super) async fn await_exit(
        self: Arc<Self>,
        process: Arc<Process>,
        exec: Option<String>,
        told: oneshot::Receiver<AgentExit>,
    ) {
        let exit = process::exit_of(told, self.sandbox.as_ref()).await;
        process.drain_before_exit().await;
        if exec.is_some() {
            self.finish(&process, exec.as_deref(), exit);
            return;
        }
        stages::stamp("shim", "exited");
        self.settle_execs().await;
        self.finish(&process, None, exit);
        // The exit is told; a slow reader still gets the rest before the VM goes.
        process.drain_before_delete().await;
        self.shut_down().await;
    }

    /// A VM may end before its container's process was started.
    pub(super) async fn watch_sandbox(self: Arc<Self>) {
        tokio::select! {
            _ = self.sandbox.ended() => {}
            reason = self.sandbox.agent().lost() => {
                // A VM that ends by itself has a better reason to give.
                if timeout(LOST_GRACE, self.sandbox.ended()).await.is_err() {
                    self.sandbox.kill(&format!("the agent cannot be reached: {reason}"));
                }
            }
        }
        let exit = process::lost(self.sandbox.as_ref()).await;
        // What it said last may still be on the way through the reader.
        tokio::time::sleep(process::LAST_WORD_GRACE).await;
        self.sandbox.agent().abandon("its VM has ended");
        let _changing = self.init.changing.lock().await;
        if self.init.phase() == Phase::Created {
            self.finish(&self.init, None, exit);
        }
    }

    /// The end of the container's process ends every exec; those say so first.
    async fn settle_execs(&self) {
        let running: Vec<_> = self
            .execs()
            .values()
            .flatten()
            .filter(|exec| matches!(exec.phase(), Phase::Running { .. }))
            .cloned()
            .collect();
        let _ = timeout(EXEC_GRACE, async {
            for exec in running {
                exec.wait().await;
            }
        })
        .await;
    }

    pub(super) fn finish(&self, process: &Process, exec: Option<&str>, exit: Exit) {
        if !process.claim_exit() {
            return;
        }
        pass(&steps::SHIM_EXIT_TOLD);
        if exec.is_none()
            && let Err(error) = exit.save(&self.bundle)
        {
            log::warn!("write the exit record of {}: {error}", self.id);
        }
        pass(&steps::SHIM_EXIT_RECORDED);
        if let Some(reason) = &exit.reason {
            log::error!("{}: {reason}", exec.unwrap_or(&self.id));
        }
        if exit.oom_killed {
            self.tell_oom();
        }
        self.events.publish(TaskExit {
            container_id: self.id.clone(),
            id: exec.unwrap_or(&self.id).to_owned(),
            pid: self.pid(),
            exit_status: exit.code.into(),
            exited_at: events::exited_at(&exit),
            ..Default::default()
        });
        process.set_stopped(exit);
    }

    /// Flushes the disks and ends the VM: nothing runs in it any more.
    pub(super) async fn shut_down(&self) {
        let flushed = timeout(SHUTDOWN_GRACE, async {
            let shutdown = self.sandbox.agent().call_done(Call::Shutdown).await;
            // An agent that is gone has nothing to flush.
            if !matches!(shutdown, Ok(()) | Err(CallError::Lost { .. })) {
                return shutdown;
            }
            self.sandbox.ended().await;
            Ok(())
        });
        match flushed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("shut down the VM of {}: {error}", self.id),
            Err(_) => log::warn!("the VM of {} did not shut down in time", self.id),
        }
        self.sandbox.kill("its container has ended");
        self.sandbox.ended().await;
        stages::stamp("shim", "vm_gone");
    }

    pub(super) async fn report_ooms(self: Arc<Self>) {
        let mut ooms = self.sandbox.agent().watch_oom(&self.id);
        // Ends when the channel to the agent is lost.
        while ooms.changed().await.is_ok() {
            self.oom_told.store(false, Ordering::Relaxed);
            self.tell_oom();
            tokio::time::sleep(OOM_INTERVAL).await;
        }
    }

    fn tell_oom(&self) {
        if !self.oom_told.swap(true, Ordering::Relaxed) {
            self.events.publish(TaskOOM { container_id: self.id.clone(), ..Default::default() });
        }
    }
}
