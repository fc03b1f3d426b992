//! What the agent holds: containers, processes, disks, and the messages that wait to be
//! sent. The calls are in [`crate::calls`], creation in [`crate::container`], and what
//! happens by itself (reports, exits, deadlines) in [`crate::lifecycle`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    time::Instant,
};

use caisson_agent_protocol::{
    AgentError, ErrorKind, Event, FromAgent, Outcome,
    plan::{DeviceRule, Extent},
};

use crate::{
    cgroup::Cgroup,
    disk::Disks,
    error::{At, OsError, wire},
    process::Process,
    relay::CHUNK_BYTES,
    rootfs::RootDevices,
    transport::Transport,
    watch::{Key, Watch},
};

/// What differs between a VM and a test.
pub struct Config {
    /// Where the cgroup2 hierarchy is mounted.
    pub cgroup_root: PathBuf,
    pub transport: Box<dyn Transport>,
    /// Finds the block devices, when the first container needs them.
    pub disks: Box<dyn Fn() -> Result<Disks, OsError>>,
}

#[derive(Debug)]
pub struct Container {
    pub cgroup: Cgroup,
    /// Which devices it may use, from when its first process is ready: that one opens
    /// disks that no process of the image may.
    pub devices: Vec<DeviceRule>,
    /// What it holds of the disks, and where.
    pub extents: Vec<Extent>,
    pub roots: RootDevices,
    /// Where something is mounted in its root filesystem.
    pub mount_points: Vec<String>,
    /// Its first process.
    pub init: Key,
    pub execs: BTreeMap<String, Key>,
    /// OOM kills that were reported.
    pub oom_kills: u64,
}

/// A container on its way out: the call that waits for it, and what that will be told.
#[derive(Debug)]
pub struct Removal {
    pub id: String,
    pub container: Container,
    pub request: u64,
    pub result: Result<Outcome, AgentError>,
    pub deadline: Instant,
}

pub struct Runtime {
    pub(crate) config: Config,
    pub(crate) watch: Watch,
    pub(crate) disks: Option<Disks>,
    pub(crate) containers: BTreeMap<String, Container>,
    pub(crate) processes: HashMap<Key, Process>,
    pub(crate) pids: HashMap<i32, Key>,
    pub(crate) removals: Vec<Removal>,
    /// Processes whose relays have more to do at once.
    pub(crate) busy: BTreeSet<Key>,
    /// The call that waits for the end of everything, and until when.
    pub(crate) shutdown: Option<(u64, Instant)>,
    pub(crate) outbox: Vec<FromAgent>,
    pub(crate) scratch: Box<[u8; CHUNK_BYTES]>,
    pub(crate) null: OwnedFd,
    /// To come back to after forking into another pid namespace.
    pub(crate) own_pid_namespace: OwnedFd,
    next_key: Key,
}

impl Runtime {
    pub fn new(config: Config) -> Result<Self, OsError> {
        let null = File::options().read(true).write(true).open("/dev/null");
        let own = File::open("/proc/self/ns/pid").at(|| "open the agent's pid namespace")?;
        Ok(Self {
            config,
            watch: Watch::new().at(|| "make an epoll instance")?,
            disks: None,
            containers: BTreeMap::new(),
            processes: HashMap::new(),
            pids: HashMap::new(),
            removals: Vec::new(),
            busy: BTreeSet::new(),
            shutdown: None,
            outbox: Vec::new(),
            scratch: Box::new([0; CHUNK_BYTES]),
            null: null.at(|| "open /dev/null")?.into(),
            own_pid_namespace: own.into(),
            next_key: 1,
        })
    }

    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Takes the messages that are to be sent, oldest first.
    pub fn take_messages(&mut self) -> Vec<FromAgent> {
        std::mem::take(&mut self.outbox)
    }

    pub(crate) fn reply(&mut self, id: u64, result: Result<Outcome, AgentError>) {
        self.outbox.push(FromAgent::Reply { id, result });
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.outbox.push(FromAgent::Event(event));
    }

    pub(crate) fn new_key(&mut self) -> Key {
        self.next_key += 1;
        self.next_key - 1
    }

    pub(crate) fn container(&self, id: &str) -> Result<&Container, AgentError> {
        self.containers
            .get(id)
            .ok_or_else(|| wire(ErrorKind::NotFound, format!("no container {id:?}")))
    }

    /// The key of the process that a call names.
    pub(crate) fn key(&self, container: &str, exec: Option<&str>) -> Result<Key, AgentError> {
        let found = self.container(container)?;
        let Some(exec) = exec else { return Ok(found.init) };
        found.execs.get(exec).copied().ok_or_else(|| {
            let message = format!("no exec {exec:?} in container {container:?}");
            wire(ErrorKind::NotFound, message)
        })
    }

    /// The process `key`, which a container names.
    pub(crate) fn process(&mut self, key: Key) -> &mut Process {
        self.processes.get_mut(&key).expect("a key in a container names a process")
    }

    pub(crate) fn disks(&mut self) -> Result<&mut Disks, OsError> {
        if self.disks.is_none() {
            self.disks = Some((self.config.disks)()?);
        }
        Ok(self.disks.as_mut().expect("just set"))
    }

    /// Moves the bytes of process `key`.
    pub(crate) fn pump(&mut self, key: Key) -> bool {
        let Some(process) = self.processes.get_mut(&key) else {
            self.busy.remove(&key);
            return false;
        };
        let watch = &self.watch;
        let turn = process.stdio.pump(
            &*self.config.transport,
            &mut |fd| watch.add(fd, crate::watch::Wake::Stream(key)),
            &mut self.scratch,
        );
        if turn.again {
            self.busy.insert(key);
        } else {
            self.busy.remove(&key);
        }
        turn.progress
    }
}

/// Sends `signal` to a child that is not yet reaped.
pub(crate) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    crate::sys::check(unsafe { libc::kill(pid, signal) }).map(drop)
}
