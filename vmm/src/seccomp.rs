//! Which system calls each kind of thread may make once the guest runs. Any other kills
//! the process (SIGSYS).
//!
//! The lists are what the code needs and no more; arguments are compared where a call
//! could do something else with others. Nothing here opens a file, makes a socket, starts
//! a thread or a process, or makes memory executable.

use caisson_jail::filter::{Rules, bits, equals, null};
use seccompiler::{BpfProgram, SeccompCondition as Condition};

use crate::virtio::net::OFFLOAD_MASK;

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU, and the devices' registers on its exits.
    Vcpu,
    /// Serves the devices' workers.
    Io,
    /// Speaks with the parent.
    Control,
}

#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("compile the system call filter of the {kind:?} threads")]
    Compile {
        kind: ThreadKind,
        #[source]
        source: seccompiler::BackendError,
    },
    #[error("install the system call filter of this thread")]
    Install(#[source] seccompiler::Error),
}

/// Whether threads are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filtering {
    On,
    /// To measure what the filters cost, and for nothing else.
    Off,
}

/// What a thread confines itself with.
#[derive(Clone)]
pub struct Filter(Option<BpfProgram>);

impl Filter {
    pub fn new(kind: ThreadKind, filtering: Filtering) -> Result<Self, SeccompError> {
        Ok(Self(match filtering {
            Filtering::On => Some(compile(kind)?),
            Filtering::Off => None,
        }))
    }

    /// Confines the calling thread, for good.
    pub fn install(&self) -> Result<(), SeccompError> {
        let Some(program) = &self.0 else { return Ok(()) };
        seccompiler::apply_filter(program).map_err(SeccompError::Install)
    }
}

/// The filter for threads of `kind` in this process.
fn compile(kind: ThreadKind) -> Result<BpfProgram, SeccompError> {
    let mut rules = Rules::default();
    allow_runtime(&mut rules);
    match kind {
        ThreadKind::Vcpu => allow_vcpu(&mut rules),
        ThreadKind::Io => allow_io(&mut rules),
        ThreadKind::Control => allow_control(&mut rules),
    }
    rules.compile().map_err(|source| SeccompError::Compile { kind, source })
}

/// What the allocator, locks, the clock, a panic and the end need, in every thread.
fn allow_runtime(rules: &mut Rules) {
    rules.any(&[
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        libc::SYS_write,
    ]);
    let executable = libc::PROT_EXEC as u32;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u32;
    rules.when(
        libc::SYS_mmap,
        vec![bits(2, executable, 0), bits(3, anonymous | libc::MAP_FIXED as u32, anonymous)],
    );
    rules.when(libc::SYS_mprotect, vec![bits(2, executable, 0)]);
    for advice in [libc::MADV_DONTNEED, libc::MADV_FREE] {
        rules.when(libc::SYS_madvise, vec![equals(2, advice as u32)]);
    }
    // A build with checks asks whether a descriptor is open before it closes it; a device
    // that is activated duplicates some.
    for command in [libc::F_GETFD, libc::F_DUPFD_CLOEXEC] {
        rules.when(libc::SYS_fcntl, vec![equals(1, command as u32)]);
    }
    // abort(3), as a panic ends.
    rules.when(libc::SYS_tgkill, signal_to_itself(libc::SIGABRT));
    // It, and std's handler of faults, go back to the default before the end.
    for signal in [libc::SIGABRT, libc::SIGBUS, libc::SIGSEGV] {
        rules.when(libc::SYS_rt_sigaction, vec![equals(0, signal as u32)]);
    }
}

fn allow_vcpu(rules: &mut Rules) {
    for request in [KVM_RUN, KVM_GET_REGS] {
        rules.when(libc::SYS_ioctl, vec![equals(1, request)]);
    }
    // A device that is activated makes the fds of its worker.
    rules.any(&[libc::SYS_eventfd2, libc::SYS_timerfd_create]);
}

fn allow_io(rules: &mut Rules) {
    rules.any(&[
        libc::SYS_epoll_ctl,
        libc::SYS_epoll_pwait,
        libc::SYS_epoll_wait,
        libc::SYS_eventfd2,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_writev,
        // Entropy.
        libc::SYS_getrandom,
        libc::SYS_timerfd_create,
        libc::SYS_timerfd_settime,
        // Disks.
        libc::SYS_fallocate,
        libc::SYS_fdatasync,
        libc::SYS_fstat,
        libc::SYS_fsync,
        libc::SYS_pread64,
        libc::SYS_preadv,
        libc::SYS_preadv2,
        libc::SYS_pwrite64,
        libc::SYS_pwritev,
        libc::SYS_pwritev2,
        // Streams.
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        // It may hold an address or files, in memory that a filter does not see; every
        // socket here is connected.
        libc::SYS_sendmsg,
        libc::SYS_shutdown,
    ]);
    rules.when(libc::SYS_sendto, vec![null(4)]);
    // Of what is open, not of a name.
    let empty_path = libc::AT_EMPTY_PATH as u32;
    rules.when(libc::SYS_statx, vec![bits(2, empty_path, empty_path)]);
    for request in [libc::FIONBIO, libc::FIONREAD] {
        rules.when(libc::SYS_ioctl, vec![equals(1, request as u32)]);
    }
    // What the tap's kernel may leave to the guest, of that which the guest may choose.
    rules.when(
        libc::SYS_ioctl,
        vec![equals(1, libc::TUNSETOFFLOAD as u32), bits(2, !OFFLOAD_MASK, 0)],
    );
}

fn allow_control(rules: &mut Rules) {
    rules.any(&[libc::SYS_poll, libc::SYS_read, libc::SYS_recvfrom]);
    rules.when(libc::SYS_sendto, vec![null(4)]);
    // What KVM counts.
    rules.any(&[libc::SYS_pread64]);
    rules.when(libc::SYS_tgkill, signal_to_itself(crate::vcpu::kick_signal()));
}

/// `_IO(KVMIO, 0x80)`
pub const KVM_RUN: u32 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`
pub const KVM_GET_REGS: u32 = 0x8090_ae81;

/// The process's own threads, and this signal.
fn signal_to_itself(signal: i32) -> Vec<Condition> {
    vec![equals(0, std::process::id()), equals(2, signal as u32)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ioctl_numbers_are_those_of_kvm() {
        use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, ioctl_expr};
        assert_eq!(ioctl_expr(_IOC_NONE, 0xae, 0x80, 0), libc::c_ulong::from(KVM_RUN));
        let size = size_of::<kvm_bindings::kvm_regs>() as u32;
        assert_eq!(ioctl_expr(_IOC_READ, 0xae, 0x81, size), libc::c_ulong::from(KVM_GET_REGS));
    }

    #[test]
    fn no_filter_is_installed_only_when_that_is_asked() {
        let unfiltered = Filter::new(ThreadKind::Vcpu, Filtering::Off).unwrap();
        assert!(unfiltered.0.is_none());
        unfiltered.install().unwrap();
    }
}
