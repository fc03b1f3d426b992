//! A container's beginning and end.
//!
//! | creation, in the agent | why in this order |
//! |---|---|
//! | check the plan | nothing to undo yet |
//! | cut the disks | the child mounts partitions that must exist |
//! | cgroup with limits | the child is born in it |
//! | pipes and stream listeners | the shim connects when it has the reply |
//! | fork | the rest happens in [`crate::child`] |

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use caisson_agent_protocol::{
    AgentError, ErrorKind, Outcome, Tool,
    plan::{ContainerPlan, Extent, PidNamespace, ProcessPlan, RootfsPlan, StdioPorts},
};

use crate::{
    cgroup::Cgroup,
    child::{self, Role, Task},
    disk::DiskError,
    error::{At, OsError, wire},
    network,
    path::clean,
    process::{Process, State},
    report,
    rootfs::RootDevices,
    runtime::{Container, Removal, Runtime, kill},
    stdio::{ProcessEnds, Stdio},
    sys::{self, Fork},
    tool, validate,
    watch::{Key, Wake},
};

/// Processes that the agent looks after at once.
const MAX_PROCESSES: usize = 1024;
/// How long a killed container may take to be gone.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);

impl Runtime {
    /// Begins a container; the reply to `request` comes when its child is ready.
    pub(crate) fn create_container(
        &mut self,
        request: u64,
        plan: &ContainerPlan,
    ) -> Result<(), AgentError> {
        validate::container(plan)?;
        self.require_free(&plan.id)?;
        let pid_namespace = match &plan.namespaces.pid {
            PidNamespace::Own => None,
            PidNamespace::Of { container } => Some(self.running_init(container)?),
        };
        let network = network::outside(&plan.interfaces)?;
        let (devices, extents) = self.acquire(&plan.rootfs)?;
        let cgroup = Cgroup::create(&self.config.cgroup_root, &plan.id, &plan.resources)
            .inspect_err(|_| self.release(&extents))?;
        let key = self.spawn(Spawn {
            request,
            container: &plan.id,
            exec: None,
            work: Work::Process {
                process: &plan.process,
                role: Role::Init { plan, devices: &devices, network: network.as_ref() },
            },
            ports: &plan.stdio,
            namespaces: namespace_flags(plan),
            pid_namespace,
            cgroup: Some(&cgroup),
        });
        let key = key.inspect_err(|_| {
            // Nothing is in it; the first error is the one to report.
            let _ = cgroup.remove();
            self.release(&extents);
        })?;
        if let Some(events) = cgroup.events_fd() {
            // Without the watch a kill is still seen when the process exits.
            let _ = self.watch.add(events, Wake::Memory(key));
        }
        let container = Container {
            cgroup,
            devices: plan.resources.devices.clone(),
            extents,
            roots: devices,
            mount_points: mount_points(plan),
            init: key,
            execs: BTreeMap::new(),
            oom_kills: 0,
        };
        self.containers.insert(plan.id.clone(), container);
        Ok(())
    }

    /// Begins a further process in a running container.
    pub(crate) fn create_exec(
        &mut self,
        request: u64,
        container: &str,
        exec: &str,
        process: &ProcessPlan,
        ports: &StdioPorts,
    ) -> Result<(), AgentError> {
        validate::id(exec)?;
        validate::process(process, ports)?;
        let init = self.running_init(container)?;
        self.with_exec(container, exec, |runtime, held| {
            runtime.spawn(Spawn {
                request,
                container,
                exec: Some(exec),
                work: Work::Process { process, role: Role::Exec { init: init.as_fd() } },
                ports,
                namespaces: 0,
                pid_namespace: init.try_clone().ok(),
                cgroup: Some(&held.cgroup),
            })
        })
    }

    /// Begins a tool's work on a container that is prepared or runs.
    pub(crate) fn create_tool(
        &mut self,
        request: u64,
        container: &str,
        exec: &str,
        tool: &Tool,
        ports: &StdioPorts,
    ) -> Result<(), AgentError> {
        validate::id(exec)?;
        validate::tool(tool, ports)?;
        let init = &self.processes[&self.container(container)?.init];
        if !matches!(init.state, State::Created | State::Running) {
            let message = format!("container {container:?} is {}", init.describe());
            return Err(wire(ErrorKind::FailedPrecondition, message));
        }
        let is_started = init.is_running();
        let init = init.pidfd.try_clone().at(|| "copy a descriptor")?;
        self.with_exec(container, exec, |runtime, held| {
            runtime.spawn(Spawn {
                request,
                container,
                exec: Some(exec),
                work: Work::Tool { tool, container: held, init: init.as_fd(), is_started },
                ports,
                // What a tool mounts for itself goes with it.
                namespaces: u64::from(libc::CLONE_NEWNS as u32),
                // In the agent's pid namespace and cgroup: not seen from inside, and neither
                // frozen nor limited with the container.
                pid_namespace: None,
                cgroup: None,
            })
        })
    }

