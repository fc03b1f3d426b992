//! `start`: the process of a created container.

use std::path::Path;

use super::CommandResult;
use crate::{
    container::{Container, ContainerStatus},
    error::RuntimeError,
    hooks, state,
};

pub(super) fn start(root: &Path, id: &str) -> CommandResult {
    let container = Container::load(root, id)?;
    match container.status() {
        ContainerStatus::Created => {}
        status => {
            return Err(RuntimeError::NotCreated { id: id.to_owned(), status: status.name() });
        }
    }
    container.connect()?.start(None)?;
    run_poststart(&container);
    Ok(0)
}

/// A hook that fails is told, and the container goes on (runtime.md, Lifecycle).
pub(super) fn run_poststart(container: &Container) {
    let pid = container.pid(ContainerStatus::Running);
    let state = state::json(container, ContainerStatus::Running, pid);
    for hook in &container.record.poststart {
        if let Err(error) = hooks::run("poststart", hook, &state) {
            tracing::warn!("{}", RuntimeError::from(error).words());
        }
    }
}
