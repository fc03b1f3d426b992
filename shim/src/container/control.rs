//! What can be asked of a container that runs.

use caisson_agent_protocol::{Call, Outcome, Stats, plan::Resources};
use containerd_shim::protos::events::task::{TaskPaused, TaskResumed};

use super::Container;
use crate::{agent_client::CallError, error::Error, plan, process::Phase, sandbox::VmSize};

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
        let resources: Resources = plan::update(json, self.size.vcpus)?;
        require_room(&resources, &self.size)?;
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

/// Refuses limits that the VM cannot give. One that is lifted is no limit.
fn require_room(resources: &Resources, size: &VmSize) -> Result<(), Error> {
    let memory = u64::from(size.memory_mib) << 20;
    if let Some(bytes) = resources.memory_bytes.filter(|&bytes| bytes != u64::MAX && bytes > memory)
    {
        let what = format!("a memory limit of {bytes} bytes");
        return Err(Error::BeyondVm { what, has: format!("{} MiB", size.memory_mib) });
    }
    let quota = resources.cpu_quota_usec.filter(|&quota| quota != u64::MAX);
    if let (Some(quota), Some(period)) = (quota, resources.cpu_period_usec)
        && quota > period.saturating_mul(size.vcpus.into())
    {
        let what = format!("a quota of {quota} \u{b5}s of CPU time in {period} \u{b5}s");
        return Err(Error::BeyondVm { what, has: format!("{} CPUs", size.vcpus) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_beyond_the_vm_are_refused_and_lifted_ones_are_none() {
        let size = VmSize { vcpus: 2, memory_mib: 128, disk_limit: Default::default() };
        let resources = |memory_bytes, cpu_quota_usec| Resources {
            memory_bytes,
            cpu_quota_usec,
            cpu_period_usec: Some(100_000),
            ..Resources::default()
        };
        let room = |memory, quota| require_room(&resources(memory, quota), &size);
        for (memory, quota) in
            [(None, None), (Some(128 << 20), Some(200_000)), (Some(u64::MAX), Some(u64::MAX))]
        {
            room(memory, quota).unwrap();
        }
        let error = room(Some(129 << 20), None).unwrap_err();
        assert!(error.to_string().contains("(128 MiB)"), "{error}");
        assert!(room(None, Some(200_001)).unwrap_err().to_string().contains("(2 CPUs)"));
    }
}
