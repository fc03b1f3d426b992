//! Forgets what a process inherits beside files: environment, signals, umask.

use std::{mem, ptr};

use super::{JailError, check};

/// Makes every signal what it is by default, but SIGPIPE, which a Rust program ignores, and
/// blocks none: what the parent ignored or blocked would hold here and for every thread.
pub fn reset_signals() -> Result<(), JailError> {
    // SAFETY: all-zero is a valid sigaction and sigset_t: the default handler, no signal.
    let (default, mut none): (libc::sigaction, libc::sigset_t) = unsafe { mem::zeroed() };
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: as above; the pointers are to values that outlive the calls. Signals that
        // cannot be changed, or are glibc's own, are refused and left alone.
        unsafe {
            let mut current: libc::sigaction = mem::zeroed();
            if libc::sigaction(signal, ptr::null(), &mut current) == 0
                && current.sa_sigaction == libc::SIG_IGN
                && signal != libc::SIGPIPE
            {
                check("reset a signal", libc::sigaction(signal, &default, ptr::null_mut()))?;
            }
        }
    }
    // SAFETY: the set outlives the calls.
    unsafe {
        libc::sigemptyset(&mut none);
        check("unblock signals", libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()))
    }
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
