//! A vCPU: enters the guest, and hands what it exits with to a device.

use std::{cell::Cell, ptr, sync::Arc};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::{
    boot_timer::{BootTimer, Stage},
    bus::Bus,
    control::EndReason,
    exits::ExitCounts,
    lifecycle::Lifecycle,
};

/// The address spaces that the guest's instructions reach.
pub struct Buses {
    pub ports: Bus,
    pub mmio: Bus,
}

/// Everything the thread of one vCPU owns or shares.
pub struct Vcpu {
    pub number: u8,
    pub fd: VcpuFd,
    pub buses: Arc<Buses>,
    pub lifecycle: Arc<Lifecycle>,
    pub timer: Arc<BootTimer>,
    pub exits: Arc<ExitCounts>,
}

impl Vcpu {
    /// Runs the guest until the VM ends.
    pub fn run(mut self) {
        accept_kicks(&mut self.fd);
        while self.lifecycle.may_run() {
            if self.number == 0 {
                self.timer.stamp(Stage::FirstRun);
            }
            let exit = self.fd.run();
            self.exits.count(&exit);
            let failure = match exit.map(|exit| dispatch(exit, &self.buses)) {
                Ok(Next::Enter) => continue,
                Ok(Next::End(reason)) => {
                    self.lifecycle.end(reason);
                    continue;
                }
                Ok(Next::Fail(failure)) => failure,
                Err(error) if is_interruption(error) => {
                    self.fd.set_kvm_immediate_exit(0);
                    continue;
                }
                Err(error) => format!("KVM_RUN: {error}"),
            };
            self.fail(failure);
        }
    }

    fn fail(&self, what: String) {
        let rip =
            self.fd.get_regs().map_or("unknown".to_owned(), |regs| format!("{:#x}", regs.rip));
        let message = format!("vCPU {} at rip {rip}: {what}", self.number);
        self.lifecycle.end(EndReason::Failed { message });
    }
}

/// What follows an exit.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Enter,
    End(EndReason),
    Fail(String),
}

fn dispatch(exit: VcpuExit, buses: &Buses) -> Next {
    match exit {
        VcpuExit::IoIn(port, data) => buses.ports.read(port.into(), data),
        VcpuExit::IoOut(port, data) => buses.ports.write(port.into(), data),
        VcpuExit::MmioRead(address, data) => buses.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.mmio.write(address, data),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        // With KVM's own interrupt controller a halt waits inside KVM.
        VcpuExit::Hlt => return Next::End(EndReason::Halted),
        VcpuExit::Shutdown => return Next::End(EndReason::TripleFault),
        VcpuExit::SystemEvent(kind, _) => return system_event(kind),
        VcpuExit::FailEntry(reason, cpu) => {
            return Next::Fail(format!(
                "the CPU {cpu} refused the guest state, reason {reason:#x}"
            ));
        }
        VcpuExit::InternalError => return Next::Fail("KVM met an internal error".to_owned()),
        other => return Next::Fail(format!("unexpected exit {other:?}")),
    }
    Next::Enter
}

fn system_event(kind: u32) -> Next {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN | kvm_bindings::KVM_SYSTEM_EVENT_RESET => {
            Next::End(EndReason::Reset)
        }
        kvm_bindings::KVM_SYSTEM_EVENT_CRASH => {
            Next::Fail("the guest reported that it crashed".to_owned())
        }
        other => Next::Fail(format!("unknown system event {other}")),
    }
}

fn is_interruption(error: kvm_ioctls::Error) -> bool {
    matches!(error.errno(), libc::EINTR | libc::EAGAIN)
}

thread_local! {
    /// `kvm_run.immediate_exit` of this thread's vCPU. It needs no initialisation and no
    /// destructor, so the signal handler may read it at any time.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal, counted from SIGRTMIN, that makes a vCPU thread leave the guest.
const KICK: i32 = 0;

/// Number of the signal that kicks a vCPU.
pub fn kick_signal() -> i32 {
    SIGRTMIN() + KICK
}

/// Makes the signal harmless to threads without a vCPU. Once, before there are any.
pub fn install_kick_handler() -> Result<(), vmm_sys_util::errno::Error> {
    extern "C" fn handler(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let flag = IMMEDIATE_EXIT.get();
        if !flag.is_null() {
            // SAFETY: the pointer is to the vCPU's shared page, which is mapped as long as
            // its fd lives; `accept_kicks` was called by the thread that owns it.
            unsafe { flag.write_volatile(1) };
        }
    }
    register_signal_handler(kick_signal(), handler)
}

/// Lets the signal reach the vCPU even between the check of the lifecycle and the entry:
/// KVM looks at the flag after the entry has begun (KVM API, `immediate_exit`).
fn accept_kicks(fd: &mut VcpuFd) {
    IMMEDIATE_EXIT.set(&raw mut fd.get_kvm_run().immediate_exit);
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buses() -> Buses {
        Buses { ports: Bus::new("port"), mmio: Bus::new("MMIO") }
    }

    #[test]
    fn io_goes_to_the_bus_and_the_guest_goes_on() {
        let mut data = [0; 4];
        assert_eq!(dispatch(VcpuExit::MmioRead(0xd000_0000, &mut data), &buses()), Next::Enter);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(dispatch(VcpuExit::IoOut(0x80, &[1]), &buses()), Next::Enter);
    }

    #[test]
    fn ends_and_failures_are_told_apart() {
        let triple_fault = Next::End(EndReason::TripleFault);
        assert_eq!(dispatch(VcpuExit::Shutdown, &buses()), triple_fault);
        let reset = VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, &[]);
        assert_eq!(dispatch(reset, &buses()), Next::End(EndReason::Reset));
        assert!(matches!(dispatch(VcpuExit::InternalError, &buses()), Next::Fail(_)));
        assert!(matches!(dispatch(VcpuExit::FailEntry(8, 0), &buses()), Next::Fail(_)));
    }
}