    /// Begins what `spawn` begins in a container that is there, and keeps it as its `exec`.
    fn with_exec(
        &mut self,
        container: &str,
        exec: &str,
        spawn: impl FnOnce(&mut Self, &Container) -> Result<Key, AgentError>,
    ) -> Result<(), AgentError> {
        self.require_new_exec(container, exec)?;
        // Out of the map while its parts are used beside `self`.
        let mut held = self.containers.remove(container).expect("just looked up");
        let key = spawn(self, &held);
        if let Ok(key) = &key {
            held.execs.insert(exec.to_owned(), *key);
        }
        self.containers.insert(container.to_owned(), held);
        key.map(drop)
    }

    fn require_new_exec(&self, container: &str, exec: &str) -> Result<(), AgentError> {
        if self.container(container)?.execs.contains_key(exec) {
            let message = format!("exec {exec:?} of container {container:?} exists already");
            return Err(wire(ErrorKind::AlreadyExists, message));
        }
        Ok(())
    }

    /// Ends the tools at work on container `id`, which no cgroup of its own holds.
    pub(crate) fn kill_tools(&self, id: &str) {
        for process in self.processes.values() {
            if process.container == id && process.is_tool && process.is_alive() {
                // One that has just exited needs no signal.
                let _ = kill(process.pid, libc::SIGKILL);
            }
        }
    }

    fn require_free(&self, id: &str) -> Result<(), AgentError> {
        let taken = self.containers.contains_key(id) || self.removals.iter().any(|r| r.id == id);
        if taken {
            let message = format!("container {id:?} exists already");
            return Err(wire(ErrorKind::AlreadyExists, message));
        }
        Ok(())
    }

    /// A pidfd of the first process of a container that runs.
    fn running_init(&self, id: &str) -> Result<OwnedFd, AgentError> {
        let init = &self.processes[&self.container(id)?.init];
        if !init.is_running() {
            let message = format!("container {id:?} is {}", init.describe());
            return Err(wire(ErrorKind::FailedPrecondition, message));
        }
        Ok(init.pidfd.try_clone().at(|| "copy a descriptor")?)
    }

    fn acquire(&mut self, plan: &RootfsPlan) -> Result<(RootDevices, Vec<Extent>), AgentError> {
        let mut devices = RootDevices::default();
        let mut held = Vec::new();
        let result = self.acquire_into(plan, &mut devices, &mut held);
        result.inspect_err(|_| self.release(&held))?;
        Ok((devices, held))
    }

    fn acquire_into(
        &mut self,
        plan: &RootfsPlan,
        devices: &mut RootDevices,
        held: &mut Vec<Extent>,
    ) -> Result<(), AgentError> {
        if plan.layers.is_empty() && plan.writable.is_none() {
            return Ok(()); // Nothing to look for.
        }
        let disks = self.disks()?;
        for extent in &plan.layers {
            devices.layers.push(disks.acquire(extent)?);
            held.push(extent.clone());
        }
        if let Some(extent) = &plan.writable {
            if disks.is_used(extent) {
                return Err(DiskError::Taken { extent: extent.clone() }.into());
            }
            devices.writable = Some((disks.acquire(extent)?, extent.clone()));
            held.push(extent.clone());
        }
        Ok(())
    }

    fn release(&mut self, extents: &[Extent]) {
        if let Some(disks) = &mut self.disks {
            extents.iter().for_each(|extent| disks.release(extent));
        }
    }

