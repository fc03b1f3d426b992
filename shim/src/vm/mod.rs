//! The real sandbox: a vmm process and what the host keeps for it.
//!
//! ```text
//!   launch ── spawn ──► supervise task ── until the vmm has ended ──► everything removed
//!     │                   ▲ kill requests, control events
//!     └─ waits for the agent, or the end, or the deadline
//! ```
//!
//! The supervise task owns the processes, their cgroup, user id, sockets and the journal; they
//! are freed in one place, whatever the reason.

mod boot;
mod child;
mod cmdline;
mod console;
mod file_server;
mod journal;
mod lease;
mod monitor;
mod spawn;
mod supervise;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use caisson_failpoints::{hit, pass, steps};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
    time::timeout,
};

use crate::{
    agent_client::AgentClient,
    assets::Assets,
    cgroup::{self, Cgroup, CgroupError, CpuLimits},
    host_process::HostProcess,
    kind::ErrorKind,
    network::NetworkError,
    sandbox::{Cancelled, End, LaunchError, Launcher, Sandbox, SandboxSpec},
    stages, unix_path,
};
use console::Ring;
use file_server::Started;
use journal::Journal;
use lease::UidLease;
use supervise::{Owned, Watched};

pub use file_server::max_open_files;
pub use journal::{ReapError, reap};

/// The console's log in the bundle.
pub const CONSOLE_LOG: &str = "console.log";

/// How long the vmm and the agent may take to open a stream.
const CONNECT_GRACE: Duration = Duration::from_secs(20);

/// Boots VMs on this host.
#[derive(Clone, Debug)]
pub struct VmLauncher {
    pub assets: Assets,
    /// `--state`: user ids are leased here.
    pub state: PathBuf,
}

struct VmSandbox {
    agent: AgentClient,
    pid: u32,
    bundle: PathBuf,
    vm: Arc<Watched>,
    cgroup: Arc<Cgroup>,
}

#[async_trait]
impl Launcher for VmLauncher {
    async fn launch(
        &self,
        mut spec: SandboxSpec,
        cancelled: Cancelled,
    ) -> Result<Arc<dyn Sandbox>, LaunchError> {
        let parts = spawn::Parts::open(&self.assets, &spec)?;
        let (spawned, owned, shares_ready) = self.start(&parts, &mut spec)?;
        let cgroup = owned.cgroup.clone();
        let pid = spawned.child.id();
        stages::stamp("shim", "vmm_spawned");

        let ring = Ring::default();
        let complaints = Ring::default();
        let log = console::open_log(&spec.bundle.join(CONSOLE_LOG));
        let pipes = [
            tokio::spawn(console::drain(spawned.console, ring.clone(), log)),
            tokio::spawn(console::drain(spawned.stderr, complaints.clone(), None)),
        ];
        let vm = Arc::new(Watched::new(ring, complaints));
        let started = (|| {
            spawned.control.set_nonblocking(true)?;
            spawned.agent.set_nonblocking(true)?;
            let control = UnixStream::from_std(spawned.control)?;
            let agent = UnixStream::from_std(spawned.agent)?;
            supervise::start(spawned.child, control, owned, vm.clone(), pipes)?;
            Ok::<_, io::Error>(agent)
        })();
        let agent = started.map_err(failed("watch the vmm"))?;
        let booted = async {
            let agent = boot::await_agent(agent, &vm, cancelled).await?;
            pass(&steps::SHIM_VM_AGENT_READY);
            if let Some(ready) = shares_ready {
                ready.wait().await?;
            }
            cgroup.limit_cpu(spec.cgroup.cpu()).map_err(no_cgroup)?;
            Ok(agent)
        };
        match booted.await {
            Ok(agent) => Ok(Arc::new(VmSandbox { agent, pid, bundle: spec.bundle, vm, cgroup })),
            Err(error) => {
                vm.kill("it did not boot");
                vm.ended().await;
                Err(error)
            }
        }
    }
}

