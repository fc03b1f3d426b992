//! `create`: a container whose process does not run yet.

use std::path::Path;

use caisson_shim::time::{now_unix_nanos, rfc3339_nanos};

use super::{CommandResult, check_console, check_preserved, delete, write_pid_file};
use crate::{
    args::CreateArgs,
    bundle::Bundle,
    container::{Container, Record},
    error::RuntimeError,
    hooks::HostHooks,
    keeper,
};

pub(super) fn create(root: &Path, args: &CreateArgs) -> CommandResult {
    create_detached(root, args).map(|_| 0)
}

/// The container, kept by a process of its own.
pub(super) fn create_detached(root: &Path, args: &CreateArgs) -> Result<Container, RuntimeError> {
    let container = reserve(root, args, true)?;
    let made = keeper::spawn(root, &container, None, args.console_socket.as_deref())
        .and_then(|keeper_pid| write_pid(args, keeper_pid));
    match made {
        Ok(()) => Container::load(root, container.id()),
        Err(error) => Err(undone(root, &container, error)),
    }
}

/// Checks what can be checked before anything is made, and takes the id.
pub(super) fn reserve(
    root: &Path,
    args: &CreateArgs,
    detached: bool,
) -> Result<Container, RuntimeError> {
    check_preserved(args.preserve_fds)?;
    let bundle = Bundle::load(&args.bundle)?;
    check_console(bundle.has_terminal(), detached, args.console_socket.as_deref())?;
    HostHooks::of(bundle.spec.hooks().as_ref())?;
    let record = Record {
        oci_version: bundle.spec.version().clone(),
        id: args.id.clone(),
        bundle: bundle.directory.clone(),
        rootfs: bundle.rootfs.clone(),
        created: rfc3339_nanos(now_unix_nanos()),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        keeper: None,
        poststart: Vec::new(),
        poststop: Vec::new(),
    };
    Container::reserve(root, record)
}

pub(super) fn write_pid(args: &CreateArgs, keeper_pid: u32) -> Result<(), RuntimeError> {
    match &args.pid_file {
        Some(path) => write_pid_file(path, keeper_pid),
        None => Ok(()),
    }
}

/// Takes back what there is of a container, and returns why.
pub(super) fn undone(root: &Path, container: &Container, error: RuntimeError) -> RuntimeError {
    let loaded = Container::load(root, container.id());
    if let Err(clean_up) = loaded.and_then(|container| delete::remove(&container)) {
        // The first error is the one to tell.
        tracing::warn!("{}", clean_up.words());
    }
    error
}
