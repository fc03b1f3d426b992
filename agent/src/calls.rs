//! The shim's calls, one arm each.

use std::time::{Duration, Instant};

use caisson_agent_protocol::{AgentError, Call, ErrorKind, Outcome, Request, plan::TerminalSize};

use crate::{
    error::{At, wire},
    process::State,
    runtime::{Runtime, kill},
    stats,
    watch::Key,
};

/// How long processes may take to be gone when the VM ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
const LAST_SIGNAL: i32 = 64;

impl Runtime {
    /// Performs `request`; its reply is queued now or when what it waits for happens.
    pub fn call(&mut self, request: Request) {
        match self.perform(request.id, request.call) {
            Ok(Some(outcome)) => self.reply(request.id, Ok(outcome)),
            Ok(None) => {}
            Err(error) => self.reply(request.id, Err(error)),
        }
    }

    /// `None` if the reply comes later.
    fn perform(&mut self, request: u64, call: Call) -> Result<Option<Outcome>, AgentError> {
        if self.shutdown.is_some() {
            return Err(wire(ErrorKind::FailedPrecondition, "the VM is shutting down"));
        }
        match call {
            Call::CreateContainer(plan) => {
                self.create_container(request, &plan)?;
                return Ok(None);
            }
            Call::CreateExec { container, exec, process, stdio } => {
                self.create_exec(request, &container, &exec, &process, &stdio)?;
                return Ok(None);
            }
            Call::CreateTool { container, exec, tool, stdio } => {
                self.create_tool(request, &container, &exec, &tool, &stdio)?;
                return Ok(None);
            }
            Call::Start { container, exec } => {
                let key = self.key(&container, exec.as_deref())?;
                self.start(request, key)?;
                return Ok(None);
            }
            Call::Delete { container, exec } => {
                return self.delete(request, &container, exec.as_deref());
            }
            Call::Shutdown => {
                self.begin_shutdown(request);
                return Ok(None);
            }
            Call::Signal { container, exec, signal, all } => {
                let key = self.key(&container, exec.as_deref())?;
                self.signal(&container, key, signal, all)?;
            }
            Call::Resize { container, exec, columns, rows } => {
                let key = self.key(&container, exec.as_deref())?;
                self.resize(key, TerminalSize { columns, rows })?;
            }
            Call::CloseStdin { container, exec } => {
                let key = self.key(&container, exec.as_deref())?;
                self.process(key).stdio.close_stdin();
                self.pump(key);
            }
            Call::Pids { container } => {
                return Ok(Some(Outcome::Pids(self.container(&container)?.cgroup.pids()?)));
            }
            Call::Stats { container } => {
                let stats = stats::read(&self.container(&container)?.cgroup);
                return Ok(Some(Outcome::Stats(Box::new(stats))));
            }
            Call::Update { container, resources } => {
                self.container(&container)?.cgroup.apply(&resources)?;
            }
            Call::Pause { container } => self.container(&container)?.cgroup.freeze(true)?,
            Call::Resume { container } => self.container(&container)?.cgroup.freeze(false)?,
        }
        Ok(Some(Outcome::Done))
    }

    fn signal(
        &mut self,
        container: &str,
        key: Key,
        signal: i32,
        all: bool,
    ) -> Result<(), AgentError> {
        if !(0..=LAST_SIGNAL).contains(&signal) {
            let message = format!("signal {signal} is not in 0..={LAST_SIGNAL}");
            return Err(wire(ErrorKind::InvalidArgument, message));
        }
        if all {
            return self.signal_all(container, signal);
        }
        let process = self.process(key);
        if !process.is_alive() {
            let message = format!("{} is {}", process.name(), process.describe());
            return Err(wire(ErrorKind::NotFound, message));
        }
        let (pid, name) = (process.pid, process.name());
        Ok(kill(pid, signal).at(|| format!("send signal {signal} to {name}"))?)
    }

    fn signal_all(&self, container: &str, signal: i32) -> Result<(), AgentError> {
        let cgroup = &self.container(container)?.cgroup;
        if signal == libc::SIGKILL {
            return Ok(cgroup.kill()?);
        }
        for pid in cgroup.pids()? {
            // One that has just exited needs no signal.
            let _ = kill(pid as i32, signal);
        }
        Ok(())
    }

    fn resize(&mut self, key: Key, size: TerminalSize) -> Result<(), AgentError> {
        let process = self.process(key);
        if process.stdio.resize(size)? {
            return Ok(());
        }
        let message = format!("{} has no terminal", process.name());
        Err(wire(ErrorKind::FailedPrecondition, message))
    }

    fn delete(
        &mut self,
        request: u64,
        container: &str,
        exec: Option<&str>,
    ) -> Result<Option<Outcome>, AgentError> {
        let key = self.key(container, exec)?;
        let process = self.process(key);
        match process.state {
            State::Exited { .. } => match exec {
                None => {
                    self.begin_removal(container, request, Ok(Outcome::Done));
                    Ok(None)
                }
                Some(exec) => {
                    self.processes.remove(&key);
                    let container = self.containers.get_mut(container);
                    container.expect("looked up above").execs.remove(exec);
                    Ok(Some(Outcome::Done))
                }
            },
            State::Created => {
                process.state = State::Forgetting { request };
                // A pid namespace's first process cannot refuse this.
                kill(process.pid, libc::SIGKILL).at(|| "end the prepared process")?;
                Ok(None)
            }
            _ => {
                let (name, state) = (process.name(), process.describe());
                let message = format!("cannot delete {name}: it is {state}; kill it first");
                Err(wire(ErrorKind::FailedPrecondition, message))
            }
        }
    }

    /// Ends every process; [`Self::finish_shutdown`] replies when all are gone.
    fn begin_shutdown(&mut self, request: u64) {
        for (id, container) in &self.containers {
            if let Err(error) = container.cgroup.kill() {
                crate::log!("container {id}: {}", crate::error::to_wire(&error));
            }
            self.kill_tools(id);
        }
        self.shutdown = Some((request, Instant::now() + SHUTDOWN_TIMEOUT));
    }

    /// True when a shutdown was asked for and nothing is left to wait for: the disks are
    /// flushed and the reply is queued.
    pub fn finish_shutdown(&mut self) -> bool {
        let Some((request, deadline)) = self.shutdown else { return false };
        if self.processes.values().any(|p| p.is_alive()) && Instant::now() < deadline {
            return false;
        }
        // The containers' mounts went with their processes, which flushes them; this is
        // for what a process that would not die still holds.
        nix::unistd::sync();
        self.reply(request, Ok(Outcome::Done));
        true
    }
}
