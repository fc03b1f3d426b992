//! The vmm confines itself: what is left is the files it was given, no name, no right.
//!
//! In this order, because each step takes away what an earlier one needs: files, name
//! spaces and root directory (these need CAP_SYS_ADMIN), resource limits, user and
//! capabilities. The system call filters follow when the threads exist
//! ([`crate::seccomp`]). Every step that fails is an error, and the VM is not built.
//!
//! Not here: a pid namespace. `unshare` would give one to children, and the vmm has none;
//! without /proc, with a user of its own and `kill` filtered it can neither see nor reach
//! another process.

mod files;
mod limits;
mod namespaces;
mod privileges;

use std::{io, os::fd::RawFd};

use crate::spec::JailSpec;

#[derive(Debug, thiserror::Error)]
#[error("jail: {step}")]
pub struct JailError {
    step: &'static str,
    #[source]
    source: io::Error,
}

/// Confines the process for good. It must have a single thread, and capabilities enough
/// (as root). `keep` are the files that the configuration names.
pub fn enter(spec: &JailSpec, keep: &[RawFd], die_with_parent: bool) -> Result<(), JailError> {
    files::keep_only(keep)?;
    namespaces::leave()?;
    namespaces::take_empty_root()?;
    limits::set(spec.max_open_files)?;
    privileges::drop_all(spec.uid, spec.gid)?;
    if die_with_parent {
        privileges::die_with_parent()?;
    }
    privileges::clear_environment()
}

/// The error of a step that was a system call with this result.
fn check(step: &'static str, result: impl Into<i64>) -> Result<(), JailError> {
    if result.into() == -1 {
        return Err(JailError { step, source: io::Error::last_os_error() });
    }
    Ok(())
}
