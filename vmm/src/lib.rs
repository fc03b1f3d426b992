//! Builds and runs one microVM from a validated [`spec::VmSpec`].
//!
//! ```text
//! config ─► spec ─► jail ─► builder ─► vm (threads, each behind its seccomp filter)
//!                                       ├─ control   monitor: the parent's socket
//!                                       ├─ vcpu0…    vcpu: KVM_RUN, bus, registers
//!                                       └─ io, block io_thread: virtio workers
//! ```

pub mod boot;
pub mod boot_timer;
pub mod builder;
pub mod bus;
pub mod config;
pub mod control;
pub mod cpu;
pub mod devices;
pub mod exits;
mod interrupted;
pub mod io_thread;
pub mod kvm_stats;
pub mod lifecycle;
pub mod log;
pub mod memory;
pub mod monitor;
pub mod run;
pub mod seccomp;
pub mod spec;
pub mod threads;
pub mod vcpu;
pub mod virtio;
pub mod vm;

/// An error and its causes on one line.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}
