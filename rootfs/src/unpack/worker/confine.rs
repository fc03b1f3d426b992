//! What a process gives up before it reads foreign data.
//!
//! | | full (root) | unprivileged |
//! |---|---|---|
//! | files | its three and the scratch file | the same |
//! | namespaces, root | its own, empty; for a directory that directory, read-only | the caller's |
//! | user | its own | the caller's |
//! | capabilities | none; for a directory the two that reading it takes | none |
//! | limits, no new privileges, system call filter | yes | yes |
//! | Landlock, where the kernel has it | nothing; for a directory none | as full |

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use caisson_jail::{Jail, JailError, files, landlock, namespaces, privileges, trees};

use super::filter;
use crate::unpack::job::{Confinement, Job, Order};

/// Three streams, the scratch file, and two directories at a time.
const MAX_OPEN_FILES: u64 = 16;
/// Far more than the largest layer takes.
const MAX_CPU_SECONDS: u64 = 3600;
/// Beside what is held for the data: program, stack, buffers.
const BASE_BYTES: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error("{step}")]
    Step { step: &'static str, source: io::Error },
    #[error("make the system call filter")]
    Compile(#[from] seccompiler::BackendError),
    #[error("install the system call filter")]
    Filter(#[from] seccompiler::Error),
}

/// Confines the process for good and returns the input as it is reached from then on.
pub(super) fn confine(
    order: &Order,
    input: File,
    scratch: Option<&File>,
) -> Result<File, ConfineError> {
    if super::is_unconfined(order) {
        // A thread that walks a directory needs a working directory of its own.
        // SAFETY: takes flags only; nothing in this thread relies on sharing it.
        check("have a working directory", unsafe { libc::unshare(libc::CLONE_FS) })?;
        return Ok(input);
    }
    let filter = filter::compile(&order.job)?;
    let mut keep = vec![0, 1, 2];
    keep.extend(scratch.map(AsRawFd::as_raw_fd));
    let input = match (order.confinement, &order.job) {
        (Confinement::Full { uid }, Job::Tree { .. }) => enter_tree(&input, &keep, uid)?,
        (Confinement::Full { uid }, _) => {
            let jail = Jail { uid, gid: uid, max_open_files: MAX_OPEN_FILES };
            caisson_jail::enter(&jail, &keep, true)?;
            input
        }
        (_, job) => {
            files::keep_only(&keep)?;
            privileges::drop_rights()?;
            if !matches!(job, Job::Tree { .. }) {
                landlock::forbid_all()?;
            }
            input
        }
    };
    set_limits(&order.job)?;
    seccompiler::apply_filter(&filter)?;
    Ok(input)
}

fn set_limits(job: &Job) -> Result<(), ConfineError> {
    let (memory, file) = match job {
        Job::Decompress { window_log, .. } => (4 << (*window_log).min(40), 0),
        Job::Layer { limits } | Job::Tree { limits, .. } => {
            // What the tree is taken for, the plan made from it, and room to grow vectors.
            (limits.tree_bytes.saturating_mul(4), limits.image_bytes)
        }
    };
    limit(libc::RLIMIT_AS, BASE_BYTES.saturating_add(memory))?;
    limit(libc::RLIMIT_FSIZE, file)?;
    limit(libc::RLIMIT_CPU, MAX_CPU_SECONDS)?;
    limit(libc::RLIMIT_CORE, 0)?;
    limit(libc::RLIMIT_NPROC, 0)?;
    limit(libc::RLIMIT_NOFILE, MAX_OPEN_FILES)
}

fn limit(resource: libc::__rlimit_resource_t, value: u64) -> Result<(), ConfineError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, and outlives both calls.
    unsafe {
        check("look at a resource limit", libc::getrlimit(resource, &mut limit))?;
        // Without rights a limit can only be lowered.
        let value = value.min(limit.rlim_max);
        let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
        check("limit resources", libc::setrlimit(resource, &limit))
    }
}

/// Makes the directory the root of a mount namespace that has nothing else, and keeps the
/// rights that reading it takes. The directory as it is reached then.
fn enter_tree(input: &File, keep: &[RawFd], uid: u32) -> Result<File, ConfineError> {
    files::keep_only(keep)?;
    let tree = trees::copy(input.as_raw_fd(), true)?;
    let read_only = libc::MOUNT_ATTR_RDONLY
        | libc::MOUNT_ATTR_NOSUID
        | libc::MOUNT_ATTR_NODEV
        | libc::MOUNT_ATTR_NOEXEC;
    trees::restrict(&tree, read_only)?;
    namespaces::leave()?;
    namespaces::take_root(|place| trees::attach(&tree, place))?;
    let root = File::open("/")
        .map_err(|source| ConfineError::Step { step: "open the directory", source })?;
    become_reader(uid)?;
    // The one from outside leads outside.
    // SAFETY: duplicates over a descriptor that `input` owns and that stays open.
    check("close the directory", unsafe { libc::dup2(root.as_raw_fd(), input.as_raw_fd()) })?;
    Ok(root)
}

/// Becomes `uid`, with nothing but the capabilities that reading a directory takes.
fn become_reader(uid: u32) -> Result<(), JailError> {
    // To see attributes of the `trusted` namespace, in which overlay directories are marked
    // opaque, the kernel asks for CAP_SYS_ADMIN. The filter leaves nothing else that does.
    let kept = [privileges::CAP_DAC_READ_SEARCH, privileges::CAP_SYS_ADMIN];
    privileges::drop_bounding_set(&kept)?;
    privileges::take_user(uid, uid, &kept)?;
    privileges::forbid_new_rights()?;
    privileges::die_with_parent()
}

fn check(step: &'static str, result: impl Into<i64>) -> Result<(), ConfineError> {
    if result.into() == -1 {
        return Err(ConfineError::Step { step, source: io::Error::last_os_error() });
    }
    Ok(())
}
