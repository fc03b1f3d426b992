//! The boot recipe: from a [`VmSpec`] to a VM that is ready to enter its kernel.

mod devices;

use std::{
    io,
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    sync::Arc,
};

use kvm_ioctls::{Kvm, VmFd};

use crate::{
    boot::{self, LoadError, layout},
    boot_timer::{BootTimer, Stage},
    bus::BusError,
    cpu::{CpuError, CpuModel},
    lifecycle::Lifecycle,
    memory::{self, MemoryError},
    spec::VmSpec,
    vcpu::{Buses, Vcpu},
    virtio::block,
    vm::Parts,
};

/// Builds the VM, up to its first instruction.
pub fn build(spec: VmSpec, timer: Arc<BootTimer>) -> Result<Parts, BuildError> {
    let kvm = open_kvm(spec.kvm)?;
    let vm = kvm.create_vm().map_err(kvm_failed("create a VM"))?;
    // Before all else of the VM: KVM waits here until nobody uses its former memory, and
    // behind what other parts leave to be freed later that takes it milliseconds.
    let memory = memory::allocate(spec.memory_bytes)?;
    memory::register(&vm, &memory)?;
    create_interrupt_controllers(&vm)?;

    let kernel = boot::load(
        &memory,
        spec.memory_bytes,
        &spec.kernel,
        spec.initramfs.as_ref(),
        spec.boot_pages,
    )?;
    let irqs = devices::irqs(&spec.slots);
    boot::write_boot_data(
        &memory,
        spec.memory_bytes,
        spec.vcpus,
        &irqs,
        &kernel,
        &spec.command_line,
    )?;
    timer.stamp(Stage::Loaded);

    let lifecycle = Arc::new(Lifecycle::new(spec.vcpus).map_err(BuildError::Event)?);
    let virtio = devices::Virtio {
        block: spec.block,
        disk_limit: spec.disk_limit,
        net: spec.net,
        vsock: spec.vsock,
        fs: spec.fs,
        rng: spec.rng,
        balloon: spec.balloon,
    };
    let devices::Connected { mmio, io_loops, net } = virtio.connect(&vm, &memory, &spec.slots)?;
    let (ports, console) = devices::ports(&vm, &lifecycle, &timer, spec.console)?;
    let buses = Arc::new(Buses { ports, mmio });

    let model = CpuModel::of_host(&kvm, spec.vcpus)?;
    let mut vcpus = Vec::with_capacity(spec.vcpus.into());
    for number in 0..spec.vcpus {
        let fd = vm.create_vcpu(number.into()).map_err(kvm_failed("create a vCPU"))?;
        model.configure(&fd, number, &kernel.entry)?;
        vcpus.push(Vcpu {
            number,
            fd,
            buses: buses.clone(),
            lifecycle: lifecycle.clone(),
            timer: timer.clone(),
            exits: Arc::default(),
        });
    }
    Ok(Parts { kvm: vm, vcpus, io_loops, net, lifecycle, timer, console })
}

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("the kvm file is not /dev/kvm: its API version is {0}, not 12")]
    NotKvm(i32),
    #[error("KVM: {action}")]
    Kvm {
        action: &'static str,
        #[source]
        source: kvm_ioctls::Error,
    },
    #[error("make the guest's memory")]
    Memory(#[from] MemoryError),
    #[error("load the guest")]
    Load(#[from] LoadError),
    #[error("set up the vCPUs")]
    Cpu(#[from] CpuError),
    #[error("place the devices")]
    Bus(#[from] BusError),
    #[error("make an event descriptor; the limit of open files may be too low")]
    Event(#[source] io::Error),
    #[error("make an event loop; the limit of open files may be too low")]
    EventLoop(#[source] event_manager::Error),
    #[error("open the block device {serial:?}")]
    Block {
        serial: String,
        #[source]
        source: block::OpenError,
    },
    #[error("set up the tap of a network device")]
    Net(#[source] io::Error),
    #[error("make the vsock device")]
    Vsock(#[source] io::Error),
}

fn kvm_failed(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { action, source }
}

fn open_kvm(fd: OwnedFd) -> Result<Kvm, BuildError> {
    // SAFETY: the descriptor is owned here and given away; that it is KVM's is asked next.
    let kvm = unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) };
    match kvm.get_api_version() {
        12 => Ok(kvm),
        other => Err(BuildError::NotKvm(other)),
    }
}

/// KVM's own PIC, IOAPIC and local APICs; before the vCPUs, which get the latter. No PIT:
/// the kernel takes its time from kvmclock and the APIC's deadline timer.
fn create_interrupt_controllers(vm: &VmFd) -> Result<(), BuildError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_failed("set the page for real mode"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(kvm_failed("set the pages for the TSS"))?;
    vm.create_irq_chip().map_err(kvm_failed("create the interrupt controllers"))
}
