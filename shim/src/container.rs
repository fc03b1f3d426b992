//! The story of a container.
//!
//! ```text
//!   create   bundle → plan; images opened; VM booted; plan sent; streams connected
//!   start    the process executes; its end is awaited
//!   exec …   further processes, with streams of their own
//!   exit     output drained, exit told, VM shut down
//!   delete   everything of it forgotten
//! ```
//!
//! A container holds its sandbox from its creation on: there is no container without a
//! VM in which an agent has prepared it.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use caisson_agent_protocol::{
    Call, ContainerPlan, FIRST_STREAM_PORT, Outcome, Stats,
    plan::{ProcessPlan, Resources, SeccompProgram, StdioPorts},
};
use containerd_shim::protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use tokio::time::timeout;

use crate::{
    agent_client::CallError,
    error::Error,
    events::{self, EventSink},
    exit::Exit,
    kind::ErrorKind,
    plan::{self, HostSize},
    process::{self, Phase, Process},
    rootfs::Rootfs,
    sandbox::{Cancelled, Launcher, Sandbox, SandboxSpec},
    stages,
    stdio::{OpenStdio, StdioSpec},
};

/// As many processes as an engine may have added at once.
const MAX_EXECS: usize = 1024;

/// How long the agent may flush and unmount.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// How long execs may tell their exits after the container's own process has ended.
const EXEC_GRACE: Duration = Duration::from_millis(500);

/// How long a VM whose agent is lost may take to end by itself.
const LOST_GRACE: Duration = Duration::from_secs(1);

/// Between two OOM notices.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// A container to create.
pub struct CreateRequest {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Rootfs,
    pub stdio: StdioSpec,
}

pub struct Container {
    pub id: String,
    pub bundle: PathBuf,
    sandbox: Arc<dyn Sandbox>,
    events: EventSink,
    /// The container's own process.
    init: Arc<Process>,
    /// `None` while the agent prepares it.
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    next_port: AtomicU32,
    vcpus: u8,
    /// What every process of the container is filtered by.
    seccomp: Vec<SeccompProgram>,
    oom_told: AtomicBool,
}

impl Container {
    /// Everything up to the execution of the process. After an error nothing is left.
    pub async fn create(
        request: CreateRequest,
        launcher: &dyn Launcher,
        events: EventSink,
        mut cancelled: Cancelled,
    ) -> Result<Arc<Self>, Error> {
        stages::stamp("shim", "create");
        let CreateRequest { id, bundle, rootfs, stdio } = request;
        let spec = plan::load(&bundle)?;
        let size = plan::vm_size(&spec, HostSize::of_this_host())?;
        let open = stdio.open()?;
        let next_port = AtomicU32::new(FIRST_STREAM_PORT);
        let ports = open.ports(|| next_port.fetch_add(1, Ordering::Relaxed));
        let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let surroundings = plan::Surroundings {
            rootfs: rootfs.plan(readonly),
            ports,
            terminal: stdio.terminal,
            vcpus: size.vcpus,
        };
        let plan: ContainerPlan = plan::container(&id, &spec, surroundings)?;
        let seccomp = plan.process.seccomp.clone();

        let spec = SandboxSpec { id: id.clone(), bundle: bundle.clone(), size, rootfs };
        let sandbox = launcher.launch(spec, cancelled.clone()).await?;
        stages::stamp("shim", "agent_ready");

        let prepared = tokio::select! {
            prepared = prepare(sandbox.as_ref(), &id, plan, stdio, open, ports) => prepared,
            () = cancelled.cancelled() => Err(Error::Cancelled { id: id.clone() }),
        };
        let init = match prepared {
            Ok(init) => init,
            Err(error) => {
                let error = explained(error, sandbox.as_ref()).await;
                sandbox.kill("its container could not be created");
                sandbox.ended().await;
                return Err(error);
            }
        };
        stages::stamp("shim", "container_created");
        let container = Arc::new(Self {
            id,
            bundle,
            sandbox,
            events,
            init,
            execs: Mutex::default(),
            next_port,
            vcpus: size.vcpus,
            seccomp,
            oom_told: AtomicBool::new(false),
        });
        tokio::spawn(container.clone().watch_sandbox());
        Ok(container)
    }

    /// The pid that engines see: the VM's.
    pub fn pid(&self) -> u32 {
        self.sandbox.pid()
    }

    /// The container's process, or an exec.
    pub fn process(&self, exec: Option<&str>) -> Result<Arc<Process>, Error> {
        match exec {
            None => Ok(self.init.clone()),
            Some(exec) => self
                .execs()
                .get(exec)
                .cloned()
                .flatten()
                .ok_or_else(|| Error::NotFound { what: "process", id: exec.to_owned() }),
        }
    }

    /// Whether its process still waits for its start.
    pub fn is_unstarted(&self) -> bool {
        self.init.phase() == Phase::Created
    }

