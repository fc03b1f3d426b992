//! The filters of each kind of thread, on real processes.
//!
//! In a program of its own: the children that try system calls are forks, and hold what
//! tests beside them have open.

use caisson_vmm::{
    seccomp::{Filter, Filtering, KVM_GET_REGS, KVM_RUN, ThreadKind},
    vcpu::kick_signal,
};

const KINDS: [ThreadKind; 3] = [ThreadKind::Vcpu, ThreadKind::Io, ThreadKind::Control];

/// What became of a child.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Exited(i32),
    Killed(i32),
}

const FORBIDDEN: Fate = Fate::Killed(libc::SIGSYS);

/// Runs `action` in a child that has confined itself as `kind`.
fn confined(kind: ThreadKind, action: impl FnOnce()) -> Fate {
    // SAFETY: the child has one thread, allocates (glibc's allocator survives a fork), makes
    // plain system calls, and leaves without unwinding.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let installed = Filter::new(kind, Filtering::On).and_then(|filter| filter.install());
            if installed.is_err() {
                libc::_exit(99);
            }
            action();
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        if libc::WIFSIGNALED(status) {
            Fate::Killed(libc::WTERMSIG(status))
        } else {
            Fate::Exited(libc::WEXITSTATUS(status))
        }
    }
}

/// What becomes of a thread of `kind` that makes this system call.
fn fate(kind: ThreadKind, number: i64, arguments: [u64; 6]) -> Fate {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the calls of these tests are refused by the filter, or harmless by their
    // arguments; what they do is done to a child that ends.
    confined(kind, || unsafe {
        libc::syscall(number, a, b, c, d, e, f);
    })
}

/// The calls that are allowed with at least some arguments, listed a second time: a filter
/// that grows has to be widened here too.
fn allowed(kind: ThreadKind) -> Vec<i64> {
    let mut calls = vec![
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_fcntl,
        libc::SYS_futex,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        libc::SYS_tgkill,
        libc::SYS_write,
    ];
    calls.extend(match kind {
        ThreadKind::Vcpu => &[libc::SYS_eventfd2, libc::SYS_ioctl, libc::SYS_timerfd_create][..],
        ThreadKind::Io => &[
            libc::SYS_accept4,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_wait,
            libc::SYS_eventfd2,
            libc::SYS_fallocate,
            libc::SYS_fdatasync,
            libc::SYS_fstat,
            libc::SYS_fsync,
            libc::SYS_getrandom,
            libc::SYS_ioctl,
            libc::SYS_pread64,
            libc::SYS_preadv,
            libc::SYS_preadv2,
            libc::SYS_pwrite64,
            libc::SYS_pwritev,
            libc::SYS_pwritev2,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_sendto,
            libc::SYS_shutdown,
            libc::SYS_statx,
            libc::SYS_timerfd_create,
            libc::SYS_timerfd_settime,
            libc::SYS_writev,
        ],
        ThreadKind::Control => &[
            libc::SYS_poll,
            libc::SYS_pread64,
            libc::SYS_read,
            libc::SYS_recvfrom,
            libc::SYS_sendto,
        ],
    });
    calls
}

#[test]
fn every_call_that_is_not_listed_kills_every_kind_of_thread() {
    // Beyond the last number that any kernel has.
    const NUMBERS: i64 = 600;
    // uretprobe and uprobe: newer kernels let them past every filter, and do nothing for
    // who calls them from elsewhere than the kernel's own trampolines.
    const PROBES: [i64; 2] = [335, 336];
    for kind in KINDS {
        let mut spared = allowed(kind);
        spared.extend(PROBES);
        for number in (0..NUMBERS).filter(|number| !spared.contains(number)) {
            assert_eq!(fate(kind, number, [0; 6]), FORBIDDEN, "{kind:?}, call {number}");
        }
    }
}

#[test]
fn other_ways_into_the_kernel_are_closed() {
    for kind in KINDS {
        // getpid by the x32 table.
        let x32 = 0x4000_0000 | libc::SYS_getpid;
        assert_eq!(fate(kind, x32, [0; 6]), FORBIDDEN, "{kind:?}");
        // getpid by the 32-bit table, which a kernel may be built without.
        // SAFETY: the call changes nothing but the register that is named.
        let gate = || unsafe { std::arch::asm!("int 0x80", inout("eax") 20 => _) };
        let fate = confined(kind, gate);
        assert!([FORBIDDEN, Fate::Killed(libc::SIGSEGV)].contains(&fate), "{kind:?}: {fate:?}");
    }
}

