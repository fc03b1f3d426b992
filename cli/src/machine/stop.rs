//! Ends the machine: in order if it listens, else by force.

use std::{fs, process::ExitCode, time::Duration};

use nix::sys::signal::Signal;

use super::{
    arguments::StopArgs,
    control::{Control, ControlError},
    directory::{DirectoryError, MachineDirectory},
    instance::{InstanceError, Process},
};
use crate::Globals;

/// For the machine to answer the order.
const ANSWER: Duration = Duration::from_secs(3);
/// For its processes to end and its disk to be flushed.
const SHUTDOWN: Duration = Duration::from_secs(20);
/// For QEMU to end by a signal.
const END: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(super) enum StopError {
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Instance(#[from] InstanceError),
    #[error("the machine's process {pid} does not end")]
    Stuck { pid: i32 },
}

/// `caisson machine stop`
pub(super) fn command(globals: &Globals, options: &StopArgs) -> anyhow::Result<ExitCode> {
    match stop(&MachineDirectory::new(globals), options.force)? {
        true => eprintln!("the machine is stopped"),
        false => eprintln!("no machine runs"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns when no machine runs; whether one did.
pub(super) fn stop(directory: &MachineDirectory, force: bool) -> Result<bool, StopError> {
    if !directory.run.exists() {
        return Ok(false);
    }
    // By force means now: also while another process waits for the start.
    let _lock = if force { None } else { Some(directory.lock_changes()?) };
    let Some(process) = Process::find(directory)? else {
        let _ = fs::remove_file(directory.record());
        return Ok(false);
    };
    if force {
        process.signal(Signal::SIGKILL)?;
    } else if order(directory).is_err() || !process.wait(SHUTDOWN) {
        process.signal(Signal::SIGTERM)?;
        if !process.wait(END) {
            process.signal(Signal::SIGKILL)?;
        }
    }
    if !process.wait(END) {
        return Err(StopError::Stuck { pid: process.pid });
    }
    // Without it the record of a machine that has ended would be read by the next status.
    let _ = fs::remove_file(directory.record());
    Ok(true)
}

fn order(directory: &MachineDirectory) -> Result<(), ControlError> {
    Control::open(directory)?.shut_down(ANSWER)
}
