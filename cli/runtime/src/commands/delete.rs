//! `delete`: the container, its VM and its record.

use std::path::Path;

use caisson_shim::{client::ClientError, vm};
use nix::libc::SIGKILL;

use super::CommandResult;
use crate::{
    args::DeleteArgs,
    container::{Container, ContainerStatus},
    error::RuntimeError,
    hooks, state,
};

pub(super) fn delete(root: &Path, args: &DeleteArgs) -> CommandResult {
    let container = match Container::load(root, &args.id) {
        Err(RuntimeError::NotFound(_)) if args.force => return Ok(0),
        loaded => loaded?,
    };
    let status = container.status();
    // runc deletes one that was never started, too.
    let may_go = matches!(status, ContainerStatus::Stopped | ContainerStatus::Created);
    if !args.force && !may_go {
        let id = args.id.clone();
        return Err(RuntimeError::NotStopped { id, status: status.name() });
    }
    remove(&container)?;
    Ok(0)
}

/// Ends what still runs of it, and removes everything. What a killed shim has left is found
/// by its journal.
pub(super) fn remove(container: &Container) -> Result<(), RuntimeError> {
    if let Err(error) = end(container) {
        tracing::debug!(%error, "end the shim of {}", container.id());
    }
    vm::reap(&container.bundle())?;
    container.remove()?;
    let state = state::json(container, ContainerStatus::Stopped, 0);
    for hook in &container.record.poststop {
        // A hook that fails is told, and the others run (runtime.md, Lifecycle).
        if let Err(error) = hooks::run("poststop", hook, &state) {
            tracing::warn!("{}", RuntimeError::from(error).words());
        }
    }
    Ok(())
}

fn end(container: &Container) -> Result<(), ClientError> {
    let client = container.connect()?;
    // One that has ended, or never began, cannot be killed, and need not be.
    if client.kill(None, SIGKILL as u32, true).is_ok() {
        client.wait(None)?;
    }
    if let Err(error) = client.delete(None) {
        tracing::debug!(%error, "delete {}", container.id());
    }
    client.shutdown(true)
}
