//! The CLI's side of the Task API: start a shim for one container and call it.
//!
//! Blocking, without a runtime; each method is one call. A [`ShimClient`] may be shared
//! between threads, so that one waits while another sends signals.

mod spawn;

use std::{
    fs, io,
    os::fd::IntoRawFd,
    path::{Path, PathBuf},
    time::Duration,
};

use caisson_agent_protocol::{Stats, Tool};
use containerd_shim::protos::{
    api, protobuf::well_known_types::any::Any, shim_sync::Client, shim_sync::TaskClient, ttrpc,
    ttrpc::context::Context, types::mount::Mount,
};

use crate::{
    assets::AssetError,
    exit::Exit,
    kind::{self, ErrorKind},
    metrics,
    task::{GUEST_PIDS, TOOL_TYPE},
    unix_path,
};

pub use spawn::SpawnSpec;
use spawn::{log_tail, spawn_serve};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("start a shim for {id}")]
    Asset { id: String, source: AssetError },
    #[error("{action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The shim refused or failed the call.
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
    /// The shim is not there, or went away during the call.
    #[error("the shim of {id} went away: {message}{log}")]
    Gone { id: String, message: String, log: String },
    #[error("the shim's reply to {call} cannot be read")]
    Reply { call: &'static str },
}

impl ClientError {
    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Gone { .. } => ErrorKind::SandboxLost,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                ErrorKind::NotFound
            }
            Self::Asset { .. } | Self::Io { .. } | Self::Reply { .. } => ErrorKind::Internal,
        }
    }
}

/// A root filesystem mount in containerd's shape (docs/architecture.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsMount {
    pub fstype: String,
    pub source: String,
    pub options: Vec<String>,
}

/// FIFO paths or URIs of a process's standard streams; empty is `/dev/null`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

#[derive(Clone, Debug)]
pub struct CreateSpec {
    pub rootfs: Vec<RootfsMount>,
    pub stdio: Stdio,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Unknown,
    Created,
    Running,
    Stopped,
    Paused,
}

#[derive(Clone, Debug)]
pub struct State {
    pub status: Status,
    /// The vmm's pid on the host.
    pub pid: u32,
    /// Meaningful when stopped.
    pub exit_code: u8,
}

/// A connection to the shim of one container.
#[derive(Clone)]
pub struct ShimClient {
    task: TaskClient,
    id: String,
    bundle: PathBuf,
    socket: PathBuf,
}

impl ShimClient {
    /// Binds the socket, starts a shim on it in a session of its own, and connects.
    pub fn spawn(spec: &SpawnSpec<'_>) -> Result<Self, ClientError> {
        let program = spec
            .assets
            .shim()
            .map_err(|source| ClientError::Asset { id: spec.id.to_owned(), source })?;
        if let Some(parent) = spec.socket.parent() {
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        }
        let listener = unix_path::bind(spec.socket).map_err(io_error("listen on", spec.socket))?;
        let started = spawn_serve(&program, spec, &listener);
        if started.is_err() {
            let _ = fs::remove_file(spec.socket);
        }
        started?;
        Self::connect(spec.socket, spec.id, spec.bundle)
    }

    /// Connects to the shim of container `id` that listens at `socket`.
    pub fn connect(socket: &Path, id: &str, bundle: &Path) -> Result<Self, ClientError> {
        let stream = unix_path::connect(socket).map_err(io_error("connect to", socket))?;
        let client = Client::new(stream.into_raw_fd()).map_err(|error| ClientError::Gone {
            id: id.to_owned(),
            message: error.to_string(),
            log: String::new(),
        })?;
        Ok(Self {
            task: TaskClient::new(client),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            socket: socket.to_owned(),
        })
    }

