//! Guests that are out to do harm: the VM lives, and nothing else notices.
//!
//! `hostile/` has a driver of virtio devices on bare metal (`guest.rs`), the VM around it
//! with what must always hold (`scene.rs`), and the cases. Here is the one that touches
//! everything it can reach, from all vCPUs.

// The parts are modules of one program, public to each other.
#![allow(unreachable_pub)]

#[path = "hostile/devices.rs"]
mod devices;
#[path = "hostile/guest.rs"]
mod guest;
#[path = "hostile/net.rs"]
mod net;
#[path = "hostile/queues.rs"]
mod queues;
#[path = "hostile/scene.rs"]
mod scene;
mod support;
#[path = "hostile/transport.rs"]
mod transport;

use caisson_agent_protocol::{BOOT_STAMP_PORT, BootStage};
use caisson_vmm::control::EndReason;
use support::{Builder, has_kvm, payload::Payload};

/// Reads and writes every port below 0x1000 with every width; what it writes is what it
/// has read, so the keyboard controller gets no reset.
const SWEEP_PORTS: [u8; 19] = [
    0x31, 0xd2, // xor edx, edx
    0xec, 0x66, 0xed, 0xed, // again: in al, dx; in ax, dx; in eax, dx
    0xee, 0x66, 0xef, 0xef, // out dx, al; out dx, ax; out dx, eax
    0x42, // inc edx
    0x81, 0xfa, 0x00, 0x10, 0x00, 0x00, // cmp edx, 0x1000
    0x75, 0xef, // jne again
];

/// Reads and writes two pages of virtio registers, and one without a device, with widths
/// of 1, 2 and 4 bytes.
const SWEEP_MMIO: [u8; 42] = [
    0xbf, 0x00, 0x00, 0x00, 0xd0, // mov edi, 0xd0000000
    0x8b, 0x07, 0x8a, 0x07, 0x66, 0x8b, 0x07, // again: mov eax, [edi]; al; ax
    0x89, 0x07, 0x88, 0x07, 0x66, 0x89, 0x07, // mov [edi], eax; al; ax
    0xc7, 0x07, 0xff, 0xff, 0xff, 0xff, // mov dword [edi], -1
    0xc7, 0x07, 0x01, 0x00, 0x00, 0x00, // mov dword [edi], 1
    0x83, 0xc7, 0x04, // add edi, 4
    0x81, 0xff, 0x00, 0x30, 0x00, 0xd0, // cmp edi, 0xd0003000
    0x75, 0xdb, // jne again
];

/// For the other vCPUs, in real mode at 0x8000: tells that it runs, then reads and writes
/// all ports for ever.
const OTHERS: [u8; 12] = [
    0xc6, 0x06, 0x00, 0x90, 0x41, // mov byte [0x9000], 'A'
    0x31, 0xd2, // xor dx, dx
    0xec, 0xee, 0x42, // again: in al, dx; out dx, al; inc dx
    0xeb, 0xfb, // jmp again
];

const INTERRUPT_COMMAND: u32 = 0xfee0_0300;
const INIT_ALL_OTHERS: u32 = 0x000c_4500;
/// Vector 8: they begin at 0x8000.
const START_ALL_OTHERS: u32 = 0x000c_4608;

/// Lets the other vCPUs begin with what is at 0x8000.
fn start_others(payload: Payload) -> Payload {
    payload.store(INTERRUPT_COMMAND, INIT_ALL_OTHERS).store(INTERRUPT_COMMAND, START_ALL_OTHERS)
}

fn sweep_from_others(mut payload: Payload) -> Payload {
    for (index, word) in OTHERS.chunks(4).enumerate() {
        let word = u32::from_le_bytes(word.try_into().unwrap());
        payload = payload.store(0x8000 + 4 * index as u32, word);
    }
    start_others(payload)
        // again: cmp byte [0x9000], 'A'; jne again
        .bytes(&[0x80, 0x3d, 0x00, 0x90, 0x00, 0x00, 0x41, 0x75, 0xf7])
}

#[test]
fn what_does_not_hold_is_told_with_what_is_there() {
    if !has_kvm() {
        return;
    }
    let mut guest = guest::Guest::default();
    guest.store(guest::DATA, 0x00c0_ffee);
    guest.expect(guest::DATA, 0xffff, 0xffee, "this holds");
    guest.repeat(3, |guest| guest.say("again"));
    guest.expect(guest::DATA, u32::MAX, 0x00c0_ffef, "this does not");
    let mut vmm = Builder::new(&guest.into_payload()).start();
    assert_eq!(vmm.ended().0, EndReason::Reset, "{}", vmm.stderr());
    assert_eq!(vmm.console(), "again\nagain\nagain\nFAILED this does not: 00c0ffee\n");
}

#[test]
fn a_sweep_of_ports_and_registers_from_all_vcpus_leaves_the_vm_alive() {
    if !has_kvm() {
        return;
    }
    let payload = sweep_from_others(Payload::new())
        .bytes(&SWEEP_PORTS)
        .bytes(&SWEEP_MMIO)
        .bytes(&SWEEP_MMIO)
        .out(BOOT_STAMP_PORT, BootStage::ProcessExec as u8)
        .reset();
    let mut builder = Builder::new(&payload).disk("one", &[0; 8192]).disk("two", &[0; 8192]);
    builder.config.vcpus = 3;
    let mut vmm = builder.start();
    let (reason, report, status) = vmm.ended();
    assert_eq!((reason, status.code()), (EndReason::Reset, Some(0)), "{}", vmm.stderr());
    // The serial port is what the others made of it; this port tells of the end.
    assert!(report.stages_usec.contains_key("process_exec"), "{report:?}");
    assert!(report.exits["mmio_write"] > 10_000, "{report:?}");
    // However much a guest does wrong, few lines tell of it.
    assert!(vmm.stderr().lines().count() < 60, "{}", vmm.stderr());
}
