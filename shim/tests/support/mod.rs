//! A sandbox without a VM: an agent that runs the plan's processes on this host, behind
//! the same socket protocol.

pub mod engine;
mod fake_agent;
pub mod host;

use std::{
    fs, io,
    os::unix::net::UnixStream as StdUnixStream,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use caisson_shim::{
    agent_client::{AgentClient, Deadlines},
    cgroup::{CgroupError, CpuLimits},
    client::RootfsMount,
    container::CreateRequest,
    events::{BoxedEvent, EventSink},
    kind::ErrorKind,
    rootfs::Source,
    sandbox::{Cancelled, End, LaunchError, Launcher, Sandbox, SandboxSpec},
    service::Service,
    stdio::StdioSpec,
};
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
};

pub use fake_agent::Behaviour;
use fake_agent::{FakeAgent, Streams};

pub const DEADLINE: Duration = Duration::from_millis(400);

/// Launches fake sandboxes and remembers them.
#[derive(Clone, Default)]
pub struct FakeLauncher {
    pub behaviour: Behaviour,
    pub launched: Arc<Mutex<Vec<Arc<FakeSandbox>>>>,
    /// How long a launch takes.
    pub delay: Duration,
}

pub struct FakeSandbox {
    agent: AgentClient,
    streams: Streams,
    control: StdUnixStream,
    end: watch::Sender<Option<End>>,
}

#[async_trait]
impl Launcher for FakeLauncher {
    async fn launch(
        &self,
        _: SandboxSpec,
        mut cancelled: Cancelled,
    ) -> Result<Arc<dyn Sandbox>, LaunchError> {
        tokio::select! {
            () = tokio::time::sleep(self.delay) => {}
            () = cancelled.cancelled() => {
                return Err(LaunchError {
                    kind: ErrorKind::Cancelled,
                    message: "cancelled".into(),
                    source: None,
                });
            }
        }
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let control = ours.try_clone().unwrap();
        let streams = Streams::default();
        let end = watch::Sender::new(None);
        let at_end = end.clone();
        FakeAgent::serve(theirs, streams.clone(), self.behaviour, move || {
            set_end(&at_end, "the guest has shut down");
        });
        ours.set_nonblocking(true).unwrap();
        let deadlines = Deadlines { prepare: DEADLINE, call: DEADLINE };
        let ours = UnixStream::from_std(ours).unwrap();
        let (agent, _) =
            AgentClient::accept(ours, deadlines).await.map_err(|error| LaunchError {
                kind: ErrorKind::BootFailed,
                message: "no agent".into(),
                source: Some(Box::new(error)),
            })?;
        let sandbox = Arc::new(FakeSandbox { agent, streams, control, end });
        self.launched.lock().unwrap().push(sandbox.clone());
        Ok(sandbox)
    }
}

impl FakeLauncher {
    pub fn sandbox(&self) -> Arc<FakeSandbox> {
        self.launched.lock().unwrap().last().expect("a sandbox was launched").clone()
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    fn agent(&self) -> &AgentClient {
        &self.agent
    }

    fn pid(&self) -> u32 {
        4711
    }

    async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let stream = self.streams.lock().unwrap().remove(&port);
        let stream = stream.ok_or(io::ErrorKind::ConnectionRefused)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    }

    fn limit_cpu(&self, _: &CpuLimits) -> Result<(), CgroupError> {
        Ok(())
    }

    fn kill(&self, reason: &str) {
        set_end(&self.end, reason);
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }

    async fn ended(&self) -> End {
        let mut end = self.end.subscribe();
        let end = end.wait_for(Option::is_some).await.unwrap();
        end.clone().unwrap()
    }
}

fn set_end(end: &watch::Sender<Option<End>>, reason: &str) {
    end.send_if_modified(|end| {
        let first = end.is_none();
        end.get_or_insert(End { reason: reason.to_owned(), oom_killed: false });
        first
    });
}

/// A shim with a fake launcher, and a bundle to run.
pub struct Fixture {
    pub service: Arc<Service>,
    pub launcher: FakeLauncher,
    pub events: mpsc::UnboundedReceiver<BoxedEvent>,
    pub directory: tempfile::TempDir,
}

impl Fixture {
    pub fn new() -> Self {
        Self::with(FakeLauncher::default())
    }

    pub fn with(launcher: FakeLauncher) -> Self {
        let (sink, events) = EventSink::channel();
        let directory = tempfile::tempdir().unwrap();
        let source = Source { root: directory.path().join("root") };
        let service = Service::new(launcher.clone(), source, sink);
        Self { service, launcher, events, directory }
    }

    /// A bundle whose process is `sh -c script`.
    pub fn request(&self, id: &str, script: &str) -> CreateRequest {
        self.request_with(id, &["sh", "-c", script])
    }

    pub fn request_with(&self, id: &str, args: &[&str]) -> CreateRequest {
        let bundle = self.directory.path().join(id);
        fs::create_dir_all(&bundle).unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.1.0",
            "root": { "path": "rootfs" },
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": args,
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
            },
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let image = bundle.join("layer.erofs");
        fs::write(&image, [0; 4096]).unwrap();
        let rootfs = vec![RootfsMount {
            fstype: "erofs".into(),
            source: image.to_str().unwrap().into(),
            options: vec![],
        }];
        let output = |name: &str| format!("file://{}", bundle.join(name).display());
        let stdio =
            StdioSpec { stdout: output("stdout"), stderr: output("stderr"), ..Default::default() };
        CreateRequest { id: id.into(), bundle, rootfs, stdio }
    }

    pub fn output(&self, id: &str, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(id).join(name)).unwrap()
    }

    /// The topics of all events so far.
    pub fn topics(&mut self) -> Vec<String> {
        let mut topics = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            topics.push(event.topic().trim_start_matches("/tasks/").to_owned());
        }
        topics
    }
}

/// An exec's process as the Task API carries it.
pub fn process_json(script: &str) -> Vec<u8> {
    serde_json::json!({
        "user": { "uid": 0, "gid": 0 },
        "args": ["sh", "-c", script],
        "env": ["PATH=/usr/bin:/bin"],
        "cwd": "/",
    })
    .to_string()
    .into_bytes()
}

pub fn make_fifo(path: &Path) {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path is a NUL-terminated string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
}