impl VmLauncher {
    /// Everything that changes the host, journalled before.
    fn start(
        &self,
        parts: &spawn::Parts,
        spec: &mut SandboxSpec,
    ) -> Result<(spawn::Spawned, Owned, Option<file_server::Ready>), LaunchError> {
        let lease = if is_root() {
            let lease = UidLease::take(&self.state, &spec.id);
            Some(lease.map_err(failed("take a user id for the VM"))?)
        } else if parts.file_server.is_some() {
            let message = "directories of the host are served by a process that only root can confine; run as root, or without them".to_owned();
            return Err(LaunchError { kind: ErrorKind::Unsupported, message, source: None });
        } else {
            log::warn!("not root: the vmm runs as this user, without its jail");
            None
        };
        let mut journal = Journal::new(&spec.id, lease.as_ref().map(|lease| lease.uid));
        let host = cgroup::Host::detect().map_err(failed("look for cgroups"))?;
        journal.cgroup = spec.cgroup.place(&host);
        journal.network = spec.network.as_ref().and_then(|it| it.place(mark(&spec.bundle)));
        // Dropped on every error from here on, it removes what is there by then.
        let mut owned = Owned::new(spec.bundle.clone(), lease, &journal);
        journal.save(&spec.bundle).map_err(failed("write the VM's journal"))?;
        let listener = listen(&spec.bundle).map_err(failed("listen for the VM's streams"))?;
        let made = Cgroup::create(&host, &spec.cgroup, &journal.cgroup);
        owned.cgroup = Arc::new(made.map_err(no_cgroup)?);
        let cgroup = owned.cgroup.clone();
        hit(&steps::SHIM_VM_CGROUP).map_err(failed("make the VM's cgroup"))?;
        // Neither the namespace nor the taps stay with the shim.
        let mut taps = Vec::new();
        if let Some(network) = spec.network.take() {
            let connected = network.connect(mark(&spec.bundle)).map_err(no_network)?;
            (taps, owned.on_bridge) = (connected.taps, connected.kept);
        }
        let (mut socket, mut ready) = (None, None);
        if let Some(program) = &parts.file_server {
            let entrances = cgroup.entrances().map_err(no_cgroup)?;
            let started = file_server::start(program, spec, entrances);
            let started: Started = started.map_err(failed("start the file server"))?;
            owned.file_server = Some(started.server);
            (socket, ready) = (Some(started.socket), Some(started.ready));
        }
        let uid = journal.uid;
        let entrances = cgroup.entrances().map_err(no_cgroup)?;
        let mut spawned = spawn::spawn(parts, spec, &listener, &taps, uid, entrances, socket)
            .map_err(failed("start the vmm"))?;
        let noted = hit(&steps::SHIM_VM_SPAWNED).and_then(|()| {
            journal.vmm = Some(HostProcess::of(spawned.child.id())?);
            let server = owned.file_server.as_ref();
            journal.file_server = server.map(|server| HostProcess::of(server.pid())).transpose()?;
            journal.save(&spec.bundle)
        });
        if let Err(error) = noted {
            let _ = spawned.child.kill();
            let _ = spawned.child.wait();
            return Err(failed("write the VM's journal")(error));
        }
        Ok((spawned, owned, ready))
    }
}

fn listen(bundle: &Path) -> io::Result<StdUnixListener> {
    hit(&steps::SHIM_VM_LISTEN)?;
    unix_path::bind(&bundle.join(journal::VSOCK_SOCKET))
}

fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Bundles are unique on the host; ids only for one engine.
fn mark(bundle: &Path) -> u16 {
    let mut hasher = DefaultHasher::new();
    bundle.hash(&mut hasher);
    hasher.finish() as u16 | 1
}

fn no_network(source: NetworkError) -> LaunchError {
    let message = "give the VM its network".to_owned();
    LaunchError { kind: source.kind(), message, source: Some(Box::new(source)) }
}

fn no_cgroup(source: CgroupError) -> LaunchError {
    let kind = match &source {
        CgroupError::NoController { .. } | CgroupError::NoFile { .. } => ErrorKind::Unsupported,
        CgroupError::InUse { .. } => ErrorKind::FailedPrecondition,
        _ => ErrorKind::BootFailed,
    };
    let message = "limit what the VM may take of the host".to_owned();
    LaunchError { kind, message, source: Some(Box::new(source)) }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError {
        kind: match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
            _ => ErrorKind::BootFailed,
        },
        message: action.to_owned(),
        source: Some(Box::new(source)),
    }
}

#[async_trait]
impl Sandbox for VmSandbox {
    fn agent(&self) -> &AgentClient {
        &self.agent
    }

    fn pid(&self) -> u32 {
        self.pid
    }

    async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let socket = self.bundle.join(journal::VSOCK_SOCKET);
        match timeout(CONNECT_GRACE, connect(&socket, port)).await {
            Ok(connected) => connected,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the guest does not accept it")),
        }
    }

    fn limit_cpu(&self, limits: &CpuLimits) -> Result<(), CgroupError> {
        self.cgroup.limit_cpu(limits)
    }

    fn kill(&self, reason: &str) {
        self.vm.kill(reason);
    }

    async fn ended(&self) -> End {
        self.vm.ended().await
    }
}

/// Connects through the vmm: `CONNECT <port>\n`, answered by `OK <host port>\n`.
async fn connect(socket: &Path, port: u32) -> io::Result<UnixStream> {
    let (_directory, short) = unix_path::shorten(socket)?;
    let mut stream = UnixStream::connect(short).await?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line belongs to the stream.
    while answer.last() != Some(&b'\n') {
        let byte = stream.read_u8().await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::ErrorKind::ConnectionRefused.into(),
            _ => error,
        })?;
        answer.push(byte);
        if answer.len() > 32 {
            break;
        }
    }
    if answer.starts_with(b"OK ") && answer.ends_with(b"\n") {
        return Ok(stream);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the vmm's answer is none"))
}

/// An end that everyone may wait for.
type EndWatch = watch::Sender<Option<End>>;