    /// Executes a prepared process.
    pub async fn start(self: &Arc<Self>, exec: Option<&str>) -> Result<u32, Error> {
        let process = self.process(exec)?;
        let _changing = process.changing.lock().await;
        if process.phase() != Phase::Created {
            let state = "it has been started before";
            let id = exec.unwrap_or(&self.id).to_owned();
            return Err(Error::State { action: "start", id, state });
        }
        let told = self.sandbox.agent().expect_exit(&self.id, exec);
        let call = Call::Start { container: self.id.clone(), exec: exec.map(str::to_owned) };
        let started = self.vital("start", exec, call).await.and_then(|outcome| match outcome {
            Outcome::Started { .. } => Ok(()),
            _ => Err(self.failed("start", exec, CallError::WrongOutcome { call: "Start" })),
        });
        if let Err(error) = started {
            if exec.is_none() {
                self.end_unstartable(&process, &error);
            }
            return Err(error);
        }
        process.set_running(false);
        match exec {
            None => {
                stages::stamp("shim", "started_process");
                self.events.publish(TaskStart {
                    container_id: self.id.clone(),
                    pid: self.pid(),
                    ..Default::default()
                });
                tokio::spawn(self.clone().report_ooms());
            }
            Some(exec) => self.events.publish(TaskExecStarted {
                container_id: self.id.clone(),
                exec_id: exec.to_owned(),
                pid: self.pid(),
                ..Default::default()
            }),
        }
        tokio::spawn(self.clone().await_exit(process.clone(), exec.map(str::to_owned), told));
        Ok(self.pid())
    }

    /// Sends a signal to the process, with `all` to every process of the container.
    pub async fn kill(
        self: &Arc<Self>,
        exec: Option<&str>,
        signal: u32,
        all: bool,
    ) -> Result<(), Error> {
        let signal = i32::try_from(signal).ok().filter(|signal| (0..=64).contains(signal));
        let signal = signal.ok_or(Error::InvalidArgument("a signal is a number from 0 to 64"))?;
        let process = self.process(exec)?;
        if process.phase() == Phase::Created && self.kill_unstarted(&process, exec, signal).await {
            return Ok(());
        }
        if matches!(process.phase(), Phase::Stopped(_)) {
            return Err(Error::AlreadyFinished);
        }
        let call =
            Call::Signal { container: self.id.clone(), exec: exec.map(str::to_owned), signal, all };
        match self.sandbox.agent().call_done(call).await {
            Ok(()) => Ok(()),
            // What cannot be killed from inside is killed from outside.
            Err(error)
                if exec.is_none()
                    && signal == libc::SIGKILL
                    && !matches!(error, CallError::Agent(_)) =>
            {
                self.sandbox.kill(&format!("killed, because {error}"));
                Ok(())
            }
            Err(error) => Err(self.failed("signal", exec, error)),
        }
    }

