//! Processes beside the container's own.

use std::sync::{Arc, atomic::Ordering};

use caisson_agent_protocol::{Call, Outcome, Tool, plan::StdioPorts};
use caisson_failpoints::{hit, pass, steps};
use containerd_shim::protos::events::task::TaskExecAdded;

use super::Container;
use crate::{
    agent_client::{CallError, name_of},
    error::Error,
    exit::Exit,
    plan,
    process::{Phase, Process},
    stdio::StdioSpec,
};

/// As many processes as an engine may have added at once.
const MAX_EXECS: usize = 1024;

impl Container {
    /// Prepares a further process.
    pub async fn exec(
        self: &Arc<Self>,
        exec: &str,
        process_json: &[u8],
        stdio: StdioSpec,
    ) -> Result<(), Error> {
        plan::check_id("the exec's id", exec)?;
        let process = plan::exec(process_json, stdio.terminal, self.seccomp.clone())?;
        if !matches!(self.init.phase(), Phase::Running { .. }) {
            let state = "it is not running";
            return Err(Error::State { action: "exec in", id: self.id.clone(), state });
        }
        let (container, process) = (self.id.clone(), Box::new(process));
        self.add(exec, stdio, |exec, stdio| Call::CreateExec { container, exec, process, stdio })
            .await?;
        self.events.publish(TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        });
        Ok(())
    }

    /// Prepares a tool's work, also before the container's process is started; `json` is a
    /// [`Tool`]. Engines are not told: to them there is no such process.
    pub async fn tool(
        self: &Arc<Self>,
        exec: &str,
        json: &[u8],
        stdio: StdioSpec,
    ) -> Result<(), Error> {
        plan::check_id("the exec's id", exec)?;
        let tool: Tool = serde_json::from_slice(json)
            .map_err(|_| Error::InvalidArgument("the tool is none that this shim knows"))?;
        if stdio.terminal {
            return Err(Error::InvalidArgument("a tool has no terminal"));
        }
        if matches!(self.init.phase(), Phase::Stopped(_)) {
            return Err(Error::AlreadyFinished);
        }
        self.visited.store(true, Ordering::Relaxed);
        let (container, tool) = (self.id.clone(), Box::new(tool));
        self.add(exec, stdio, |exec, stdio| Call::CreateTool { container, exec, tool, stdio }).await
    }

    /// Prepares a process by `call`, which gets its id and its ports.
    async fn add(
        &self,
        exec: &str,
        stdio: StdioSpec,
        call: impl FnOnce(String, StdioPorts) -> Call,
    ) -> Result<(), Error> {
        hit(&steps::SHIM_EXEC_RESERVE).map_err(super::failed("reserve the exec's id"))?;
        self.reserve_exec(exec)?;
        match self.prepare_exec(exec, stdio, call).await {
            Ok(process) => self.execs().insert(exec.to_owned(), Some(process)),
            Err(error) => {
                self.execs().remove(exec);
                return Err(error);
            }
        };
        pass(&steps::SHIM_EXEC_DONE);
        Ok(())
    }

    fn reserve_exec(&self, exec: &str) -> Result<(), Error> {
        let mut execs = self.execs();
        if execs.contains_key(exec) {
            return Err(Error::AlreadyExists { what: "process", id: exec.to_owned() });
        }
        if execs.len() >= MAX_EXECS {
            let state = "it has 1024 further processes that were not deleted";
            return Err(Error::State { action: "exec in", id: self.id.clone(), state });
        }
        execs.insert(exec.to_owned(), None);
        Ok(())
    }

    async fn prepare_exec(
        &self,
        exec: &str,
        stdio: StdioSpec,
        call: impl FnOnce(String, StdioPorts) -> Call,
    ) -> Result<Arc<Process>, Error> {
        let open = stdio.open()?;
        let ports = open.ports(|| self.next_port.fetch_add(1, Ordering::Relaxed));
        let call = call(exec.to_owned(), ports);
        let name = name_of(&call);
        match self.sandbox.agent().call(call).await {
            Ok(Outcome::Created { .. }) => {}
            Ok(_) => {
                let error = CallError::WrongOutcome { call: name };
                return Err(self.failed("exec", Some(exec), error));
            }
            Err(error) => return Err(self.failed("exec", Some(exec), error)),
        }
        let connected = match hit(&steps::SHIM_EXEC_PREPARED) {
            Ok(()) => Process::connect(stdio, open, ports, self.sandbox.as_ref()).await,
            Err(source) => Err(super::failed("connect the streams")(source)),
        };
        if connected.is_err()
            && let Err(error) = self.forget_exec(exec).await
        {
            log::warn!("undo the exec {exec:?}: {error}");
        }
        connected
    }

    /// Forgets an exec that has ended or was never started.
    pub async fn delete_exec(&self, exec: &str) -> Result<Exit, Error> {
        let process = self.process(Some(exec))?;
        let _changing = process.changing.lock().await;
        let exit = match process.phase() {
            Phase::Running { .. } => {
                let id = exec.to_owned();
                return Err(Error::State { action: "delete", id, state: "it is running" });
            }
            Phase::Created => Exit::now(0),
            Phase::Stopped(exit) => exit,
        };
        // Two at once: the first wins.
        if self.execs().remove(exec).is_none() {
            return Err(Error::NotFound { what: "process", id: exec.to_owned() });
        }
        if !matches!(self.init.phase(), Phase::Stopped(_)) {
            process.drain_before_delete().await;
            self.forget_exec(exec).await?;
        }
        Ok(exit)
    }

    async fn forget_exec(&self, exec: &str) -> Result<(), Error> {
        let call = Call::Delete { container: self.id.clone(), exec: Some(exec.to_owned()) };
        self.done("delete", Some(exec), call).await
    }
}
