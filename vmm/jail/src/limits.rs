//! Resource limits that the process cannot raise again.

use super::{JailError, check};

/// Open files as configured; no core dump (it would hold guest memory), no locked
/// memory, no message queues.
///
/// No limit on processes: it would count those of other VMs with the same user, and the
/// filters forbid to make any. None on file sizes: disks are as large as they are.
pub fn set(max_open_files: u64) -> Result<(), JailError> {
    limit("limit open files", libc::RLIMIT_NOFILE, max_open_files)?;
    limit("forbid core dumps", libc::RLIMIT_CORE, 0)?;
    limit("forbid locked memory", libc::RLIMIT_MEMLOCK, 0)?;
    limit("forbid message queues", libc::RLIMIT_MSGQUEUE, 0)
}

fn limit(
    step: &'static str,
    resource: libc::__rlimit_resource_t,
    value: u64,
) -> Result<(), JailError> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: `limit` outlives the call.
    check(step, unsafe { libc::setrlimit(resource, &limit) })
}