    /// Kills a process that has not been started, if that is still so: nothing is there
    /// yet that could handle a signal, so any but the null signal ends it.
    async fn kill_unstarted(&self, process: &Process, exec: Option<&str>, signal: i32) -> bool {
        if signal == 0 {
            return true;
        }
        let starting = process.changing.try_lock().is_err();
        if starting && exec.is_none() && signal == libc::SIGKILL {
            self.destroy("killed while its process was being started").await;
            return true;
        }
        let _changing = process.changing.lock().await;
        if process.phase() != Phase::Created {
            return false;
        }
        let code = 128_u8.saturating_add(u8::try_from(signal).unwrap_or(0));
        self.finish(process, exec, Exit::now(code));
        if exec.is_none() {
            self.destroy("killed before its process was started").await;
        }
        true
    }

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
        self.reserve_exec(exec)?;
        let prepared = self.prepare_exec(exec, process, stdio).await;
        match prepared {
            Ok(process) => self.execs().insert(exec.to_owned(), Some(process)),
            Err(error) => {
                self.execs().remove(exec);
                return Err(error);
            }
        };
        self.events.publish(TaskExecAdded {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        });
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
        process: ProcessPlan,
        stdio: StdioSpec,
    ) -> Result<Arc<Process>, Error> {
        let open = stdio.open()?;
        let ports = open.ports(|| self.next_port.fetch_add(1, Ordering::Relaxed));
        let call = Call::CreateExec {
            container: self.id.clone(),
            exec: exec.to_owned(),
            process: Box::new(process),
            stdio: ports,
        };
        match self.sandbox.agent().call(call).await {
            Ok(Outcome::Created { .. }) => {}
            Ok(_) => {
                let error = CallError::WrongOutcome { call: "CreateExec" };
                return Err(self.failed("exec", Some(exec), error));
            }
            Err(error) => return Err(self.failed("exec", Some(exec), error)),
        }
        let connected = Process::connect(stdio, open, ports, self.sandbox.as_ref()).await;
        if connected.is_err()
            && let Err(error) = self.forget_exec(exec).await
        {
            log::warn!("undo the exec {exec:?}: {error}");
        }
        connected
    }

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
        self.done("update", None, call).await
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
        if matches!(self.init.phase(), Phase::Running { .. }) {
            process.drain_before_delete().await;
            self.forget_exec(exec).await?;
        }
        Ok(exit)
    }

    /// Ends what is left of the container: its VM, its streams.
    pub async fn delete(&self) -> Result<Exit, Error> {
        let _changing = self.init.changing.lock().await;
        let exit = match self.init.phase() {
            Phase::Running { .. } => {
                let state = "it is running";
                return Err(Error::State { action: "delete", id: self.id.clone(), state });
            }
            Phase::Created => {
                self.sandbox.kill("deleted before its process was started");
                Exit::now(0)
            }
            Phase::Stopped(exit) => exit,
        };
        self.sandbox.ended().await;
        self.execs().clear();
        Ok(exit)
    }

    /// Ends the VM, whatever runs in it.
    pub async fn destroy(&self, reason: &str) {
        self.sandbox.kill(reason);
        self.sandbox.ended().await;
    }

    /// Says that the container is no more.
    pub fn publish_delete(&self, exit: &Exit) {
        self.events.publish(TaskDelete {
            container_id: self.id.clone(),
            id: self.id.clone(),
            pid: self.pid(),
            exit_status: exit.code.into(),
            exited_at: events::exited_at(exit),
            ..Default::default()
        });
    }

    /// Says that the container is there.
    pub fn publish_create(&self, event: TaskCreate) {
        self.events.publish(TaskCreate {
            container_id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            pid: self.pid(),
            ..event
        });
    }

    /// The container whose process cannot be executed has ended, with the code that a shell
    /// gives; its VM is of no more use.
    fn end_unstartable(self: &Arc<Self>, process: &Process, error: &Error) {
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

    async fn await_exit(
        self: Arc<Self>,
        process: Arc<Process>,
        exec: Option<String>,
        told: tokio::sync::oneshot::Receiver<crate::agent_client::AgentExit>,
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
    async fn watch_sandbox(self: Arc<Self>) {
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

    fn finish(&self, process: &Process, exec: Option<&str>, exit: Exit) {
        if !process.claim_exit() {
            return;
        }
        if exec.is_none()
            && let Err(error) = exit.save(&self.bundle)
        {
            log::warn!("write the exit record of {}: {error}", self.id);
        }
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
    async fn shut_down(&self) {
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

    async fn report_ooms(self: Arc<Self>) {
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

    fn require_running(&self, action: &'static str) -> Result<(), Error> {
        match self.init.phase() {
            Phase::Running { .. } => Ok(()),
            Phase::Created => {
                Err(Error::State { action, id: self.id.clone(), state: "it is not running" })
            }
            Phase::Stopped(_) => Err(Error::AlreadyFinished),
        }
    }

    /// A call without which the VM is of no use: an agent that leaves it unanswered loses
    /// its VM.
    async fn vital(
        &self,
        action: &'static str,
        exec: Option<&str>,
        call: Call,
    ) -> Result<Outcome, Error> {
        match self.sandbox.agent().call(call).await {
            Ok(outcome) => Ok(outcome),
            Err(error) => {
                let error = self.failed(action, exec, error);
                Err(explained(error, self.sandbox.as_ref()).await)
            }
        }
    }

    async fn done(
        &self,
        action: &'static str,
        exec: Option<&str>,
        call: Call,
    ) -> Result<(), Error> {
        let done = self.sandbox.agent().call_done(call).await;
        done.map_err(|error| self.failed(action, exec, error))
    }

    async fn forget_exec(&self, exec: &str) -> Result<(), Error> {
        let call = Call::Delete { container: self.id.clone(), exec: Some(exec.to_owned()) };
        self.done("delete", Some(exec), call).await
    }

    fn failed(&self, action: &'static str, exec: Option<&str>, source: CallError) -> Error {
        Error::Agent { action, id: exec.unwrap_or(&self.id).to_owned(), source }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        // No code panics while it holds the table.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the plan and connects the streams of the container's process.
async fn prepare(
    sandbox: &dyn Sandbox,
    id: &str,
    plan: ContainerPlan,
    stdio: StdioSpec,
    open: OpenStdio,
    ports: StdioPorts,
) -> Result<Arc<Process>, Error> {
    let created = sandbox.agent().call(Call::CreateContainer(Box::new(plan))).await;
    let created = created.and_then(|outcome| match outcome {
        Outcome::Created { .. } => Ok(()),
        _ => Err(CallError::WrongOutcome { call: "CreateContainer" }),
    });
    created.map_err(|source| Error::Agent { action: "create", id: id.to_owned(), source })?;
    Process::connect(stdio, open, ports, sandbox).await
}

/// The error with what became of the VM, where that is what went wrong. A VM whose agent
/// let a vital call go unanswered is ended.
async fn explained(error: Error, sandbox: &dyn Sandbox) -> Error {
    let Error::Agent { action, id, source } = error else { return error };
    match &source {
        CallError::Deadline { .. } => sandbox.kill(&source.to_string()),
        CallError::Lost { .. } => {}
        _ => return Error::Agent { action, id, source },
    }
    if timeout(LOST_GRACE, sandbox.ended()).await.is_err() {
        sandbox.kill(&source.to_string());
    }
    let reason = sandbox.ended().await.reason;
    Error::SandboxLost { action, id, reason }
}
