//! A process confines itself: what is left is the files it was given, no name, no right.
//!
//! In this order, because each step takes away what an earlier one needs: files, name
//! spaces and root directory (these need CAP_SYS_ADMIN), resource limits, user and
//! capabilities. System call filters are the program's own affair and follow when its
//! threads exist. Every step that fails is an error, after which the process must end.
//!
//! Not here: a pid namespace. `unshare` would give one to children, and a jailed process
//! has none; without /proc, with a user of its own and `kill` filtered it can neither see
//! nor reach another process.

mod files;
mod limits;
mod namespaces;
mod privileges;

use std::{io, os::fd::RawFd};

/// How the process confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jail {
    /// Not root, nor root's group.
    pub uid: u32,
    pub gid: u32,
    pub max_open_files: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("jail: {step}")]
pub struct JailError {
    step: &'static str,
    #[source]
    source: io::Error,
}

/// Confines the process for good. It must have a single thread, and capabilities enough
/// (as root). `keep` are the files that the configuration names.
pub fn enter(jail: &Jail, keep: &[RawFd], die_with_parent: bool) -> Result<(), JailError> {
    files::keep_only(keep)?;
    namespaces::leave()?;
    namespaces::take_empty_root()?;
    limits::set(jail.max_open_files)?;
    privileges::drop_all(jail.uid, jail.gid)?;
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
