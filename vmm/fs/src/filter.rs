//! The system calls of the server. Any other kills it.

use caisson_jail::filter::{Rules, bits};
use seccompiler::{BackendError, BpfProgram};

/// What the server may call: files by name beneath its root, and the one socket. None makes a
/// process, a socket or a mount, none opens a file by handle (which leads out of any root).
pub(crate) fn compile() -> Result<BpfProgram, BackendError> {
    let mut rules = Rules::default();
    rules.any(&[
        // Allocator, locks, clock, the end.
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_getrandom,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        // Messages.
        libc::SYS_recvfrom,
        libc::SYS_write,
        libc::SYS_writev,
        // Users.
        libc::SYS_capget,
        libc::SYS_capset,
        libc::SYS_setresgid,
        libc::SYS_setresuid,
        // Files.
        libc::SYS_copy_file_range,
        libc::SYS_dup,
        libc::SYS_fallocate,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchownat,
        libc::SYS_fcntl,
        libc::SYS_fdatasync,
        libc::SYS_fgetxattr,
        libc::SYS_flistxattr,
        libc::SYS_flock,
        libc::SYS_fremovexattr,
        libc::SYS_fsetxattr,
        libc::SYS_fstat,
        libc::SYS_fstatfs,
        libc::SYS_fsync,
        libc::SYS_ftruncate,
        libc::SYS_getdents64,
        libc::SYS_getxattr,
        libc::SYS_linkat,
        libc::SYS_listxattr,
        libc::SYS_lseek,
        libc::SYS_mkdirat,
        libc::SYS_mknodat,
        libc::SYS_newfstatat,
        libc::SYS_openat,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        libc::SYS_readlinkat,
        libc::SYS_removexattr,
        libc::SYS_renameat2,
        libc::SYS_setxattr,
        libc::SYS_statx,
        libc::SYS_symlinkat,
        libc::SYS_unlinkat,
        libc::SYS_utimensat,
    ]);
    let executable = libc::PROT_EXEC as u32;
    rules.when(libc::SYS_mmap, vec![bits(2, executable, 0)]);
    rules.when(libc::SYS_mprotect, vec![bits(2, executable, 0)]);
    rules.compile()
}
