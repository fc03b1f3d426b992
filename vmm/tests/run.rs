//! The life of a VM, seen by its parent. Needs /dev/kvm, of any kind.

mod support;

use std::time::Duration;

use caisson_agent_protocol::{BOOT_STAMP_PORT, BootStage};
use caisson_vmm::control::{ControlEvent, ControlRequest, EndReason};
use support::{Builder, Vmm, has_kvm, is_root, payload::Payload};

#[test]
fn a_guest_prints_stamps_its_stages_and_resets() {
    if !has_kvm() {
        return;
    }
    let payload = Payload::new()
        .print("hello\nworld")
        .out(BOOT_STAMP_PORT, BootStage::AgentStarted as u8)
        .out(0x80, 0)
        .reset();
    let mut vmm = Builder::new(&payload).start();
    vmm.expect(ControlEvent::Running);
    let (reason, report, status) = vmm.ended();
    assert_eq!(reason, EndReason::Reset);
    assert_eq!(status.code(), Some(0), "{}", vmm.stderr());
    assert_eq!(vmm.console(), "hello\nworld");
    assert_eq!(report.exits.get("io_out"), Some(&14));
    let order = ["main", "jailed", "loaded", "first_run", "agent_started"];
    let times: Vec<u64> = order.iter().map(|stage| report.stages_usec[*stage]).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert!(report.cpu_usec > 0);
}

#[test]
fn a_jailed_guest_runs_as_any_other() {
    if !has_kvm() || !is_root() {
        return;
    }
    let payload = Payload::new().print("jailed\n").reset();
    let mut vmm = Builder::new(&payload).jailed().disk("scratch", &[0; 8192]).start();
    let (reason, _, status) = vmm.ended();
    assert_eq!((reason, status.code()), (EndReason::Reset, Some(0)), "{}", vmm.stderr());
    assert_eq!(vmm.console(), "jailed\n");
}

#[test]
fn a_triple_fault_ends_the_vm() {
    if !has_kvm() {
        return;
    }
    let mut vmm = Builder::new(&Payload::new().triple_fault()).start();
    let (reason, _, status) = vmm.ended();
    assert_eq!((reason, status.code()), (EndReason::TripleFault, Some(0)), "{}", vmm.stderr());
}

#[test]
fn a_guest_in_an_endless_loop_is_stopped_by_its_parent() {
    if !has_kvm() {
        return;
    }
    let mut vmm = Builder::new(&Payload::new().spin()).start();
    vmm.expect(ControlEvent::Running);
    vmm.request(ControlRequest::Stop);
    let (reason, _, status) = vmm.ended();
    assert_eq!((reason, status.code()), (EndReason::Stopped, Some(0)));
}

#[test]
fn several_vcpus_stop_though_only_one_was_started() {
    if !has_kvm() {
        return;
    }
    let mut builder = Builder::new(&Payload::new().print("one\n").spin());
    builder.config.vcpus = 4;
    let mut vmm = builder.start();
    vmm.expect(ControlEvent::Running);
    vmm.request(ControlRequest::Pause);
    vmm.expect(ControlEvent::Paused);
    vmm.request(ControlRequest::Stop);
    assert_eq!(vmm.ended().0, EndReason::Stopped);
}

/// Writes to ports so far.
fn exits(vmm: &mut Vmm) -> u64 {
    vmm.request(ControlRequest::Report);
    match vmm.event() {
        Some(ControlEvent::Report(report)) => report.exits.get("io_out").copied().unwrap_or(0),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_paused_guest_does_not_run_until_it_is_resumed() {
    if !has_kvm() {
        return;
    }
    // Counts in memory for ever: inc dword [0x200000]; out 0x80, al; jmp
    let payload = Payload::new()
        .print("counting\n")
        .bytes(&[0xff, 0x05, 0, 0, 0x20, 0, 0xe6, 0x80, 0xeb, 0xf6]);
    let mut vmm = Builder::new(&payload).start();
    vmm.expect(ControlEvent::Running);
    while exits(&mut vmm) < 10 {}
    vmm.request(ControlRequest::Pause);
    vmm.expect(ControlEvent::Paused);
    let before = exits(&mut vmm);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(exits(&mut vmm), before);
    vmm.request(ControlRequest::Resume);
    vmm.expect(ControlEvent::Resumed);
    while exits(&mut vmm) == before {}
    vmm.request(ControlRequest::Stop);
    assert_eq!(vmm.ended().0, EndReason::Stopped);
}

#[test]
fn the_vm_ends_with_its_parent() {
    if !has_kvm() {
        return;
    }
    let mut vmm = Builder::new(&Payload::new().spin()).start();
    vmm.expect(ControlEvent::Running);
    vmm.hang_up();
    assert_eq!(vmm.wait().code(), Some(0));
}

#[test]
fn a_parent_that_speaks_nonsense_is_as_good_as_gone() {
    if !has_kvm() {
        return;
    }
    for nonsense in [&b"stop\n"[..], &[b'x'; 5000], b"{\"request\":\"reboot\"}\n"] {
        let mut vmm = Builder::new(&Payload::new().spin()).start();
        vmm.expect(ControlEvent::Running);
        vmm.send(nonsense);
        assert_eq!(vmm.ended().0, EndReason::Stopped);
    }
}

#[test]
fn a_killed_vmm_leaves_nothing() {
    if !has_kvm() || !is_root() {
        return;
    }
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut vmm = Builder::new(&Payload::new().spin()).jailed().start();
    vmm.jailed();
    vmm.expect(ControlEvent::Running);
    vmm.kill();
    assert_eq!(vmm.wait().code(), None);
    assert_eq!(vmm.event(), None);
    assert!(!std::path::Path::new(&format!("/proc/{}/task", vmm.pid())).exists());
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn ports_and_addresses_without_a_device_read_as_ones() {
    if !has_kvm() {
        return;
    }
    let payload =
        Payload::new().echo_port(0x1234).echo_memory(0xd800_0000).store(0xd800_0000, 1).reset();
    let mut vmm = Builder::new(&payload).start();
    assert_eq!(vmm.ended().0, EndReason::Reset);
    assert_eq!(vmm.console_bytes(), [0xff, 0xff]);
}

#[test]
fn a_guest_finds_its_disk_on_the_mmio_bus() {
    if !has_kvm() {
        return;
    }
    // "v" of the magic number, the device id of virtio-blk, the status after a reset.
    let payload = Payload::new()
        .echo_memory(0xd000_0000)
        .echo_memory(0xd000_0008)
        .store(0xd000_0070, 1)
        .echo_memory(0xd000_0070)
        .store(0xd000_0070, 0)
        .echo_memory(0xd000_0070)
        .reset();
    let mut vmm = Builder::new(&payload).disk("scratch", &[0; 8192]).start();
    assert_eq!(vmm.ended().0, EndReason::Reset);
    assert_eq!(vmm.console_bytes(), [b'v', 2, 1, 0]);
}

#[test]
fn an_interrupt_from_a_device_reaches_the_guest() {
    if !has_kvm() {
        return;
    }
    // The serial port raises its line when "transmitter empty" is enabled; the guest waits
    // for the bit in the interrupt controller's request register.
    let wait_for_irq_4 = [0xb0, 0x0a, 0xe6, 0x20, 0xe4, 0x20, 0xa8, 0x10, 0x74, 0xf6];
    let payload =
        Payload::new().out(0x3f9, 2).bytes(&wait_for_irq_4).print("interrupted\n").reset();
    let mut vmm = Builder::new(&payload).start();
    assert_eq!(vmm.ended().0, EndReason::Reset);
    assert_eq!(vmm.console(), "interrupted\n");
}