    /// Boots the VM and prepares the container; the vmm's pid.
    pub fn create(&self, spec: &CreateSpec) -> Result<u32, ClientError> {
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs: spec.rootfs.iter().map(to_mount).collect(),
            terminal: spec.stdio.terminal,
            stdin: spec.stdio.stdin.clone(),
            stdout: spec.stdio.stdout.clone(),
            stderr: spec.stdio.stderr.clone(),
            ..Default::default()
        };
        self.done(self.task.create(forever(), &request)).map(|reply| reply.pid)
    }

    /// Starts the container's process, or a prepared exec.
    pub fn start(&self, exec: Option<&str>) -> Result<u32, ClientError> {
        let request =
            api::StartRequest { id: self.id.clone(), exec_id: exec_id(exec), ..Default::default() };
        self.done(self.task.start(forever(), &request)).map(|reply| reply.pid)
    }

    /// Blocks until the process has ended and its output is delivered.
    pub fn wait(&self, exec: Option<&str>) -> Result<Exit, ClientError> {
        let request =
            api::WaitRequest { id: self.id.clone(), exec_id: exec_id(exec), ..Default::default() };
        let reply = self.done(self.task.wait(forever(), &request))?;
        Ok(self.exit(exec, reply.exit_status, &reply.exited_at))
    }

    /// Sends `signal`, with `all` to every process of the container.
    pub fn kill(&self, exec: Option<&str>, signal: u32, all: bool) -> Result<(), ClientError> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec_id(exec),
            signal,
            all,
            ..Default::default()
        };
        self.done(self.task.kill(forever(), &request)).map(drop)
    }

    /// Prepares a further process; `process` is the runtime-spec's `Process`.
    pub fn exec(
        &self,
        exec: &str,
        process: &oci_spec::runtime::Process,
        stdio: &Stdio,
    ) -> Result<(), ClientError> {
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: stdio.terminal,
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(json_any("Process", process)?).into(),
            ..Default::default()
        };
        self.done(self.task.exec(forever(), &request)).map(drop)
    }

    /// Prepares a tool's work on the container's files or processes, as [`Self::exec`] does
    /// a process; also in a container that is created and not started.
    pub fn tool(&self, exec: &str, tool: &Tool, stdio: &Stdio) -> Result<(), ClientError> {
        let spec = Any { type_url: TOOL_TYPE.to_owned(), ..json_any("Tool", tool)? };
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        self.done(self.task.exec(forever(), &request)).map(drop)
    }

    pub fn resize(&self, exec: Option<&str>, columns: u16, rows: u16) -> Result<(), ClientError> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec_id(exec),
            width: columns.into(),
            height: rows.into(),
            ..Default::default()
        };
        self.done(self.task.resize_pty(forever(), &request)).map(drop)
    }

    /// Ends standard input once every writer of its FIFO has closed it.
    pub fn close_stdin(&self, exec: Option<&str>) -> Result<(), ClientError> {
        let request = api::CloseIORequest {
            id: self.id.clone(),
            exec_id: exec_id(exec),
            stdin: true,
            ..Default::default()
        };
        self.done(self.task.close_io(forever(), &request)).map(drop)
    }

    pub fn state(&self, exec: Option<&str>) -> Result<State, ClientError> {
        let request =
            api::StateRequest { id: self.id.clone(), exec_id: exec_id(exec), ..Default::default() };
        let reply = self.done(self.task.state(forever(), &request))?;
        let status = match reply.status() {
            api::Status::CREATED => Status::Created,
            api::Status::RUNNING => Status::Running,
            api::Status::STOPPED => Status::Stopped,
            api::Status::PAUSED | api::Status::PAUSING => Status::Paused,
            api::Status::UNKNOWN => Status::Unknown,
        };
        Ok(State { status, pid: reply.pid, exit_code: exit_code(reply.exit_status) })
    }

    pub fn stats(&self) -> Result<Stats, ClientError> {
        let request = api::StatsRequest { id: self.id.clone(), ..Default::default() };
        let reply = self.done(self.task.stats(forever(), &request))?;
        metrics::from_any(&reply.stats).ok_or(ClientError::Reply { call: "Stats" })
    }

    /// The pids of the container's processes, as the guest numbers them.
    pub fn pids(&self) -> Result<Vec<u32>, ClientError> {
        let request = api::PidsRequest { id: self.id.clone(), ..Default::default() };
        let mut context = forever();
        let (name, value) = GUEST_PIDS;
        context.add(name.to_owned(), value.to_owned());
        let reply = self.done(self.task.pids(context, &request))?;
        Ok(reply.processes.iter().map(|process| process.pid).collect())
    }

    pub fn pause(&self) -> Result<(), ClientError> {
        let request = api::PauseRequest { id: self.id.clone(), ..Default::default() };
        self.done(self.task.pause(forever(), &request)).map(drop)
    }

    pub fn resume(&self) -> Result<(), ClientError> {
        let request = api::ResumeRequest { id: self.id.clone(), ..Default::default() };
        self.done(self.task.resume(forever(), &request)).map(drop)
    }

    /// Changes limits while the container runs.
    pub fn update(&self, resources: &oci_spec::runtime::LinuxResources) -> Result<(), ClientError> {
        let request = api::UpdateTaskRequest {
            id: self.id.clone(),
            resources: Some(json_any("LinuxResources", resources)?).into(),
            ..Default::default()
        };
        self.done(self.task.update(forever(), &request)).map(drop)
    }

    /// Forgets an ended (or never started) process; for `None` the whole container and
    /// its VM.
    pub fn delete(&self, exec: Option<&str>) -> Result<Exit, ClientError> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec_id(exec),
            ..Default::default()
        };
        let reply = self.done(self.task.delete(forever(), &request))?;
        Ok(self.exit(exec, reply.exit_status, &reply.exited_at))
    }

    /// Ends the shim, with `now` also whatever still runs in it, and removes its socket.
    pub fn shutdown(&self, now: bool) -> Result<(), ClientError> {
        let request = api::ShutdownRequest { id: self.id.clone(), now, ..Default::default() };
        match self.done(self.task.shutdown(forever(), &request)) {
            // It may be gone before the reply is.
            Ok(_) | Err(ClientError::Gone { .. }) => {}
            Err(error) => return Err(error),
        }
        match fs::remove_file(&self.socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &self.socket)(error))
            }
            _ => Ok(()),
        }
    }

    /// The pids of the shim and of the vmm.
    pub fn host_pids(&self) -> Result<(u32, u32), ClientError> {
        let request = api::ConnectRequest { id: self.id.clone(), ..Default::default() };
        let reply = self.done(self.task.connect(forever(), &request))?;
        Ok((reply.shim_pid, reply.task_pid))
    }

    fn exit(
        &self,
        exec: Option<&str>,
        status: u32,
        at: &containerd_shim::protos::protobuf::MessageField<
            containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp,
        >,
    ) -> Exit {
        // The record in the bundle knows more: the OOM flag and a reason.
        if exec.is_none()
            && let Ok(Some(exit)) = Exit::load(&self.bundle)
            && u32::from(exit.code) == status
        {
            return exit;
        }
        let mut exit = Exit::now(exit_code(status));
        if let Some(at) = at.as_ref() {
            let seconds = u64::try_from(at.seconds).unwrap_or(0);
            let nanos = u64::try_from(at.nanos).unwrap_or(0);
            exit.at_unix_nanos = seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        }
        exit
    }

    fn done<T>(&self, result: ttrpc::Result<T>) -> Result<T, ClientError> {
        result.map_err(|error| match error {
            ttrpc::Error::RpcStatus(status) => ClientError::Refused {
                kind: kind::of_status(&status),
                message: status.message().to_owned(),
            },
            other => ClientError::Gone {
                id: self.id.clone(),
                message: other.to_string(),
                log: log_tail(&self.bundle),
            },
        })
    }
}

/// Calls without a deadline of their own: the shim has one for everything it awaits.
fn forever() -> Context {
    ttrpc::context::with_duration(Duration::ZERO)
}

fn exec_id(exec: Option<&str>) -> String {
    exec.unwrap_or_default().to_owned()
}

fn exit_code(status: u32) -> u8 {
    u8::try_from(status).unwrap_or(u8::MAX)
}

fn to_mount(mount: &RootfsMount) -> Mount {
    Mount {
        type_: mount.fstype.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
        ..Default::default()
    }
}

fn json_any<T: serde::Serialize>(name: &str, value: &T) -> Result<Any, ClientError> {
    Ok(Any {
        type_url: format!("types.containerd.io/opencontainers/runtime-spec/1/{name}"),
        value: serde_json::to_vec(value).map_err(|error| ClientError::Refused {
            kind: ErrorKind::InvalidArgument,
            message: format!("the {name} cannot be written as JSON: {error}"),
        })?,
        ..Default::default()
    })
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> ClientError + use<'a> {
    move |source| ClientError::Io { action, path: path.to_owned(), source }
}
