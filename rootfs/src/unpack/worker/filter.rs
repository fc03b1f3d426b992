//! Which system calls a confined process may make. Any other kills it (SIGSYS).

use caisson_jail::filter::{Rules, bits, equals};
use seccompiler::BpfProgram;

use crate::unpack::job::Job;

/// The filter for a job.
pub(super) fn compile(job: &Job) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = Rules::default();
    allow_runtime(&mut rules);
    match job {
        Job::Decompress { .. } => {}
        Job::Layer { .. } => allow_image(&mut rules),
        Job::Tree { .. } => {
            allow_image(&mut rules);
            allow_reading_a_tree(&mut rules);
        }
    }
    rules.compile()
}

/// Streams, memory, and the end.
fn allow_runtime(rules: &mut Rules) {
    rules.any(&[
        libc::SYS_brk,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        // The standard library's maps want a seed.
        libc::SYS_getrandom,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_read,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_write,
        // A build with checks asks whether a descriptor is open before it closes it.
        libc::SYS_fcntl,
    ]);
    let executable = libc::PROT_EXEC as u32;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
    rules.when(libc::SYS_mmap, vec![bits(2, executable, 0), bits(3, anonymous, anonymous)]);
    rules.when(libc::SYS_mprotect, vec![bits(2, executable, 0)]);
    for advice in [libc::MADV_DONTNEED, libc::MADV_FREE] {
        rules.when(libc::SYS_madvise, vec![equals(2, advice as u32)]);
    }
    // abort(3), as a panic ends.
    rules.when(libc::SYS_tgkill, vec![equals(2, libc::SIGABRT as u32)]);
    rules.when(libc::SYS_rt_sigaction, vec![equals(0, libc::SIGABRT as u32)]);
}

/// The image and the scratch file.
fn allow_image(rules: &mut Rules) {
    rules.any(&[libc::SYS_lseek, libc::SYS_pread64, libc::SYS_pwrite64]);
}

/// Looking and opening to read, but not a handle (open_by_handle_at), which would reach
/// beyond the tree.
fn allow_reading_a_tree(rules: &mut Rules) {
    rules.any(&[
        libc::SYS_fchdir,
        libc::SYS_fstat,
        libc::SYS_getdents64,
        libc::SYS_lgetxattr,
        libc::SYS_llistxattr,
        libc::SYS_newfstatat,
        // Its flags lie in memory and cannot be looked at; the tree's mount is read-only.
        libc::SYS_openat2,
        libc::SYS_readlinkat,
        libc::SYS_statx,
    ]);
    let writing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND;
    rules.when(libc::SYS_openat, vec![bits(2, writing as u32, libc::O_RDONLY as u32)]);
}
