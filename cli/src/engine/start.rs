//! Starting a container: bundle, shim, VM, process.

use std::{error::Error, path::PathBuf};

use caisson_failpoints::{hit, pass, steps};
use caisson_shim::{
    client::{CreateSpec, RootfsMount, ShimClient, SpawnSpec, Stdio},
    stages,
    stdio::rotating_file::Rotation,
};

use super::{Created, Engine, EngineError, bundle, create::DISK, io_error, network};
use crate::{
    config::{ContainerConfig, LogRotation},
    failure,
    records::{Container, State, lock::ContainerLock},
    spec,
};

/// Where the streams of a container's process go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StdioPlan {
    /// FIFOs in the bundle, for a caller that stays.
    Attached,
    /// Output into the log, if the container keeps one; input, if open, from a FIFO.
    Detached,
    /// Nowhere: the process is not started.
    Unused,
}

/// The log that a container's output is kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTarget {
    pub path: PathBuf,
    pub rotation: Rotation,
}

impl LogTarget {
    /// As a shim takes it.
    fn uri(&self) -> String {
        let Rotation { max_bytes, max_files } = self.rotation;
        let size = max_bytes.map(|bytes| format!("max-bytes={bytes}&")).unwrap_or_default();
        format!("json-file://{}?{size}max-files={max_files}", self.path.display())
    }
}

/// What the caller takes part in while a container starts.
pub trait Startup {
    /// The FIFOs are there; nothing runs yet.
    fn prepare(&mut self, stdio: &Stdio) -> Result<(), EngineError>;
    /// The shim runs: from here on `client` can end it. An error ends the start.
    fn spawned(&mut self, client: &ShimClient) -> Result<(), EngineError>;
    /// The process is prepared and about to be executed.
    fn created(&mut self) -> Result<(), EngineError>;
}

/// For a caller that only waits for the start.
impl Startup for () {
    fn prepare(&mut self, _stdio: &Stdio) -> Result<(), EngineError> {
        Ok(())
    }

    fn spawned(&mut self, _client: &ShimClient) -> Result<(), EngineError> {
        Ok(())
    }

    fn created(&mut self) -> Result<(), EngineError> {
        Ok(())
    }
}

/// A container that runs.
pub struct Started {
    pub client: ShimClient,
    /// As the record now has it.
    pub container: Container,
    /// While it is held this process watches the container; else someone else must.
    pub watch: ContainerLock,
}

impl Engine {
    /// Starts a container that is created or has exited. After an error it is as before,
    /// with the error in its record.
    pub fn start(
        &self,
        container: &Container,
        plan: StdioPlan,
        console: Option<(u16, u16)>,
        startup: &mut dyn Startup,
    ) -> Result<Started, EngineError> {
        let (container, lock) = self.records.lock(container)?;
        self.start_locked(Created { container, lock }, plan, console, startup)
    }

    /// As [`Engine::start`], for a container whose lock this process holds.
    pub fn start_locked(
        &self,
        created: Created,
        plan: StdioPlan,
        console: Option<(u16, u16)>,
        startup: &mut dyn Startup,
    ) -> Result<Started, EngineError> {
        let Created { container, lock } = created;
        let name = || container.name.clone();
        match container.state {
            State::Creating | State::Created | State::Exited => {}
            State::Running => return Err(EngineError::AlreadyRunning { name: name() }),
            _ => return Err(EngineError::Damaged { name: name() }),
        }
        let config =
            container.config.clone().ok_or_else(|| EngineError::Damaged { name: name() })?;
        if container.visited {
            // Its files must not be in two VMs.
            self.end_visit(&container)?;
        }
        // Who watched the last run lets go without needing the lock held here.
        let watch = self.records.watch_next_run(&container)?;
        let root = &self.globals.root;
        hit(&steps::CLI_START_STATE).map_err(io_error("record the start in", root))?;
        self.records.set_state(&container.id, State::Starting)?;
        pass(&steps::CLI_START_ANNOUNCED);
        let launched = self.launch(&container, &config, plan, console, startup);
        let launched = launched.and_then(|(client, pid)| {
            hit(&steps::CLI_START_RUNNING).map_err(io_error("record the start in", root))?;
            self.records.set_running(&container.id, pid)?;
            Ok((client, self.records.by_id(&container.id)?))
        });
        let started = match launched {
            Ok((client, container)) => {
                self.tell(&container, "start");
                Ok(Started { client, container, watch })
            }
            Err(error) => {
                self.undo_start(&container, &error);
                Err(error)
            }
        };
        drop(lock);
        started
    }

    fn launch(
        &self,
        container: &Container,
        config: &ContainerConfig,
        plan: StdioPlan,
        console: Option<(u16, u16)>,
        startup: &mut dyn Startup,
    ) -> Result<(ShimClient, u32), EngineError> {
        let (client, pid) = self.boot(container, config, plan, console, startup)?;
        pass(&steps::CLI_START_CREATED);
        startup.created()?;
        client.start(None)?;
        stages::stamp("cli", "started");
        pass(&steps::CLI_START_STARTED);
        Ok((client, pid))
    }

