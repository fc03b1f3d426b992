//! How a jailed vmm, the first process of its pid namespace, can be ended: such a process
//! is spared signals that would end another, and must end all the same.

mod support;

use std::{collections::BTreeMap, fs, io, os::unix::process::ExitStatusExt, time::Duration};

use caisson_vmm::control::{ControlEvent, ControlRequest, EndReason};
use support::{Builder, Vmm, has_kvm, is_root, payload::Payload};

/// Jailed, with every kind of thread, its guest in an endless loop.
fn running() -> Option<Vmm> {
    if !has_kvm() || !is_root() {
        return None;
    }
    let payload = Payload::new().spin();
    let mut builder = Builder::new(&payload).jailed().disk("scratch", &[0; 8192]);
    builder.config.rng = true;
    let mut vmm = builder.start();
    vmm.jailed();
    vmm.expect(ControlEvent::Running);
    Some(vmm)
}

/// The threads' ids on the host, by name.
fn threads(vmm: &Vmm) -> BTreeMap<String, i32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap() {
        let task = entry.unwrap().file_name().into_string().unwrap();
        let name = vmm.proc(&format!("task/{task}/comm")).trim().to_owned();
        // Since Linux 6.13 a worker of KVM itself is counted as a thread of the process.
        if !name.starts_with("kvm-") {
            found.insert(name, task.parse().unwrap());
        }
    }
    found
}

/// A thread that is stopped and can be made to do things.
struct Traced(i32);

impl Traced {
    fn stop(thread: i32) -> Self {
        trace(libc::PTRACE_SEIZE, thread, 0);
        trace(libc::PTRACE_INTERRUPT, thread, 0);
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let stopped = unsafe { libc::waitpid(thread, &mut status, libc::__WALL) };
        assert_eq!(stopped, thread, "{}", io::Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "{status:#x}");
        Self(thread)
    }

    /// Stops the thread in, or just after, a system call: the instruction before is `syscall`.
    fn stop_in_call(thread: i32) -> Self {
        const SYSCALL: u16 = 0x050f;
        for _ in 0..1000 {
            let traced = Self::stop(thread);
            let at = traced.registers().rip as usize - 2;
            if trace(libc::PTRACE_PEEKTEXT, thread, at) as u16 == SYSCALL {
                return traced;
            }
            // It was on its way to or from one.
            trace(libc::PTRACE_DETACH, thread, 0);
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the thread {thread} makes no system call");
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: all-zero is valid: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        trace(libc::PTRACE_GETREGS, self.0, &raw mut registers as usize);
        registers
    }

    /// Makes the thread call the kernel, once it is let go.
    fn call(self, number: i64) {
        let mut registers = self.registers();
        registers.rip -= 2;
        registers.rax = number as u64;
        // The interrupted call is not to be taken up again.
        registers.orig_rax = u64::MAX;
        trace(libc::PTRACE_SETREGS, self.0, &raw mut registers as usize);
        // Not as a traced thread: from those older kernels keep signals off.
        trace(libc::PTRACE_DETACH, self.0, 0);
    }
}

fn trace(request: libc::c_uint, thread: i32, data: usize) -> i64 {
    let (address, data) = match request {
        libc::PTRACE_PEEKTEXT => (data, 0),
        _ => (0, data),
    };
    // SAFETY: the requests used here read and write `data` as the structure that the caller
    // passes, which outlives the call, or take numbers.
    let result = unsafe {
        *libc::__errno_location() = 0;
        libc::ptrace(request, thread, address as *mut libc::c_void, data as *mut libc::c_void)
    };
    let error = io::Error::last_os_error();
    assert!(result != -1 || error.raw_os_error() == Some(0), "ptrace {request:#x}: {error}");
    result
}

#[test]
fn a_forbidden_call_in_any_thread_ends_the_whole_vmm() {
    for name in ["caisson-vmm", "vcpu0", "block", "io"] {
        for number in [libc::SYS_openat, libc::SYS_socket, libc::SYS_execve, libc::SYS_clone] {
            let Some(mut vmm) = running() else { return };
            let thread = threads(&vmm)[name];
            Traced::stop_in_call(thread).call(number);
            let status = vmm.wait();
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{name}, call {number}: {status}");
            assert_eq!(vmm.event(), None);
        }
    }
}

#[test]
fn sigkill_from_outside_ends_it_and_its_namespace() {
    let Some(mut vmm) = running() else { return };
    vmm.kill();
    assert_eq!(vmm.wait().signal(), Some(libc::SIGKILL));
}

#[test]
fn a_fault_ends_it() {
    // Faults come from the kernel, which spares nobody. Nothing is mapped at the first
    // address, and nothing can be at the second.
    for address in [8, 1 << 63] {
        let Some(mut vmm) = running() else { return };
        let thread = threads(&vmm)["caisson-vmm"];
        let traced = Traced::stop(thread);
        // SAFETY: all-zero is valid: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        trace(libc::PTRACE_GETREGS, traced.0, &raw mut registers as usize);
        registers.rip = address;
        registers.orig_rax = u64::MAX;
        trace(libc::PTRACE_SETREGS, traced.0, &raw mut registers as usize);
        trace(libc::PTRACE_DETACH, traced.0, 0);
        let status = vmm.wait();
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
    }
}

#[test]
fn a_panics_abort_ends_it() {
    let Some(mut vmm) = running() else { return };
    let thread = threads(&vmm)["io"];
    let traced = Traced::stop(thread);
    let abort = abort_of(&vmm);
    // SAFETY: all-zero is valid: plain numbers.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    trace(libc::PTRACE_GETREGS, traced.0, &raw mut registers as usize);
    registers.rip = abort;
    // As at the entry of a function (System V ABI): 8 past a multiple of 16.
    registers.rsp = (registers.rsp & !0xf) - 1024 - 8;
    registers.orig_rax = u64::MAX;
    trace(libc::PTRACE_SETREGS, traced.0, &raw mut registers as usize);
    trace(libc::PTRACE_DETACH, traced.0, 0);
    let status = vmm.wait();
    // The first process of a namespace is spared its own SIGABRT; the instruction with which
    // abort(3) goes on is a fault.
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}: {}", vmm.stderr());
}

