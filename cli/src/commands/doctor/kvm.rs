//! What KVM offers here.

use std::{fs, path::Path};

use kvm_ioctls::{Cap, Kvm};

use super::{Check, Way};
use crate::accel::{Host, Lack, virtualization as virtualization_in};

/// Frozen since 2007.
const API_VERSION: i32 = 12;

/// What the vmm cannot do without.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

pub(super) fn virtualization() -> Check {
    let name = "hardware virtualization";
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    match virtualization_in(&cpuinfo) {
        Some("vmx") => Check::ok(name, Way::Kvm, "vmx (Intel VT-x)"),
        Some(_) => Check::ok(name, Way::Kvm, "svm (AMD-V)"),
        None => Check::fail(
            name,
            Way::Kvm,
            "neither vmx nor svm in /proc/cpuinfo",
            "enable it in the firmware, or nested virtualization for this VM; the emulated machine works \
             without",
        ),
    }
}

pub(super) fn modules() -> Check {
    let name = "kernel modules";
    let has = |module: &str| Path::new("/sys/module").join(module).exists();
    let found: Vec<&str> =
        ["kvm", "kvm_intel", "kvm_amd"].into_iter().filter(|name| has(name)).collect();
    if found.iter().any(|name| name.starts_with("kvm_")) {
        return Check::ok(name, Way::Kvm, found.join(", "));
    }
    let found = if found.is_empty() { "no kvm module".to_owned() } else { found.join(", ") };
    Check::warn(name, Way::Kvm, found, "load one with `modprobe kvm_intel` or `modprobe kvm_amd`")
}

pub(super) fn device() -> Check {
    let name = "/dev/kvm";
    match Host::probe().device {
        None => Check::ok(name, Way::Kvm, "opens"),
        Some(lack @ Lack::NotOpenable(_)) => Check::fail(
            name,
            Way::Kvm,
            lack.to_string(),
            "run as root, or as a user of the group that owns it",
        ),
        Some(lack) => Check::fail(
            name,
            Way::Kvm,
            lack.to_string(),
            "load kvm_intel or kvm_amd; in a container, pass the device in",
        ),
    }
}

/// Only where the device opens.
pub(super) fn interface() -> Option<Check> {
    let name = "KVM interface";
    let kvm = Kvm::new().ok()?;
    let version = kvm.get_api_version();
    let lacking: Vec<&str> = NEEDED
        .iter()
        .filter(|(cap, _)| !kvm.check_extension(*cap))
        .map(|(_, name)| *name)
        .collect();
    let found = format!("API {version}, {} vCPUs at most", kvm.get_max_vcpus());
    if version != API_VERSION || !lacking.is_empty() {
        let found = format!("{found}, without {}", lacking.join(", "));
        return Some(Check::fail(
            name,
            Way::Kvm,
            found,
            "use a Linux kernel of version 5.10 or newer",
        ));
    }
    Some(Check::ok(name, Way::Kvm, found))
}
