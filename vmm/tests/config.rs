//! Configs that make no VM: what the parent hears, and the exit code.

mod support;

use std::{fs::File, io::Write};

use caisson_vmm::control::{ControlEvent, EndReason};
use support::{Builder, has_kvm, is_root, payload::Payload};

/// Starts with a changed config; the exit code must be `code`, and the parent must be
/// told `message`.
#[track_caller]
fn refused(change: impl FnOnce(&mut Builder), code: i32, message: &str) {
    let mut builder = Builder::new(&Payload::new().reset());
    change(&mut builder);
    let mut vmm = builder.start();
    let mut event = vmm.event();
    if let Some(ControlEvent::Jailed(_)) = event {
        event = vmm.event();
    }
    let Some(ControlEvent::Ended { reason: EndReason::Failed { message: told }, .. }) = event
    else {
        panic!("no failure reported; {}: {}", vmm.wait(), vmm.stderr());
    };
    assert!(told.contains(message), "{told}");
    assert_eq!(vmm.wait().code(), Some(code));
    assert!(vmm.stderr().contains(message));
}

#[test]
fn values_out_of_range_are_an_invalid_config() {
    if !has_kvm() {
        return;
    }
    refused(|builder| builder.config.vcpus = 0, 2, "0 vCPUs");
    refused(|builder| builder.config.vcpus = 33, 2, "33 vCPUs");
    refused(|builder| builder.config.memory_mib = 1, 2, "1 MiB");
    refused(|builder| builder.config.id = "x".repeat(129), 2, "129 bytes");
    refused(|builder| builder.config.cmdline = "a\nb".to_owned(), 2, "0x0a at 1");
    refused(|builder| builder.config.kernel = 4000, 2, "kernel: 4000 is not open");
    refused(|builder| builder.config.kernel = builder.config.kvm, 2, "named twice");
}

#[test]
fn a_jail_of_root_is_an_invalid_config() {
    if !has_kvm() {
        return;
    }
    let jail = |uid, gid| {
        move |builder: &mut Builder| {
            let config = caisson_vmm::config::JailConfig {
                uid,
                gid,
                max_open_files: 64,
                ..Default::default()
            };
            builder.config.jail = Some(config);
        }
    };
    refused(jail(0, 1), 2, "must not be root's");
    refused(jail(1, 0), 2, "must not be root's");
}

#[test]
fn what_is_no_kernel_fails_the_build() {
    if !has_kvm() {
        return;
    }
    let kernel = |content: &'static [u8]| {
        move |builder: &mut Builder| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(content).unwrap();
            builder.config.kernel = builder.inherit(file);
        }
    };
    refused(kernel(b""), 1, "read the kernel");
    refused(kernel(b"#!/bin/sh\necho no kernel\n"), 1, "load the kernel");
    refused(kernel(b"\x7fELF but no more"), 1, "load the kernel");
}

#[test]
fn a_device_that_is_not_kvm_fails_the_build() {
    if !has_kvm() {
        return;
    }
    let null = |builder: &mut Builder| {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        builder.config.kvm = builder.inherit(null);
    };
    refused(null, 1, "not /dev/kvm");
}

#[test]
fn an_initramfs_larger_than_memory_fails_the_build() {
    if !has_kvm() {
        return;
    }
    let large = |builder: &mut Builder| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        builder.config.initramfs = Some(builder.inherit(file));
    };
    refused(large, 1, "give the VM more memory");
}

#[test]
fn too_few_files_fail_the_build_before_the_guest_runs() {
    if !has_kvm() || !is_root() {
        return;
    }
    let few = |builder: &mut Builder| {
        let config = caisson_vmm::config::JailConfig {
            uid: 1,
            gid: 1,
            max_open_files: 4,
            ..Default::default()
        };
        builder.config.jail = Some(config);
    };
    refused(few, 1, "Too many open files");
}

#[test]
fn a_config_that_cannot_be_read_has_its_own_exit_code() {
    if !has_kvm() {
        return;
    }
    for config in [&b""[..], b"{}", b"[1,2", b"\xff", &vec![b' '; 300 << 10]] {
        let mut vmm = Builder::new(&Payload::new().reset()).start_with(config);
        assert_eq!(vmm.wait().code(), Some(2));
        assert!(vmm.stderr().contains("the config"), "{}", vmm.stderr());
    }
}
