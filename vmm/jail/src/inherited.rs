//! Forgets what a process inherits beside files: environment, signals, umask.

use std::ptr;

use super::{JailError, check};

/// `struct sigaction` as the kernel has it: glibc's keeps two signals for itself.
#[repr(C)]
#[derive(Default)]
struct Action {
    handler: libc::sighandler_t,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Makes every signal that is ignored what it is by default, but SIGPIPE, which a Rust
/// program ignores, and blocks none: what the parent ignored or blocked would hold here and
/// for every thread.
pub fn reset_signals() -> Result<(), JailError> {
    const MASK_BYTES: usize = size_of::<u64>();
    let default = Action { handler: libc::SIG_DFL, ..Action::default() };
    for signal in (1..=64).filter(|&signal| signal != libc::SIGPIPE) {
        let mut current = Action::default();
        let (none, found) = (ptr::null::<Action>(), &raw mut current);
        // SAFETY: `current` outlives the call and is as the kernel lays it out.
        let asked =
            unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, none, found, MASK_BYTES) };
        check("ask what a signal does", asked)?;
        if current.handler == libc::SIG_IGN {
            let none = ptr::null::<Action>();
            // SAFETY: as above; the default handler is no code of this process.
            let reset = unsafe {
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const default, none, MASK_BYTES)
            };
            check("reset a signal", reset)?;
        }
    }
    let blocked = 0_u64;
    // SAFETY: the mask outlives the call and is as large as said.
    let unblocked = unsafe {
        let (how, none) = (libc::SIG_SETMASK, ptr::null::<u64>());
        libc::syscall(libc::SYS_rt_sigprocmask, how, &raw const blocked, none, MASK_BYTES)
    };
    check("unblock signals", unblocked)
}

/// What the process makes, if it can make anything, is nobody else's.
pub fn restrict_umask() {
    // SAFETY: takes a number, and cannot fail.
    unsafe { libc::umask(0o077) };
}

/// Zeroes the environment, for the process and for who reads it in /proc.
pub fn clear_environment() -> Result<(), JailError> {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: there is one thread, and nothing holds a pointer into the environment. Its
    // strings lie on the initial stack, which may be written, and end in NUL; the list of
    // them ends in null.
    let result = unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            entry = entry.add(1);
        }
        libc::clearenv()
    };
    check("clear the environment", if result == 0 { 0 } else { -1 })
}
