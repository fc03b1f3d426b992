//! Whether the vCPUs may run: the state that all threads of a VM agree on.
//!
//! ```text
//!   paused ──resume──► running ──end──► ended (for good, with the first reason)
//!     ▲  └────────end────────┼──────────▲
//!     └───────pause──────────┘
//! ```
//!
//! A VM begins paused; so no vCPU enters the guest before every thread is confined.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::EndReason;

const KICK_AGAIN: Duration = Duration::from_millis(20);

pub struct Lifecycle {
    state: Mutex<State>,
    /// Waited on by parked vCPUs, and by who pauses them.
    changed: Condvar,
    /// Set while the vCPUs have a reason not to enter the guest, so that entering it costs
    /// one load and no lock.
    attention: AtomicBool,
    /// Readable once the VM has ended, for the control thread's poll.
    ended: EventFd,
    vcpus: u8,
}

struct State {
    paused: bool,
    /// vCPUs that wait in [`Lifecycle::may_run`].
    parked: u8,
    ended: Option<EndReason>,
}

impl Lifecycle {
    /// Of a VM that is paused.
    pub fn new(vcpus: u8) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State { paused: true, parked: 0, ended: None }),
            changed: Condvar::new(),
            attention: AtomicBool::new(true),
            ended: EventFd::new(EFD_NONBLOCK)?,
            vcpus,
        })
    }

    /// Called by a vCPU before it enters the guest: waits while the VM is paused; false
    /// once it has ended.
    pub fn may_run(&self) -> bool {
        if !self.attention.load(Ordering::Acquire) {
            return true;
        }
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while state.paused && state.ended.is_none() {
            state = self.wait(state);
        }
        state.parked -= 1;
        state.ended.is_none()
    }

    /// Pauses the VM: `kick` makes every vCPU leave the guest, or a system call that it
    /// is blocked in. Returns when none is in the guest.
    pub fn pause(&self, kick: impl Fn()) {
        self.lock().paused = true;
        self.attention.store(true, Ordering::Release);
        loop {
            kick();
            let state = self.lock();
            let running = |state: &mut State| state.parked < self.vcpus && state.ended.is_none();
            // A kick just before a system call blocks does not interrupt it: kick again.
            let (_state, timeout) = self
                .changed
                .wait_timeout_while(state, KICK_AGAIN, running)
                .unwrap_or_else(PoisonError::into_inner);
            if !timeout.timed_out() {
                return;
            }
        }
    }

    pub fn resume(&self) {
        let mut state = self.lock();
        state.paused = false;
        self.attention.store(state.ended.is_some(), Ordering::Release);
        drop(state);
        self.changed.notify_all();
    }

    /// Ends the VM; the first reason counts.
    pub fn end(&self, reason: EndReason) {
        let mut state = self.lock();
        state.ended.get_or_insert(reason);
        self.attention.store(true, Ordering::Release);
        drop(state);
        self.changed.notify_all();
        // A full counter is as readable as a small one.
        let _ = self.ended.write(1);
    }

    /// Why the VM has ended, if it has.
    pub fn ended(&self) -> Option<EndReason> {
        self.lock().ended.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable once the VM has ended.
impl AsRawFd for Lifecycle {
    fn as_raw_fd(&self) -> RawFd {
        self.ended.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_vcpu_waits_until_the_vm_is_resumed() {
        let lifecycle = Arc::new(Lifecycle::new(1).unwrap());
        let vcpu = thread::spawn({
            let lifecycle = lifecycle.clone();
            move || lifecycle.may_run()
        });
        lifecycle.pause(|| ());
        lifecycle.resume();
        assert!(vcpu.join().unwrap());
        assert!(lifecycle.may_run(), "running: no wait");
    }

    #[test]
    fn the_end_frees_who_waits_and_keeps_its_first_reason() {
        let lifecycle = Arc::new(Lifecycle::new(2).unwrap());
        let vcpu = thread::spawn({
            let lifecycle = lifecycle.clone();
            move || lifecycle.may_run()
        });
        lifecycle.end(EndReason::Reset);
        lifecycle.end(EndReason::Stopped);
        assert!(!vcpu.join().unwrap());
        lifecycle.pause(|| ());
        lifecycle.resume();
        assert!(!lifecycle.may_run());
        assert_eq!(lifecycle.ended(), Some(EndReason::Reset));
    }
}