    /// Boots the container's VM and prepares its process.
    pub(super) fn boot(
        &self,
        container: &Container,
        config: &ContainerConfig,
        plan: StdioPlan,
        console: Option<(u16, u16)>,
        startup: &mut dyn Startup,
    ) -> Result<(ShimClient, u32), EngineError> {
        let id = &container.id;
        let directory = self.globals.bundle_dir(id);
        // Before anything is made: what is missing is told without a boot.
        let assets = self.assets()?;
        assets.shim()?;
        assets.vmm()?;
        if !config.mounts.is_empty() {
            assets.file_server()?;
        }
        assets.kernel()?;
        assets.initramfs()?;
        self.make_volumes(config)?;
        self.make_mounts(config)?;
        let rootfs = self.rootfs(container, config);
        hit(&steps::CLI_START_BUNDLE).map_err(io_error("make", &directory))?;
        bundle::remove(&directory)?;
        let volumes = self.globals.volumes_dir();
        let first_start = container.started.is_none();
        let context =
            spec::Context { id, bundle: &directory, volumes: &volumes, first_start, console };
        bundle::write(config, &context)?;
        let stdio = self.stdio(container, config, plan)?;
        startup.prepare(&stdio)?;
        hit(&steps::CLI_START_SHIM).map_err(io_error("start a shim in", &directory))?;
        let client = ShimClient::spawn(&SpawnSpec {
            assets: &assets,
            id,
            bundle: &directory,
            socket: &self.globals.shim_socket(id),
            root: &self.globals.root,
            state: &self.globals.state,
            bridge: network::bridge(&config.network),
        })?;
        stages::stamp("cli", "shim_spawned");
        pass(&steps::CLI_START_SPAWNED);
        startup.spawned(&client)?;
        let pid = client.create(&CreateSpec { rootfs, stdio })?;
        stages::stamp("cli", "created");
        Ok((client, pid))
    }

    /// The image's layers, bottom first, and the writable disk.
    fn rootfs(&self, container: &Container, config: &ContainerConfig) -> Vec<RootfsMount> {
        let mount = |fstype: &str, source: PathBuf, option: &str| RootfsMount {
            fstype: fstype.to_owned(),
            source: source.to_string_lossy().into_owned(),
            options: vec![option.to_owned()],
        };
        let layers = self.store.root().join("layers");
        let mut mounts: Vec<RootfsMount> =
            config.layers.iter().map(|layer| mount("erofs", layers.join(layer), "ro")).collect();
        let disk = self.globals.container_dir(&container.id).join(DISK);
        mounts.push(mount("ext4", disk, "rw"));
        mounts
    }

    fn stdio(
        &self,
        container: &Container,
        config: &ContainerConfig,
        plan: StdioPlan,
    ) -> Result<Stdio, EngineError> {
        if plan == StdioPlan::Unused {
            return Ok(Stdio { terminal: config.tty, ..Stdio::default() });
        }
        let directory = self.globals.bundle_dir(&container.id);
        let fifo = |name: &str| -> Result<String, EngineError> {
            let path = directory.join(name);
            bundle::make_fifo(&path)?;
            Ok(path.to_string_lossy().into_owned())
        };
        let stdin = if config.open_stdin { fifo("stdin")? } else { String::new() };
        let output = |name: &str| match plan {
            StdioPlan::Attached => fifo(name),
            StdioPlan::Detached if config.keeps_logs() => {
                Ok(self.log_target(&container.id, config.log_rotation).uri())
            }
            StdioPlan::Detached | StdioPlan::Unused => Ok(String::new()),
        };
        let stderr = if config.tty { String::new() } else { output("stderr")? };
        Ok(Stdio { stdin, stdout: output("stdout")?, stderr, terminal: config.tty })
    }

    /// Where a container's output is kept, as Docker names it.
    pub fn log_path(&self, id: &str) -> PathBuf {
        self.globals.container_dir(id).join(format!("{id}-json.log"))
    }

    /// Where, and how much.
    pub fn log_target(&self, id: &str, rotation: LogRotation) -> LogTarget {
        LogTarget { path: self.log_path(id), rotation: rotation.into() }
    }

    /// Ends what was started and puts the record back.
    pub(super) fn undo_start(&self, container: &Container, error: &(dyn Error + 'static)) {
        self.end_shim(container);
        let recorded = self.remove_bundle(container).and_then(|()| {
            let (code, words) = (failure::run_code(error), failure::words(error));
            Ok(self.records.set_start_failed(&container.id, code, &words)?)
        });
        // The first error is the one to tell; what stays is reaped by the next command.
        if let Err(clean_up) = recorded {
            tracing::warn!(%clean_up, "undo the start of {}", container.id);
        }
    }
}