    /// Forks a child for a process and begins to look after it.
    fn spawn(&mut self, spawn: Spawn<'_>) -> Result<Key, AgentError> {
        if self.processes.len() >= MAX_PROCESSES {
            let message = format!("there are {MAX_PROCESSES} processes already; delete some");
            return Err(wire(ErrorKind::FailedPrecondition, message));
        }
        let key = self.new_key();
        let watch = &self.watch;
        let (stdio, ends) = Stdio::open(
            spawn.ports,
            spawn.work.has_terminal(),
            &*self.config.transport,
            &mut |fd| watch.add(fd, Wake::Stream(key)),
        )?;
        let (ours, theirs) = report::channel().at(|| "make a channel to the child")?;
        let visit = spawn.pid_namespace.as_ref().map(|init| PidVisit::begin(self, init));
        let visit = visit.transpose().at(|| "join the container's pid namespace")?;
        // SAFETY: the agent has one thread.
        let fork = unsafe { sys::fork_into(spawn.namespaces, spawn.cgroup.map(Cgroup::fd)) };
        let (pid, pidfd) = match fork.at(|| "start a process in the container")? {
            Fork::Child => spawn.work.run(&ends, self.null.as_fd(), theirs.as_fd()),
            Fork::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop(visit);
        let process = Process {
            container: spawn.container.to_owned(),
            exec: spawn.exec.map(str::to_owned),
            is_tool: matches!(spawn.work, Work::Tool { .. }),
            pid,
            pidfd,
            report: None,
            stdio,
            state: State::Preparing { request: spawn.request },
            oom_kills_before: 0,
        };
        if let Err(error) = self.watch.add(&ours, Wake::Report(key)) {
            // Nobody would hear the child; it is reaped as a stranger.
            let _ = kill(pid, libc::SIGKILL);
            return Err(OsError::new("watch the child", error).into());
        }
        self.processes.insert(key, Process { report: Some(ours), ..process });
        self.pids.insert(pid, key);
        Ok(key)
    }

    /// Begins to remove a container whose first process is gone or never ran. `request`
    /// is answered with `result` when nothing is left.
    pub(crate) fn begin_removal(
        &mut self,
        id: &str,
        request: u64,
        result: Result<Outcome, AgentError>,
    ) {
        let Some(container) = self.containers.remove(id) else { return };
        if let Err(error) = container.cgroup.kill() {
            crate::log!("container {id}: {}", crate::error::to_wire(&error));
        }
        self.kill_tools(id);
        let deadline = Instant::now() + REMOVAL_TIMEOUT;
        self.removals.push(Removal { id: id.to_owned(), container, request, result, deadline });
        self.continue_removals();
    }

    /// Takes every removal as far as it can go now.
    pub(crate) fn continue_removals(&mut self) {
        for removal in std::mem::take(&mut self.removals) {
            self.continue_removal(removal);
        }
    }

    fn continue_removal(&mut self, removal: Removal) {
        let alive = self
            .processes
            .values()
            .any(|process| process.container == removal.id && process.is_alive());
        let removed = if alive {
            Err(std::io::Error::from_raw_os_error(libc::EBUSY))
        } else {
            removal.container.cgroup.remove()
        };
        match removed {
            Ok(()) => {
                self.processes.retain(|_, process| process.container != removal.id);
                self.release(&removal.container.extents);
                self.reply(removal.request, removal.result);
            }
            Err(_) if Instant::now() < removal.deadline => self.removals.push(removal),
            Err(error) => {
                let action = format!(
                    "remove container {:?} within {} s",
                    removal.id,
                    REMOVAL_TIMEOUT.as_secs()
                );
                self.reply(removal.request, Err(OsError::new(action, error).into()));
                // Back to where a further attempt finds it.
                self.containers.insert(removal.id, removal.container);
            }
        }
    }
}

/// What a new process needs.
struct Spawn<'a> {
    request: u64,
    container: &'a str,
    exec: Option<&'a str>,
    work: Work<'a>,
    ports: &'a StdioPorts,
    /// `CLONE_NEW*` flags.
    namespaces: u64,
    /// Whose pid namespace to be born in, if not a new one or the agent's.
    pid_namespace: Option<OwnedFd>,
    /// The agent's own if none is given.
    cgroup: Option<&'a Cgroup>,
}

/// What the child does.
enum Work<'a> {
    Process {
        process: &'a ProcessPlan,
        role: Role<'a>,
    },
    Tool {
        tool: &'a Tool,
        container: &'a Container,
        /// A pidfd of the container's first process.
        init: BorrowedFd<'a>,
        /// That process runs, rather than waits for its start.
        is_started: bool,
    },
}

impl Work<'_> {
    fn has_terminal(&self) -> bool {
        matches!(self, Self::Process { process, .. } if process.terminal.is_some())
    }

    /// The child's whole life.
    fn run(&self, ends: &ProcessEnds, null: BorrowedFd<'_>, report: BorrowedFd<'_>) -> ! {
        match self {
            Self::Process { process, role } => {
                child::run(&Task { process, role, ends, null, report })
            }
            Self::Tool { tool, container, init, is_started } => {
                let (init, is_started) = (*init, *is_started);
                tool::run(&tool::Task { tool, container, init, is_started, ends, report })
            }
        }
    }
}

/// Where the plan puts something over the root filesystem.
fn mount_points(plan: &ContainerPlan) -> Vec<String> {
    let mounts = plan.mounts.iter().map(|mount| mount.destination.as_str());
    let files = plan.files.iter().map(|file| file.path.as_str());
    mounts.chain(files).map(clean).collect()
}

fn namespace_flags(plan: &ContainerPlan) -> u64 {
    let mut flags = libc::CLONE_NEWNS;
    for (wanted, flag) in [
        (plan.namespaces.pid == PidNamespace::Own, libc::CLONE_NEWPID),
        (plan.namespaces.ipc, libc::CLONE_NEWIPC),
        (plan.namespaces.uts, libc::CLONE_NEWUTS),
        (plan.namespaces.network, libc::CLONE_NEWNET),
    ] {
        flags |= if wanted { flag } else { 0 };
    }
    // A sign extension would set bits that mean something else.
    u64::from(flags as u32)
}

/// Children of the agent are born in another pid namespace while this exists.
struct PidVisit(OwnedFd);

impl PidVisit {
    fn begin(runtime: &Runtime, init: &OwnedFd) -> std::io::Result<Self> {
        let home = runtime.own_pid_namespace.try_clone()?;
        sys::setns(init.as_fd(), libc::CLONE_NEWPID)?;
        Ok(Self(home))
    }
}

impl Drop for PidVisit {
    fn drop(&mut self) {
        // The agent's own namespace exists as long as the agent; a failure would put
        // later children into a foreign one, which must not go unseen.
        sys::setns(self.0.as_fd(), libc::CLONE_NEWPID)
            .expect("a process can return to its own pid namespace");
    }
}
