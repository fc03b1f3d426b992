//! A VM whose threads are there: it can be run, paused, asked and ended.

use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use kvm_ioctls::VmFd;
use vmm_sys_util::{eventfd::EventFd, signal::Killable};

use crate::{
    boot_timer::{BootTimer, process_cpu_usec},
    control::{EndReason, Report},
    devices::serial::SerialPort,
    exits::{self, ExitCounts},
    io_thread::IoLoop,
    kvm_stats::VcpuStats,
    lifecycle::Lifecycle,
    seccomp::{Filter, Filtering, SeccompError, ThreadKind},
    threads::{ThreadError, spawn_confined},
    vcpu::{self, Vcpu},
    virtio::net::NetCounters,
};

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("filter system calls")]
    Seccomp(#[from] SeccompError),
    #[error("start the VM's threads")]
    Thread(#[from] ThreadError),
    #[error("handle the signal that makes a vCPU leave the guest")]
    Signal(#[source] vmm_sys_util::errno::Error),
}

/// The parts of a VM that is built, before it has threads.
pub struct Parts {
    pub kvm: VmFd,
    pub vcpus: Vec<Vcpu>,
    /// With the names of their threads.
    pub io_loops: Vec<(&'static str, IoLoop)>,
    /// Of each network device.
    pub net: Vec<Arc<NetCounters>>,
    pub lifecycle: Arc<Lifecycle>,
    pub timer: Arc<BootTimer>,
    pub console: Arc<Mutex<SerialPort>>,
}

/// A VM with its threads, paused before its first instruction.
pub struct Vm {
    /// With it KVM would close the way of every interrupt from an eventfd.
    _kvm: VmFd,
    lifecycle: Arc<Lifecycle>,
    timer: Arc<BootTimer>,
    exits: Vec<Arc<ExitCounts>>,
    kvm_stats: Vec<VcpuStats>,
    net: Vec<Arc<NetCounters>>,
    vcpus: Vec<JoinHandle<()>>,
    console: Arc<Mutex<SerialPort>>,
}

impl Vm {
    /// Starts all threads, each confined; last, confines the calling thread, which will
    /// be the control thread.
    pub fn start(parts: Parts, filtering: Filtering) -> Result<Self, StartError> {
        let Parts { kvm, vcpus, io_loops, net, lifecycle, timer, console } = parts;
        vcpu::install_kick_handler().map_err(StartError::Signal)?;
        let [io, cpu, control] = [ThreadKind::Io, ThreadKind::Vcpu, ThreadKind::Control]
            .map(|kind| Filter::new(kind, filtering));
        let (io, cpu, control) = (io?, cpu?, control?);

        for (name, io_loop) in io_loops {
            let lifecycle = lifecycle.clone();
            // Runs as long as the process; its workers end with their devices.
            spawn_confined(name, &io, move || {
                let message =
                    format!("the {name} thread cannot wait for events: {}", io_loop.run());
                lifecycle.end(EndReason::Failed { message });
            })?;
        }
        let kvm_stats = vcpus.iter().filter_map(|vcpu| VcpuStats::open(&vcpu.fd)).collect();
        let exits = vcpus.iter().map(|vcpu| vcpu.exits.clone()).collect();
        let vcpus = vcpus
            .into_iter()
            .map(|vcpu| spawn_confined(&format!("vcpu{}", vcpu.number), &cpu, || vcpu.run()))
            .collect::<Result<_, _>>()?;
        control.install()?;
        Ok(Self { _kvm: kvm, lifecycle, timer, exits, kvm_stats, net, vcpus, console })
    }

    pub fn resume(&self) {
        self.lifecycle.resume();
    }

    /// Begins a pause: vCPUs leave the guest, and a system call that they are blocked in.
    pub fn pause(&self) {
        self.lifecycle.pause();
        self.kick();
    }

    /// Whether a pause has begun and no vCPU is in the guest any more.
    pub fn is_paused(&self) -> bool {
        self.lifecycle.is_paused()
    }

    /// Ends the VM; a vCPU that is in the guest leaves it.
    pub fn end(&self, reason: EndReason) {
        self.lifecycle.end(reason);
        self.kick();
    }

    pub fn ended(&self) -> Option<EndReason> {
        self.lifecycle.ended()
    }

    /// Readable after the VM was paused or has ended.
    pub fn changes(&self) -> &EventFd {
        self.lifecycle.changes()
    }

    pub fn report(&self) -> Report {
        let mut exits = exits::sum(self.exits.iter().map(AsRef::as_ref));
        for stats in &self.kvm_stats {
            // A report without what KVM counts is still one.
            let _ = stats.add_to(&mut exits);
        }
        Report {
            stages_usec: self.timer.stages_usec(),
            exits,
            net: self.net.iter().map(|counters| counters.report()).collect(),
            cpu_usec: process_cpu_usec(),
        }
    }

    /// Writes what the console holds of an unfinished line, unless a vCPU is stuck in
    /// writing to it.
    pub fn flush_console(&self) {
        if let Ok(mut console) = self.console.try_lock() {
            console.flush();
        }
    }

    /// Interrupts every vCPU's thread.
    pub fn kick(&self) {
        for vcpu in &self.vcpus {
            // A thread that has ended is not in the guest.
            let _ = vcpu.kill(vcpu::kick_signal());
        }
    }
}
