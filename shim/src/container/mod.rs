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

mod control;
mod ending;
mod execs;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use caisson_agent_protocol::{
    Call, ContainerPlan, FIRST_STREAM_PORT, Outcome,
    plan::{SeccompProgram, StdioPorts},
};
use caisson_failpoints::{hit, pass, steps};
use containerd_shim::protos::events::task::{TaskCreate, TaskDelete, TaskExecStarted, TaskStart};
use oci_spec::runtime::Spec;
use tokio::time::timeout;

use crate::{
    agent_client::CallError,
    cgroup::CgroupPlan,
    client::RootfsMount,
    error::Error,
    events::{self, EventSink},
    exit::Exit,
    network::{Network, bridge::ADDRESSES, publish::Port},
    plan::{self, HostSize, Planned},
    process::{Phase, Process},
    rootfs::Source,
    sandbox::{Cancelled, Launcher, Sandbox, SandboxSpec, VmSize},
    stages,
    stdio::{OpenStdio, StdioSpec},
    vm,
};

/// Who has it may give an interface other addresses (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

/// How long a VM whose agent is lost may take to end by itself.
const LOST_GRACE: Duration = Duration::from_secs(1);

/// A container to create.
pub struct CreateRequest {
    pub id: String,
    pub bundle: PathBuf,
    /// In containerd's shape; none for the bundle's own root directory.
    pub rootfs: Vec<RootfsMount>,
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
    size: VmSize,
    /// What every process of the container is filtered by.
    seccomp: Vec<SeccompProgram>,
    oom_told: AtomicBool,
    /// A tool has worked on its files.
    visited: AtomicBool,
}

impl Container {
    /// Everything up to the execution of the process. After an error nothing is left.
    pub async fn create(
        request: CreateRequest,
        launcher: &dyn Launcher,
        source: &Source,
        bridge: Option<&[Port]>,
        events: EventSink,
        mut cancelled: Cancelled,
    ) -> Result<Arc<Self>, Error> {
        stages::stamp("shim", "create");
        let CreateRequest { id, bundle, rootfs, stdio } = request;
        hit(&steps::SHIM_CREATE_PLAN).map_err(failed("read the bundle"))?;
        let spec = plan::load(&bundle)?;
        let size = plan::vm_size(&spec, HostSize::of_this_host())?;
        let open = stdio.open()?;
        let next_port = AtomicU32::new(FIRST_STREAM_PORT);
        let ports = open.ports(|| next_port.fetch_add(1, Ordering::Relaxed));
        let network = network_of(&id, &spec, bridge)?;
        let surroundings = plan::Surroundings {
            ports,
            terminal: stdio.terminal,
            vcpus: size.vcpus,
            interfaces: network.iter().flat_map(Network::plans).cloned().collect(),
        };
        let Planned { container: mut plan, shares } = plan::container(&id, &spec, surroundings)?;
        let mut cgroup = CgroupPlan::of(&id, &bundle, &spec, &size)?;
        if !shares.is_empty() {
            cgroup.allow_open_files(vm::max_open_files(size.memory_mib));
        }
        let seccomp = plan.process.seccomp.clone();
        let rootfs = tokio::select! {
            opened = source.open(&id, &bundle, rootfs) => opened?,
            () = cancelled.cancelled() => return Err(Error::Cancelled { id }),
        };
        plan.rootfs = rootfs.plan(plan.rootfs.readonly);

        let any_address = plan.process.capabilities.bounding & (1 << CAP_NET_ADMIN) != 0;
        let oom_score_adj = plan.process.oom_score_adj.unwrap_or(0);
        let spec = SandboxSpec {
            id: id.clone(),
            bundle: bundle.clone(),
            size,
            cgroup,
            oom_score_adj,
            rootfs,
            shares,
            network,
            any_address,
        };
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
        pass(&steps::SHIM_CREATE_DONE);
        let container = Arc::new(Self {
            id,
            bundle,
            sandbox,
            events,
            init,
            execs: Mutex::default(),
            next_port,
            size,
            seccomp,
            oom_told: AtomicBool::new(false),
            visited: AtomicBool::new(false),
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

    /// Whether its process still waits for its start, and nothing else is done with it.
    pub fn is_unstarted(&self) -> bool {
        self.init.phase() == Phase::Created && self.execs().is_empty()
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
        hit(&steps::SHIM_START_CALL).map_err(failed("start the process"))?;
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
        pass(&steps::SHIM_START_DONE);
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

    /// Ends what is left of the container: its VM, its streams.
    pub async fn delete(&self) -> Result<Exit, Error> {
        let _changing = self.init.changing.lock().await;
        let exit = match self.init.phase() {
            Phase::Running { .. } => {
                let state = "it is running";
                return Err(Error::State { action: "delete", id: self.id.clone(), state });
            }
            Phase::Created if self.visited.load(Ordering::Relaxed) => {
                // What was written to its files is to be there the next time.
                self.shut_down().await;
                Exit::now(0)
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

    fn failed(&self, action: &'static str, exec: Option<&str>, source: CallError) -> Error {
        Error::Agent { action, id: exec.unwrap_or(&self.id).to_owned(), source }
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Process>>>> {
        // No code panics while it holds the table.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The network that the container is to have; without one it has the loopback interface.
fn network_of(id: &str, spec: &Spec, bridge: Option<&[Port]>) -> Result<Option<Network>, Error> {
    let network = match (plan::network_namespace(spec)?, bridge) {
        (Some(path), _) => Network::read(&path)?,
        (None, Some(ports)) => Network::on_bridge(Path::new(ADDRESSES), id, ports)?,
        (None, None) => return Ok(None),
    };
    Ok(Some(network))
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
    hit(&steps::SHIM_CREATE_CALL).map_err(failed("send the plan to the agent"))?;
    let created = sandbox.agent().call(Call::CreateContainer(Box::new(plan))).await;
    let created = created.and_then(|outcome| match outcome {
        Outcome::Created { .. } => Ok(()),
        _ => Err(CallError::WrongOutcome { call: "CreateContainer" }),
    });
    created.map_err(|source| Error::Agent { action: "create", id: id.to_owned(), source })?;
    hit(&steps::SHIM_CREATE_STREAMS).map_err(failed("connect the streams"))?;
    Process::connect(stdio, open, ports, sandbox).await
}

fn failed(action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { action, source }
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
