//! A shim for tests: it serves the Task API and runs a "container" as a process of this
//! host, so that every command can be tested where no VM can run.
//!
//! `CAISSON_FAKE_BOOT_MS` makes Create take that long.

mod process;

use std::{
    collections::HashMap,
    path::PathBuf,
    process::exit,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use caisson_agent_protocol::message::Stats;
use caisson_shim::{
    exit::Exit,
    kind::{ErrorKind, to_status},
    metrics,
};
use containerd_shim::protos::{
    api,
    protobuf::{EnumOrUnknown, well_known_types::timestamp::Timestamp},
    shim_sync::{Task, create_task},
    ttrpc::{self, TtrpcContext},
};
use process::{Process, Stdio};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| arg == flag).expect("the flag is given");
        args[at + 1].clone()
    };
    let socket: i32 = value("--socket-fd").parse().expect("a number");
    // SAFETY: changes the flags of a descriptor that is open. Containers must not hold it:
    // a socket with a listener looks alive.
    unsafe { libc::fcntl(socket, libc::F_SETFD, libc::FD_CLOEXEC) };
    let shim = Shim {
        bundle: value("--bundle").into(),
        socket: value("--socket").into(),
        state: Arc::default(),
    };
    let mut server = ttrpc::Server::new()
        .add_listener(socket)
        .expect("a listener")
        .register_service(create_task(Arc::new(shim)))
        .set_thread_count_default(8)
        .set_thread_count_max(64);
    server.start().expect("the server starts");
    loop {
        thread::park();
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By exec id; the empty one is the container's.
    processes: HashMap<String, Process>,
    paused: bool,
    shutdown: bool,
}

struct Shim {
    bundle: PathBuf,
    socket: PathBuf,
    state: Arc<Shared>,
}

impl Shim {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.state.lock().expect("no panics")
    }

    fn with<T>(
        &self,
        exec: &str,
        call: impl FnOnce(&mut Process) -> ttrpc::Result<T>,
    ) -> ttrpc::Result<T> {
        match self.lock().processes.get_mut(exec) {
            Some(process) => call(process),
            None => Err(to_status(ErrorKind::NotFound, format!("no process {exec:?}"))),
        }
    }

    /// Waits as booting a VM does; ended by Shutdown.
    fn boot(&self) -> ttrpc::Result<()> {
        let millis = std::env::var("CAISSON_FAKE_BOOT_MS").ok().and_then(|text| text.parse().ok());
        let until = Instant::now() + Duration::from_millis(millis.unwrap_or(0));
        let mut state = self.lock();
        while !state.shutdown {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return Ok(()) };
            state = self.state.changed.wait_timeout(state, left).expect("no panics").0;
        }
        Err(to_status(ErrorKind::Cancelled, "the boot was broken off".into()))
    }

    /// Starts the process, and a thread that notes its end.
    fn run(&self, exec: &str) -> ttrpc::Result<u32> {
        let (pid, end) = self.with(exec, Process::start)?;
        let (shared, exec, bundle) = (self.state.clone(), exec.to_owned(), self.bundle.clone());
        thread::spawn(move || {
            let exit = end.wait();
            if exec.is_empty() {
                exit.save(&bundle).expect("the exit is recorded");
            }
            let mut state = shared.state.lock().expect("no panics");
            if let Some(process) = state.processes.get_mut(&exec) {
                process.exit = Some(exit);
            }
            shared.changed.notify_all();
        });
        Ok(pid)
    }
}

fn timestamp(exit: &Exit) -> Timestamp {
    Timestamp {
        seconds: (exit.at_unix_nanos / 1_000_000_000) as i64,
        nanos: (exit.at_unix_nanos % 1_000_000_000) as i32,
        ..Default::default()
    }
}

