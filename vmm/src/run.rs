//! The life of the process: config, jail, VM, and the exit code.

use std::{
    fs::File,
    io,
    os::{fd::RawFd, unix::fs::FileExt},
    sync::Arc,
};

use caisson_jail::{Entered, Jail, JailError};

use crate::{
    boot_timer::{BootTimer, Stage, process_cpu_usec},
    builder::{self, BuildError},
    config::{Fd, VmConfig},
    control::{ControlEvent, EndReason, JailReport, Report},
    error_chain, log,
    monitor::{self, Channel},
    seccomp::Filtering,
    spec::{self, FdError, Files, SpecError, VmSpec},
    vm::{StartError, Vm},
};

/// The VM has ended as a VM ends.
pub const EXIT_ENDED: u8 = 0;
/// The VM could not be built, or failed.
pub const EXIT_FAILED: u8 = 1;
/// The config is invalid.
pub const EXIT_CONFIG: u8 = 2;

/// The longest config that is read.
const CONFIG_BYTES: u64 = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("open the config: file descriptor {0}")]
    Open(Fd, #[source] FdError),
    #[error("the config has {0} bytes, the limit is {CONFIG_BYTES}")]
    TooLong(u64),
    #[error("read the config")]
    Read(#[source] io::Error),
    #[error("the config is not the JSON of a VM")]
    Parse(#[source] serde_json::Error),
    #[error("file descriptor of the control socket")]
    Control(#[source] FdError),
    #[error("the config makes no VM")]
    Spec(#[from] SpecError),
    #[error("a vmm in a pid namespace needs a control socket: by its end it knows its parent's")]
    NamespaceWithoutControl,
    #[error("--no-seccomp is for measuring without a jail, and the config has one")]
    JailWithoutFilters,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("confine the process")]
    Jail(#[from] JailError),
    #[error("build the VM")]
    Build(#[from] BuildError),
    #[error("start the VM")]
    Start(#[from] StartError),
}

/// Runs the VM that the config in `config_fd` describes, and returns the exit code.
///
/// `files` are those that the process inherited.
pub fn run(config_fd: RawFd, mut files: Files, filtering: Filtering, timer: BootTimer) -> u8 {
    let timer = Arc::new(timer);
    let mut channel = None;
    let prepared = prepare(config_fd, &mut files, filtering, &mut channel);
    let (spec, jail) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return fail(&error, channel.as_mut(), &timer, EXIT_CONFIG),
    };
    let confined = confine(jail, &files, channel.as_mut());
    let vm = match confined.and_then(|()| start(spec, filtering, &timer)) {
        Ok(vm) => vm,
        Err(error) => return fail(&error, channel.as_mut(), &timer, EXIT_FAILED),
    };
    match monitor::supervise(&vm, channel.as_mut()) {
        EndReason::Failed { message } => {
            log::line(format_args!("{message}"));
            EXIT_FAILED
        }
        _ => EXIT_ENDED,
    }
}

/// Reads and checks the config, and takes over the files that it names; the control
/// socket first, so that the parent hears what is wrong with the rest.
fn prepare(
    config_fd: RawFd,
    files: &mut Files,
    filtering: Filtering,
    channel: &mut Option<Channel>,
) -> Result<(VmSpec, Option<Jail>), ConfigError> {
    let config = read_config(config_fd, files)?;
    if let Some(fd) = config.control {
        *channel = Some(Channel::new(files.stream(fd).map_err(ConfigError::Control)?));
    }
    if config.jail.is_some() && filtering == Filtering::Off {
        return Err(ConfigError::JailWithoutFilters);
    }
    // The thread that starts such a vmm does not live on (PR_SET_PDEATHSIG).
    if channel.is_none() && config.jail.as_ref().is_some_and(|jail| jail.pid_namespace) {
        return Err(ConfigError::NamespaceWithoutControl);
    }
    let jail = config.jail.as_ref().map(spec::jail).transpose()?;
    Ok((VmSpec::adopt(&config, files)?, jail))
}

fn read_config(fd: RawFd, files: &mut Files) -> Result<VmConfig, ConfigError> {
    let file = files.regular(fd).map_err(|source| ConfigError::Open(fd, source))?;
    let bytes = config_bytes(&file)?;
    serde_json::from_slice(&bytes).map_err(ConfigError::Parse)
}

fn config_bytes(file: &File) -> Result<Vec<u8>, ConfigError> {
    let length = file.metadata().map_err(ConfigError::Read)?.len();
    if length > CONFIG_BYTES {
        return Err(ConfigError::TooLong(length));
    }
    let mut bytes = vec![0; length as usize];
    // From its start, wherever the writer has left the offset.
    file.read_exact_at(&mut bytes, 0).map_err(ConfigError::Read)?;
    Ok(bytes)
}

/// Confines the process, and tells the parent what the host allowed of it.
fn confine(
    jail: Option<Jail>,
    files: &Files,
    channel: Option<&mut Channel>,
) -> Result<(), RunError> {
    let Some(jail) = jail else { return Ok(()) };
    let Entered { no_user_namespace, landlock_abi } =
        caisson_jail::enter(&jail, &files.taken(), channel.is_none())?;
    if let Some(channel) = channel {
        let no_user_namespace = no_user_namespace.map(|refused| error_chain(&refused));
        let report = JailReport { no_user_namespace, landlock_abi };
        // A parent that is gone is noticed by the monitor.
        let _ = channel.send(&ControlEvent::Jailed(report));
    }
    Ok(())
}

/// Builds the VM in the confined process, and starts its threads.
fn start(spec: VmSpec, filtering: Filtering, timer: &Arc<BootTimer>) -> Result<Vm, RunError> {
    timer.stamp(Stage::Jailed);
    let parts = builder::build(spec, timer.clone())?;
    Ok(Vm::start(parts, filtering)?)
}

/// Tells everyone who may listen, and returns `code`.
fn fail(
    error: &dyn std::error::Error,
    channel: Option<&mut Channel>,
    timer: &BootTimer,
    code: u8,
) -> u8 {
    let message = error_chain(error);
    log::line(format_args!("{message}"));
    if let Some(channel) = channel {
        let report = Report {
            stages_usec: timer.stages_usec(),
            cpu_usec: process_cpu_usec(),
            ..Report::default()
        };
        // The parent that does not read it still has the exit code.
        let _ =
            channel.send(&ControlEvent::Ended { reason: EndReason::Failed { message }, report });
    }
    code
}
