//! A process confines itself: what is left is the files it was given, no name, no right.
//!
//! In this order, because each step takes away what an earlier one needs: files, signals,
//! namespaces and root directory (these need CAP_SYS_ADMIN), user and user namespace,
//! rights, Landlock, resource limits, environment. System call filters ([`filter`]) follow
//! when the program's threads exist. Every step that fails is an error, after which the
//! process must end.
//!
//! Each step is a function of its own for a process that needs only some. A pid namespace
//! is the parent's to give ([`pid_namespace::spawn`]): `unshare` gives it to children.

pub mod files;
pub mod filter;
pub mod inherited;
pub mod landlock;
pub mod limits;
pub mod namespaces;
pub mod pid_namespace;
pub mod privileges;
pub mod trees;
pub mod user_namespace;

use std::{io, os::fd::RawFd};

/// How the process confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jail {
    /// Not root, nor root's group.
    pub uid: u32,
    pub gid: u32,
    pub max_open_files: u64,
}

/// What of the jail depends on the host.
#[derive(Debug)]
pub struct Entered {
    /// Why there is no user namespace, where the host allows none.
    pub no_user_namespace: Option<JailError>,
    /// The kernel's Landlock ABI; 0 where it has none.
    pub landlock_abi: u32,
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
pub fn enter(jail: &Jail, keep: &[RawFd], die_with_parent: bool) -> Result<Entered, JailError> {
    files::keep_only(keep)?;
    inherited::reset_signals()?;
    inherited::restrict_umask();
    namespaces::leave()?;
    let maps = user_namespace::Maps::open();
    namespaces::take_empty_root()?;
    // Hosts that restrict user namespaces do so for those without CAP_SYS_ADMIN. Entering
    // one fills the bounding set, so that is emptied afterwards.
    let kept = [privileges::CAP_SYS_ADMIN, privileges::CAP_SETPCAP];
    privileges::take_user(jail.uid, jail.gid, &kept)?;
    let no_user_namespace = user_namespace::enter(maps, jail.uid, jail.gid)?.err();
    privileges::drop_bounding_set(&[])?;
    privileges::drop_rights()?;
    let landlock_abi = landlock::forbid_all()?;
    limits::set(jail.max_open_files)?;
    if die_with_parent {
        privileges::die_with_parent()?;
    }
    inherited::clear_environment()?;
    Ok(Entered { no_user_namespace, landlock_abi })
}

/// The error of a step that was a system call with this result.
fn check(step: &'static str, result: impl Into<i64>) -> Result<(), JailError> {
    if result.into() == -1 {
        return Err(JailError { step, source: io::Error::last_os_error() });
    }
    Ok(())
}
