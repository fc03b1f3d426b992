//! The Task API (containerd's `containerd.task.v2`) over [`Service`].
//!
//! Each method translates, calls, and translates back. ttrpc drops a handler when its
//! connection goes, so whatever changes something runs in a task of its own: an engine
//! that dies half-way leaves no container half-made.

use std::{future::Future, path::PathBuf, process, sync::Arc};

use async_trait::async_trait;
use containerd_shim::{
    TtrpcResult,
    api::{
        CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
        CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
        PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
        StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
        Status, UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    asynchronous::ExitSignal,
    protos::{
        api::ProcessInfo,
        events::task::{TaskCreate, TaskIO},
        protobuf::MessageField,
        shim_async::Task,
        ttrpc::r#async::TtrpcContext,
        types::mount::Mount,
    },
};

use crate::{
    client::RootfsMount,
    container::CreateRequest,
    error::Error,
    events,
    kind::{self, ErrorKind},
    metrics::{self, Shape},
    process::Phase,
    service::Service,
    stdio::StdioSpec,
};

/// The metadata of a Pids request that asks for the pids that the guest gives.
pub const GUEST_PIDS: (&str, &str) = ("caisson.pids", "guest");

/// The type of an Exec's spec that is a [`caisson_agent_protocol::Tool`] as JSON.
pub const TOOL_TYPE: &str = "io.caisson/Tool";

/// The version that Connect reports: that of the Task API.
const VERSION: &str = "v2";

#[derive(Clone)]
pub struct TaskService {
    service: Arc<Service>,
    exit: Arc<ExitSignal>,
}

impl TaskService {
    /// `exit` is signalled when the shim is to end.
    pub fn new(service: Arc<Service>, exit: Arc<ExitSignal>) -> Self {
        Self { service, exit }
    }

    async fn create_task(self, request: CreateTaskRequest) -> Result<u32, Error> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported("a microVM cannot be restored from a CRIU checkpoint"));
        }
        let bundle = PathBuf::from(&request.bundle);
        let rootfs = request.rootfs.iter().map(from_mount).collect();
        let stdio = StdioSpec {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let event = TaskCreate {
            rootfs: request.rootfs,
            io: MessageField::some(TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..Default::default()
            }),
            ..Default::default()
        };
        let create = CreateRequest { id: request.id, bundle, rootfs, stdio };
        Ok(self.service.create(create, event).await?.pid())
    }

    async fn delete_task(self, id: String, exec: Option<String>) -> Result<DeleteResponse, Error> {
        let (container, exit) = match exec {
            None => self.service.delete(&id).await?,
            Some(exec) => {
                let container = self.service.get(&id)?;
                let exit = container.delete_exec(&exec).await?;
                (container, exit)
            }
        };
        Ok(DeleteResponse {
            pid: container.pid(),
            exit_status: exit.code.into(),
            exited_at: events::exited_at(&exit),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> TtrpcResult<StateResponse> {
        let container = answer(self.service.get(&request.id))?;
        let process = answer(container.process(exec(&request.exec_id)))?;
        let mut response = StateResponse {
            id: container.id.clone(),
            exec_id: request.exec_id,
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: container.pid(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            ..Default::default()
        };
        let status = match process.phase() {
            Phase::Created => Status::CREATED,
            Phase::Running { paused: false } => Status::RUNNING,
            Phase::Running { paused: true } => Status::PAUSED,
            Phase::Stopped(exit) => {
                response.exit_status = exit.code.into();
                response.exited_at = events::exited_at(&exit);
                Status::STOPPED
            }
        };
        response.set_status(status);
        Ok(response)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> TtrpcResult<CreateTaskResponse> {
        log::info!("create {:?}, bundle {:?}", request.id, request.bundle);
        let abandoned =
            Abandoned { service: self.service.clone(), id: request.id.clone(), armed: true };
        let created = unbroken(self.clone().create_task(request)).await;
        abandoned.disarm();
        let pid = created?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> TtrpcResult<StartResponse> {
        let container = answer(self.service.get(&request.id))?;
        let pid = unbroken(async move { container.start(exec(&request.exec_id)).await }).await?;
        Ok(StartResponse { pid, ..Default::default() })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> TtrpcResult<DeleteResponse> {
        let exec = exec(&request.exec_id).map(str::to_owned);
        unbroken(self.clone().delete_task(request.id, exec)).await
    }

    async fn pids(
        &self,
        context: &TtrpcContext,
        request: PidsRequest,
    ) -> TtrpcResult<PidsResponse> {
        let container = answer(self.service.get(&request.id))?;
        let (name, value) = GUEST_PIDS;
        let asked = context.metadata.get(name);
        // An engine looks its pids up on the host, where the guest's mean other processes.
        let pids = match asked.is_some_and(|values| values.iter().any(|asked| asked == value)) {
            true => answer(container.pids().await)?,
            false => vec![container.pid()],
        };
        let process = |pid| ProcessInfo { pid, ..Default::default() };
        let processes = pids.into_iter().map(process).collect();
        Ok(PidsResponse { processes, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> TtrpcResult<Empty> {
        let container = answer(self.service.get(&request.id))?;
        unbroken(async move { container.pause().await }).await.map(empty)
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> TtrpcResult<Empty> {
        let container = answer(self.service.get(&request.id))?;
        unbroken(async move { container.resume().await }).await.map(empty)
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> TtrpcResult<Empty> {
        answer(Err(Error::Unsupported("a microVM's processes cannot be checkpointed by CRIU")))
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> TtrpcResult<Empty> {
        let service = self.service.clone();
        let kill = async move {
            let exec = exec(&request.exec_id);
            service.kill(&request.id, exec, request.signal, request.all).await
        };
        unbroken(kill).await.map(empty)
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> TtrpcResult<Empty> {
        let container = answer(self.service.get(&request.id))?;
        let added = async move {
            let stdio = StdioSpec {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            };
            let (id, spec) = (&request.exec_id, &request.spec);
            match spec.type_url == TOOL_TYPE {
                true => container.tool(id, &spec.value, stdio).await,
                false => container.exec(id, &spec.value, stdio).await,
            }
        };
        unbroken(added).await.map(empty)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> TtrpcResult<Empty> {
        let container = answer(self.service.get(&request.id))?;
        let exec = exec(&request.exec_id);
        answer(container.resize(exec, request.width, request.height).await).map(empty)
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> TtrpcResult<Empty> {
        let container = answer(self.service.get(&request.id))?;
        let process = answer(container.process(exec(&request.exec_id)))?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> TtrpcResult<Empty> {
        let container = answer(self.service.get(&request.id))?;
        unbroken(async move { container.update(&request.resources.value).await }).await.map(empty)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> TtrpcResult<WaitResponse> {
        let container = answer(self.service.get(&request.id))?;
        let process = answer(container.process(exec(&request.exec_id)))?;
        let exit = process.wait().await;
        Ok(WaitResponse {
            exit_status: exit.code.into(),
            exited_at: events::exited_at(&exit),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> TtrpcResult<StatsResponse> {
        let container = answer(self.service.get(&request.id))?;
        let stats = answer(container.stats().await)?;
        let stats = MessageField::some(metrics::to_any(&stats, Shape::of_host()));
        Ok(StatsResponse { stats, ..Default::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> TtrpcResult<ConnectResponse> {
        let container = answer(self.service.get(&request.id))?;
        Ok(ConnectResponse {
            shim_pid: process::id(),
            task_pid: container.pid(),
            version: VERSION.to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> TtrpcResult<Empty> {
        let (service, exit) = (self.service.clone(), self.exit.clone());
        let shutdown = async move {
            if service.shutdown(request.now).await {
                exit.signal();
            }
            Ok(())
        };
        unbroken(shutdown).await.map(empty)
    }
}

/// Gives a creation up whose handler ttrpc has dropped: nobody waits for it any more.
struct Abandoned {
    service: Arc<Service>,
    id: String,
    armed: bool,
}

impl Abandoned {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if self.armed && self.service.cancel(&self.id) {
            log::warn!("the creation of {:?} is given up: its caller is gone", self.id);
        }
    }
}

/// Runs `work` to its end, whether or not somebody still waits for it.
async fn unbroken<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> TtrpcResult<T> {
    match tokio::spawn(work).await {
        Ok(result) => answer(result),
        Err(panicked) => {
            let message = format!("the operation failed unexpectedly: {panicked}");
            Err(kind::to_status(ErrorKind::Internal, message))
        }
    }
}

fn answer<T>(result: Result<T, Error>) -> TtrpcResult<T> {
    result.map_err(|error| {
        let report = error.report();
        log::info!("refused: {report}");
        kind::to_status(error.kind(), report)
    })
}

fn exec(id: &str) -> Option<&str> {
    (!id.is_empty()).then_some(id)
}

fn empty(_: ()) -> Empty {
    Empty::new()
}

fn from_mount(mount: &Mount) -> RootfsMount {
    RootfsMount {
        fstype: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    }
}
