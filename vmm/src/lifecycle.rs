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
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::EndReason;

pub struct Lifecycle {
    state: Mutex<State>,
    /// Waited on by parked vCPUs.
    freed: Condvar,
    /// Set while the vCPUs have a reason not to enter the guest, so that entering it costs
    /// one load and no lock.
    attention: AtomicBool,
    /// Readable after the VM has ended, or its last vCPU has parked; for the control
    /// thread's poll.
    changes: EventFd,
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
            freed: Condvar::new(),
            attention: AtomicBool::new(true),
            changes: EventFd::new(EFD_NONBLOCK)?,
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
        if state.is_paused(self.vcpus) {
            self.tell();
        }
        while state.paused && state.ended.is_none() {
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.parked -= 1;
        state.ended.is_none()
    }

    /// No vCPU enters the guest any more. Those that are in it must be made to leave; when
    /// the last has, [`Self::is_paused`] is true and [`Self::changes`] readable.
    pub fn pause(&self) {
        self.lock().paused = true;
        self.attention.store(true, Ordering::Release);
    }

    /// Whether the VM is paused and no vCPU is in the guest.
    pub fn is_paused(&self) -> bool {
        self.lock().is_paused(self.vcpus)
    }

    pub fn resume(&self) {
        let mut state = self.lock();
        state.paused = false;
        self.attention.store(state.ended.is_some(), Ordering::Release);
        drop(state);
        self.freed.notify_all();
    }

    /// Ends the VM; the first reason counts.
    pub fn end(&self, reason: EndReason) {
        let mut state = self.lock();
        state.ended.get_or_insert(reason);
        self.attention.store(true, Ordering::Release);
        drop(state);
        self.freed.notify_all();
        self.tell();
    }

    /// Why the VM has ended, if it has.
    pub fn ended(&self) -> Option<EndReason> {
        self.lock().ended.clone()
    }

    /// Readable after a change that the control thread wants to know.
    pub fn changes(&self) -> &EventFd {
        &self.changes
    }

    fn tell(&self) {
        // A full counter is as readable as a small one.
        let _ = self.changes.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_paused(&self, vcpus: u8) -> bool {
        self.paused && self.parked == vcpus
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    fn vcpu(lifecycle: &Arc<Lifecycle>) -> thread::JoinHandle<bool> {
        let lifecycle = lifecycle.clone();
        thread::spawn(move || lifecycle.may_run())
    }

    /// Waits, without a limit, until all vCPUs have parked.
    fn wait_until_paused(lifecycle: &Lifecycle) {
        while !lifecycle.is_paused() {
            thread::yield_now();
        }
    }

    #[test]
    fn a_vcpu_waits_until_the_vm_is_resumed() {
        let lifecycle = Arc::new(Lifecycle::new(1).unwrap());
        let vcpu = vcpu(&lifecycle);
        wait_until_paused(&lifecycle);
        assert_eq!(lifecycle.changes().read().unwrap(), 1, "the control thread is told");
        lifecycle.resume();
        assert!(vcpu.join().unwrap());
        assert!(lifecycle.may_run(), "running: no wait");
    }

    #[test]
    fn a_vm_is_paused_when_its_last_vcpu_is() {
        let lifecycle = Arc::new(Lifecycle::new(2).unwrap());
        lifecycle.resume();
        assert!(!lifecycle.is_paused());
        lifecycle.pause();
        let first = vcpu(&lifecycle);
        assert!(!lifecycle.is_paused());
        let second = vcpu(&lifecycle);
        wait_until_paused(&lifecycle);
        lifecycle.resume();
        assert!(first.join().unwrap() && second.join().unwrap());
    }

    #[test]
    fn the_end_frees_who_waits_and_keeps_its_first_reason() {
        let lifecycle = Arc::new(Lifecycle::new(2).unwrap());
        let vcpu = vcpu(&lifecycle);
        lifecycle.end(EndReason::Reset);
        lifecycle.end(EndReason::Stopped);
        assert!(!vcpu.join().unwrap());
        lifecycle.pause();
        lifecycle.resume();
        assert!(!lifecycle.may_run());
        assert_eq!(lifecycle.ended(), Some(EndReason::Reset));
    }
}
