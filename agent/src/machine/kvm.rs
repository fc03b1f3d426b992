//! Keeps KVM switched on.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// `_IO(KVMIO, 0x01)`, with the machine type 0 (Documentation/virt/kvm/api.rst, 4.2).
const KVM_CREATE_VM: libc::Ioctl = 0xae01;

/// A VM without memory and CPUs.
///
/// With the first VM the kernel switches on AMD-V on each CPU and changes its own code,
/// the scheduler's above all, and undoes both with the last one. That takes the time of
/// several interrupts to each CPU, and a QEMU before 8.1 may keep the old code's
/// translation, which hangs the machine. As long as this one lives, neither happens.
pub(super) struct IdleVm {
    _vm: OwnedFd,
}

impl IdleVm {
    /// An error where there is no KVM; the machine is of use without.
    pub(super) fn new() -> io::Result<Self> {
        let kvm = File::open("/dev/kvm")?;
        // SAFETY: KVM_CREATE_VM takes a number and returns a descriptor.
        let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
        if vm < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner; KVM opens it O_CLOEXEC.
        Ok(Self { _vm: unsafe { OwnedFd::from_raw_fd(vm) } })
    }
}