/// Where the vmm's `abort` is: as far into its libc as into this program's.
fn abort_of(vmm: &Vmm) -> u64 {
    let base = |maps: &str| {
        let line = maps.lines().find(|line| line.contains("libc.so")).expect("libc is mapped");
        u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap()
    };
    let own = fs::read_to_string("/proc/self/maps").unwrap();
    let address = libc::abort as *const () as usize as u64;
    base(&vmm.proc("maps")) + (address - base(&own))
}

#[test]
fn a_signal_from_outside_that_is_not_sigkill_does_not_reach_it() {
    let Some(mut vmm) = running() else { return };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
        // SAFETY: takes numbers; the child is not reaped yet.
        assert_eq!(unsafe { libc::kill(vmm.pid() as i32, signal) }, 0);
    }
    vmm.request(ControlRequest::Pause);
    vmm.expect(ControlEvent::Paused);
    vmm.request(ControlRequest::Stop);
    assert_eq!(vmm.ended().0, EndReason::Stopped);
}

#[test]
fn it_ends_with_its_parent() {
    let Some(mut vmm) = running() else { return };
    vmm.hang_up();
    assert_eq!(vmm.wait().code(), Some(0));
}

#[test]
fn a_vmm_that_is_not_the_first_of_a_namespace_but_should_be_is_refused() {
    if !has_kvm() || !is_root() {
        return;
    }
    let mut builder = Builder::new(&Payload::new().reset()).jailed();
    builder.config.jail.as_mut().unwrap().pid_namespace = true;
    let mut vmm = builder.start_in_this_namespace();
    let (reason, _, status) = vmm.ended();
    assert_eq!(status.code(), Some(2));
    let EndReason::Failed { message } = reason else { panic!("{reason:?}") };
    assert!(message.contains("the parent must start it in a new one"), "{message}");
}

#[test]
fn a_jail_without_filters_is_refused() {
    if !has_kvm() || !is_root() {
        return;
    }
    let builder = Builder::new(&Payload::new().reset());
    let mut vmm = builder.jailed().arguments(&["--no-seccomp"]).start();
    let (reason, _, status) = vmm.ended();
    assert_eq!(status.code(), Some(2));
    let EndReason::Failed { message } = reason else { panic!("{reason:?}") };
    assert!(message.contains("--no-seccomp"), "{message}");
    // Without a jail it is how the filters' cost is measured.
    let payload = Payload::new().print("measured").spin();
    let mut vmm = Builder::new(&payload).arguments(&["--no-seccomp"]).start();
    vmm.expect(ControlEvent::Running);
    let status = vmm.proc("status");
    assert!(status.contains("Seccomp:\t0\n"), "{status}");
    vmm.request(ControlRequest::Stop);
    assert_eq!(vmm.ended().0, EndReason::Stopped);
}
