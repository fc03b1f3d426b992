//! Which system calls each kind of thread may make once the guest runs. Any other kills
//! the process (SIGSYS).
//!
//! The lists are what the code needs and no more; arguments are compared where a call
//! could do something else with others. Nothing here opens a file, makes a socket, starts
//! a thread or a process, or makes memory executable.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare,
    SeccompCondition as Condition, SeccompFilter, SeccompRule, TargetArch,
};

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

/// Makes the filter for threads of `kind`.
pub fn compile(kind: ThreadKind) -> Result<BpfProgram, SeccompError> {
    let failed = |source| SeccompError::Compile { kind, source };
    let mut rules = Rules::default();
    allow_runtime(&mut rules);
    match kind {
        ThreadKind::Vcpu => allow_vcpu(&mut rules),
        ThreadKind::Io => allow_io(&mut rules),
        ThreadKind::Control => allow_control(&mut rules),
    }
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules.0, otherwise, listed, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(failed)
}

/// Confines the calling thread, for good.
pub fn install(program: &BpfProgram) -> Result<(), SeccompError> {
    seccompiler::apply_filter(program).map_err(SeccompError::Install)
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
    rules.when(libc::SYS_tgkill, vec![equals(2, libc::SIGABRT as u32)]);
    rules.when(libc::SYS_rt_sigaction, vec![equals(0, libc::SIGABRT as u32)]);
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
        libc::SYS_statx,
        // Streams.
        libc::SYS_accept4,
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_sendto,
        libc::SYS_shutdown,
    ]);
    for request in [libc::FIONBIO, libc::FIONREAD] {
        rules.when(libc::SYS_ioctl, vec![equals(1, request as u32)]);
    }
}

fn allow_control(rules: &mut Rules) {
    rules.any(&[libc::SYS_poll, libc::SYS_read, libc::SYS_recvfrom, libc::SYS_sendto]);
    // What KVM counts.
    rules.any(&[libc::SYS_pread64]);
    rules.when(libc::SYS_tgkill, vec![equals(2, crate::vcpu::kick_signal() as u32)]);
}

/// `_IO(KVMIO, 0x80)`
const KVM_RUN: u32 = 0xae80;
/// `_IOR(KVMIO, 0x81, struct kvm_regs)`
const KVM_GET_REGS: u32 = 0x8090_ae81;

#[derive(Default)]
struct Rules(BTreeMap<i64, Vec<SeccompRule>>);

impl Rules {
    /// These calls with any arguments.
    fn any(&mut self, calls: &[i64]) {
        for &call in calls {
            self.0.insert(call, Vec::new());
        }
    }

    /// This call if all `conditions` hold; as often as called, with any of them.
    fn when(&mut self, call: i64, conditions: Vec<Condition>) {
        let rule = SeccompRule::new(conditions).expect("no rule here is without conditions");
        self.0.entry(call).or_default().push(rule);
    }
}

fn equals(argument: u8, value: u32) -> Condition {
    condition(argument, Compare::Eq, value)
}

/// The bits of `mask` have this `value`.
fn bits(argument: u8, mask: u32, value: u32) -> Condition {
    condition(argument, Compare::MaskedEq(mask.into()), value)
}

/// All the arguments compared are ints in the kernel's eyes.
fn condition(argument: u8, compare: Compare, value: u32) -> Condition {
    Condition::new(argument, Length::Dword, compare, value.into())
        .expect("a system call has the argument")
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

    /// What happens to a child that confines itself as `kind` and then calls `action`:
    /// its exit code, or the signal that killed it as a negative number.
    fn confined(kind: ThreadKind, action: fn()) -> i32 {
        let program = compile(kind).unwrap();
        // SAFETY: the child makes only async-signal-safe calls: it installs the filter,
        // runs an action of plain system calls, and leaves without unwinding.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                if install(&program).is_err() {
                    libc::_exit(99);
                }
                action();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            if libc::WIFSIGNALED(status) {
                -libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            }
        }
    }

    const KINDS: [ThreadKind; 3] = [ThreadKind::Vcpu, ThreadKind::Io, ThreadKind::Control];

    #[test]
    fn the_end_and_memory_are_allowed_to_every_thread() {
        for kind in KINDS {
            // SAFETY: maps and unmaps a page of its own.
            let action = || unsafe {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
                libc::munmap(page, 4096);
            };
            assert_eq!(confined(kind, action), 0, "{kind:?}");
        }
    }

    #[test]
    fn a_forbidden_call_kills_every_thread_kind() {
        // SAFETY: plain system calls, none of which is reached.
        let forbidden: [fn(); 7] = [
            || unsafe {
                libc::open(c"/".as_ptr(), libc::O_RDONLY);
            },
            || unsafe {
                libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
            },
            || unsafe {
                libc::fork();
            },
            || unsafe {
                libc::execve(c"/bin/true".as_ptr(), std::ptr::null(), std::ptr::null());
            },
            || unsafe {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_EXEC, flags, -1, 0);
            },
            || unsafe {
                libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr());
            },
            || unsafe {
                libc::kill(libc::getpid(), libc::SIGTERM);
            },
        ];
        for kind in KINDS {
            for (index, action) in forbidden.into_iter().enumerate() {
                assert_eq!(confined(kind, action), -libc::SIGSYS, "{kind:?}, action {index}");
            }
        }
    }
}