impl Task for Shim {
    fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        for mount in &request.rootfs {
            if !std::path::Path::new(&mount.source).exists() {
                return Err(to_status(ErrorKind::NotFound, format!("no image {}", mount.source)));
            }
        }
        self.boot()?;
        let stdio = Stdio::open(&request.stdin, &request.stdout, &request.stderr);
        let config = std::fs::read(self.bundle.join("config.json")).expect("a config.json");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        let process = Process::new(config["process"].clone(), stdio);
        self.lock().processes.insert(String::new(), process);
        Ok(api::CreateTaskResponse { pid: std::process::id(), ..Default::default() })
    }

    fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        Ok(api::StartResponse { pid: self.run(&request.exec_id)?, ..Default::default() })
    }

    fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<api::Empty> {
        let stdio = Stdio::open(&request.stdin, &request.stdout, &request.stderr);
        let spec = serde_json::from_slice(&request.spec.value).expect("JSON");
        self.lock().processes.insert(request.exec_id, Process::new(spec, stdio));
        Ok(api::Empty::default())
    }

    fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let mut state = self.lock();
        loop {
            let process = state.processes.get(&request.exec_id);
            let Some(process) = process else {
                return Err(to_status(ErrorKind::NotFound, "no such process".into()));
            };
            if let Some(exit) = &process.exit {
                return Ok(api::WaitResponse {
                    exit_status: exit.code.into(),
                    exited_at: Some(timestamp(exit)).into(),
                    ..Default::default()
                });
            }
            state = self.state.changed.wait(state).expect("no panics");
        }
    }

    fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<api::Empty> {
        self.with(&request.exec_id, |process| process.kill(request.signal as i32))?;
        Ok(api::Empty::default())
    }

    fn pause(&self, _: &TtrpcContext, _: api::PauseRequest) -> ttrpc::Result<api::Empty> {
        self.with("", |process| process.kill(libc::SIGSTOP))?;
        self.lock().paused = true;
        Ok(api::Empty::default())
    }

    fn resume(&self, _: &TtrpcContext, _: api::ResumeRequest) -> ttrpc::Result<api::Empty> {
        self.with("", |process| process.kill(libc::SIGCONT))?;
        self.lock().paused = false;
        Ok(api::Empty::default())
    }

    fn stats(&self, _: &TtrpcContext, _: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let stats = Stats { memory_bytes: 5 << 20, pids: 2, ..Stats::default() };
        Ok(api::StatsResponse {
            stats: Some(metrics::to_any(&stats, metrics::Shape::of_host())).into(),
            ..Default::default()
        })
    }

    fn connect(
        &self,
        _: &TtrpcContext,
        _: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        Ok(api::ConnectResponse { shim_pid: std::process::id(), ..Default::default() })
    }

    fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<api::Empty> {
        self.with(&request.exec_id, |process| {
            process.resize(request.width as u16, request.height as u16);
            Ok(api::Empty::default())
        })
    }

    fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<api::Empty> {
        self.with(&request.exec_id, |process| {
            process.close_stdin();
            Ok(api::Empty::default())
        })
    }

    fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        let paused = self.lock().paused;
        self.with(&request.exec_id, |process| {
            let status = match &process.exit {
                Some(_) => api::Status::STOPPED,
                None if paused => api::Status::PAUSED,
                None if process.pid.is_some() => api::Status::RUNNING,
                None => api::Status::CREATED,
            };
            Ok(api::StateResponse {
                status: EnumOrUnknown::new(status),
                exit_status: process.exit.as_ref().map_or(0, |exit| exit.code.into()),
                ..Default::default()
            })
        })
    }

    fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let exit = self.with(&request.exec_id, |process| match &process.exit {
            None if process.pid.is_some() => {
                Err(to_status(ErrorKind::FailedPrecondition, "it is running".into()))
            }
            exit => Ok(exit.clone().unwrap_or(Exit::now(0))),
        })?;
        self.lock().processes.remove(&request.exec_id);
        Ok(api::DeleteResponse {
            exit_status: exit.code.into(),
            exited_at: Some(timestamp(&exit)).into(),
            ..Default::default()
        })
    }

    fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<api::Empty> {
        let mut state = self.lock();
        if state.processes.is_empty() || request.now {
            for process in state.processes.values_mut() {
                let _ = process.kill(libc::SIGKILL);
            }
            state.shutdown = true;
            self.state.changed.notify_all();
            let socket = self.socket.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                let _ = std::fs::remove_file(socket);
                exit(0);
            });
        }
        Ok(api::Empty::default())
    }
}
