//! What can be asked of a container that runs.

use caisson_agent_protocol::{Call, Outcome, Stats, plan::Resources};
use containerd_shim::protos::events::task::{TaskPaused, TaskResumed};

use super::Container;
use crate::{agent_client::CallError, error::Error, plan, process::Phase};

impl Container {
    pub async fn resize(&self, exec: Option<&str>, columns: u32, rows: u32) -> Result<(), Error> {
        let process = self.process(exec)?;
        let size = u16::try_from(columns).ok().zip(u16::try_from(rows).ok());
        let (columns, rows) =
            size.ok_or(Error::InvalidArgument("a terminal has at most 65535 columns and rows"))?;
        // As with runc, there is nothing to do without a terminal, or after the end.
        if !process.stdio.terminal || matches!(process.phase(), Phase::Stopped(_)) {
            return Ok(());
        }
        let exec_id = exec.map(str::to_owned);
        let call = Call::Resize { container: self.id.clone(), exec: exec_id, columns, rows };
        self.done("resize", exec, call).await
    }

    pub async fn pids(&self) -> Result<Vec<u32>, Error> {
        self.require_running("list the processes of")?;
        let call = Call::Pids { container: self.id.clone() };
        match self.sandbox.agent().call(call).await {
            Ok(Outcome::Pids(pids)) => Ok(pids),
            Ok(_) => Err(self.failed("ps", None, CallError::WrongOutcome { call: "Pids" })),
            Err(error) => Err(self.failed("ps", None, error)),
        }
    }

    pub async fn stats(&self) -> Result<Stats, Error> {
        self.require_running("measure")?;
        let call = Call::Stats { container: self.id.clone() };
        match self.sandbox.agent().call(call).await {
            Ok(Outcome::Stats(stats)) => Ok(*stats),
            Ok(_) => Err(self.failed("stats", None, CallError::WrongOutcome { call: "Stats" })),
            Err(error) => Err(self.failed("stats", None, error)),
        }
    }

    /// Changes limits; `json` is the runtime-spec's `LinuxResources`.
    pub async fn update(&self, json: &[u8]) -> Result<(), Error> {
        let resources: Resources = plan::update(json, self.vcpus)?;
        self.require_running("update")?;
        let call = Call::Update { container: self.id.clone(), resources };
        self.done("update", None, call).await?;
        // The guest limits the container, the host its VM.
        let limited = plan::cpu_limits(json)?.map(|limits| self.sandbox.limit_cpu(&limits));
        limited.transpose().map(drop).map_err(|source| Error::Cgroup { action: "update", source })
    }

    pub async fn pause(&self) -> Result<(), Error> {
        let _changing = self.init.changing.lock().await;
        self.require_running("pause")?;
        self.done("pause", None, Call::Pause { container: self.id.clone() }).await?;
        self.init.set_running(true);
        self.events.publish(TaskPaused { container_id: self.id.clone(), ..Default::default() });
        Ok(())
    }

    pub async fn resume(&self) -> Result<(), Error> {
        let _changing = self.init.changing.lock().await;
        if self.init.phase() != (Phase::Running { paused: true }) {
            let state = "it is not paused";
            return Err(Error::State { action: "resume", id: self.id.clone(), state });
        }
        self.done("resume", None, Call::Resume { container: self.id.clone() }).await?;
        self.init.set_running(false);
        self.events.publish(TaskResumed { container_id: self.id.clone(), ..Default::default() });
        Ok(())
    }
}
