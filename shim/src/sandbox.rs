//! What a container needs of the VM it runs in.
//!
//! Two implementations: [`crate::vm`] spawns the vmm; the tests' fake serves an agent
//! over Unix sockets, so that a container's life can be tested without KVM.

use std::{fs::File, io, path::PathBuf, sync::Arc};

use async_trait::async_trait;
use caisson_vmm::config::RateLimit;
use tokio::{net::UnixStream, sync::watch};

use crate::{
    agent_client::AgentClient,
    cgroup::{CgroupError, CgroupPlan, CpuLimits},
    kind::ErrorKind,
    network::Network,
    rootfs::Rootfs,
};

/// Starts sandboxes.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    /// Boots a VM and waits until its agent serves. After an error, and when it is
    /// cancelled, nothing of the VM is left.
    async fn launch(
        &self,
        spec: SandboxSpec,
        cancelled: Cancelled,
    ) -> Result<Arc<dyn Sandbox>, LaunchError>;
}

/// A VM whose agent serves. It lives until it is killed or ends.
#[async_trait]
pub trait Sandbox: Send + Sync + 'static {
    fn agent(&self) -> &AgentClient;

    /// The pid on the host of the process that is the VM.
    fn pid(&self) -> u32;

    /// A stream to a port on which the agent listens.
    async fn connect(&self, port: u32) -> io::Result<UnixStream>;

    /// Changes what CPU time of the host the VM may take, where the host limits it.
    fn limit_cpu(&self, limits: &CpuLimits) -> Result<(), CgroupError>;

    /// Ends the VM at once, for this reason. The first reason counts.
    fn kill(&self, reason: &str);

    /// Resolves when the VM has ended and nothing of it is left on the host.
    async fn ended(&self) -> End;
}

/// Becomes true when nobody wants the VM any more.
#[derive(Clone, Debug)]
pub struct Cancelled(watch::Receiver<bool>);

impl Cancelled {
    /// The flag, and what raises it.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Resolves when it is cancelled.
    pub async fn cancelled(&mut self) {
        if self.0.wait_for(|&cancelled| cancelled).await.is_err() {
            // Nobody is left who could.
            std::future::pending().await
        }
    }
}

/// The VM to boot.
#[derive(Debug)]
pub struct SandboxSpec {
    pub id: String,
    /// Sockets, the journal and the console's log go here.
    pub bundle: PathBuf,
    pub size: VmSize,
    /// What the VM may take of the host.
    pub cgroup: CgroupPlan,
    /// How likely the host's OOM killer is to choose it, -1000 to 1000.
    pub oom_score_adj: i32,
    /// The images of its block devices, open.
    pub rootfs: Rootfs,
    pub shares: Vec<Share>,
    /// An engine's, whose interfaces become the guest's.
    pub network: Option<Network>,
    /// The guest may send from any address, not only from those of its interfaces.
    pub any_address: bool,
}

/// A directory or a file of the host that the guest sees.
#[derive(Debug)]
pub struct Share {
    /// Opened with O_PATH.
    pub source: File,
    pub readonly: bool,
    /// With what is mounted below it.
    pub recursive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmSize {
    pub vcpus: u8,
    pub memory_mib: u32,
    /// Of all its disks together.
    pub disk_limit: RateLimit,
}

/// Why a VM is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    pub reason: String,
    /// The host's OOM killer ended it.
    pub oom_killed: bool,
}

/// A VM that did not come to serve.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct LaunchError {
    pub kind: ErrorKind,
    /// The stage reached, the vmm's end and the console's tail, for the user.
    pub message: String,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}