#[test]
fn a_listed_call_with_other_arguments_kills() {
    const NONE: u64 = u64::MAX;
    const PAGE: u64 = 4096;
    let private = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let parent = u64::from(std::process::id());
    let (read, exec) = (libc::PROT_READ as u64, libc::PROT_EXEC as u64);
    let everywhere = [
        ("mmap executable", libc::SYS_mmap, [0, PAGE, read | exec, private, NONE, 0]),
        ("mmap over", libc::SYS_mmap, [0, PAGE, read, private | libc::MAP_FIXED as u64, NONE, 0]),
        ("mmap a file", libc::SYS_mmap, [0, PAGE, read, libc::MAP_PRIVATE as u64, 0, 0]),
        ("mmap shared", libc::SYS_mmap, [0, PAGE, read, 0x21, NONE, 0]),
        ("mprotect executable", libc::SYS_mprotect, [0, PAGE, exec, 0, 0, 0]),
        ("madvise", libc::SYS_madvise, [0, PAGE, libc::MADV_DODUMP as u64, 0, 0, 0]),
        ("tgkill with SIGKILL", libc::SYS_tgkill, [parent, parent, 9, 0, 0, 0]),
        ("tgkill of the parent", libc::SYS_tgkill, [parent, NONE, 6, 0, 0, 0]),
        ("sigaction", libc::SYS_rt_sigaction, [libc::SIGSYS as u64, 0, 0, 8, 0, 0]),
        ("fcntl F_SETFL", libc::SYS_fcntl, [0, libc::F_SETFL as u64, 0, 0, 0, 0]),
        ("fcntl F_SETOWN", libc::SYS_fcntl, [0, libc::F_SETOWN as u64, parent, 0, 0, 0]),
        ("ioctl TIOCSTI", libc::SYS_ioctl, [0, libc::TIOCSTI, 0, 0, 0, 0]),
        // KVM_CREATE_VM, KVM_CREATE_VCPU, KVM_SET_USER_MEMORY_REGION, KVM_SET_MSRS.
        ("ioctl KVM_CREATE_VM", libc::SYS_ioctl, [NONE, 0xae01, 0, 0, 0, 0]),
        ("ioctl KVM_CREATE_VCPU", libc::SYS_ioctl, [NONE, 0xae41, 0, 0, 0, 0]),
        ("ioctl KVM_SET_MEMORY", libc::SYS_ioctl, [NONE, 0x4020_ae46, 0, 0, 0, 0]),
        ("ioctl KVM_SET_MSRS", libc::SYS_ioctl, [NONE, 0x4008_ae89, 0, 0, 0, 0]),
        ("sendto an address", libc::SYS_sendto, [NONE, 0, 0, 0, PAGE, 16]),
        ("statx of a name", libc::SYS_statx, [NONE, PAGE, 0, 0, 0, 0]),
    ];
    for kind in KINDS {
        for (what, number, arguments) in everywhere {
            assert_eq!(fate(kind, number, arguments), FORBIDDEN, "{kind:?}, {what}");
        }
    }
    // What one kind may, another may not.
    let kick = kick_signal() as u64;
    for (kind, what, number, arguments) in [
        (ThreadKind::Io, "KVM_RUN", libc::SYS_ioctl, [NONE, KVM_RUN.into(), 0, 0, 0, 0]),
        (ThreadKind::Control, "KVM_RUN", libc::SYS_ioctl, [NONE, KVM_RUN.into(), 0, 0, 0, 0]),
        (ThreadKind::Vcpu, "offloads", libc::SYS_ioctl, [NONE, libc::TUNSETOFFLOAD, 0, 0, 0, 0]),
        (ThreadKind::Io, "others", libc::SYS_ioctl, [NONE, libc::TUNSETOFFLOAD, 0x10, 0, 0, 0]),
        (ThreadKind::Io, "a tap", libc::SYS_ioctl, [NONE, libc::TUNSETIFF, 0, 0, 0, 0]),
        (ThreadKind::Vcpu, "FIONREAD", libc::SYS_ioctl, [NONE, libc::FIONREAD, 0, 0, 0, 0]),
        (ThreadKind::Vcpu, "a kick", libc::SYS_tgkill, [parent, NONE, kick, 0, 0, 0]),
        (ThreadKind::Io, "a kick", libc::SYS_tgkill, [parent, NONE, kick, 0, 0, 0]),
        (ThreadKind::Control, "a kick of others", libc::SYS_tgkill, [parent, NONE, kick, 0, 0, 0]),
    ] {
        assert_eq!(fate(kind, number, arguments), FORBIDDEN, "{kind:?}, {what}");
    }
}

#[test]
fn what_a_thread_needs_is_allowed() {
    const NONE: u64 = u64::MAX;
    let null = [NONE, 0, 0, 0, 0, 0];
    let empty_path = libc::AT_EMPTY_PATH as u64;
    for (kind, what, number, arguments) in [
        (ThreadKind::Vcpu, "KVM_RUN", libc::SYS_ioctl, [NONE, KVM_RUN.into(), 0, 0, 0, 0]),
        (
            ThreadKind::Vcpu,
            "KVM_GET_REGS",
            libc::SYS_ioctl,
            [NONE, KVM_GET_REGS.into(), 0, 0, 0, 0],
        ),
        (ThreadKind::Vcpu, "an eventfd", libc::SYS_eventfd2, [0; 6]),
        (ThreadKind::Io, "a read", libc::SYS_preadv, null),
        (ThreadKind::Io, "a write", libc::SYS_pwritev, null),
        (ThreadKind::Io, "a flush", libc::SYS_fdatasync, null),
        (ThreadKind::Io, "a length", libc::SYS_statx, [NONE, 0, empty_path, 0, 0, 0]),
        (ThreadKind::Io, "an accept", libc::SYS_accept4, null),
        (ThreadKind::Io, "a send", libc::SYS_sendto, null),
        (ThreadKind::Control, "a send", libc::SYS_sendto, null),
        (ThreadKind::Control, "a wait", libc::SYS_poll, [0; 6]),
    ] {
        assert_eq!(fate(kind, number, arguments), Fate::Exited(0), "{kind:?}, {what}");
    }
    for kind in KINDS {
        // SAFETY: maps and unmaps a page of its own.
        let memory = || unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let page = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
            libc::munmap(page, 4096);
        };
        assert_eq!(confined(kind, memory), Fate::Exited(0), "{kind:?}");
        let abort = || std::process::abort();
        assert_eq!(confined(kind, abort), Fate::Killed(libc::SIGABRT), "{kind:?}");
    }
    // Its own threads, of which none has this number.
    let kick = || {
        let (pid, signal) = (std::process::id(), kick_signal());
        // SAFETY: takes numbers only.
        unsafe { libc::syscall(libc::SYS_tgkill, pid, i32::MAX, signal) };
    };
    assert_eq!(confined(ThreadKind::Control, kick), Fate::Exited(0));
}
