//! `doctor --security`: what this host adds to, or takes from, the isolation of a VM.
//!
//! Everything is read from `/proc` and `/sys`, and from the metadata of the files that run
//! as root. Firecracker's "production host setup" and the kernel's
//! `Documentation/admin-guide/hw-vuln` are where the advice comes from.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use caisson_shim::assets::Assets;

use super::{Check, Way};
use crate::{accel::virtualization, globals::Globals};

/// The host's `/proc`, `/sys` and `/dev`, below a directory: `/`, or a test's.
struct Host<'a> {
    root: &'a Path,
}

impl Host<'_> {
    /// A file's text without the white space around it; none if it cannot be read.
    fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The names of a directory's entries, in order.
    fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.root.join(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }
}

pub(super) fn all(globals: &Globals) -> Vec<Check> {
    let mut checks = of_host(&Host { root: Path::new("/") });
    checks.push(ownership("directories", &[globals.root.clone(), globals.state.clone()]));
    checks.push(ownership("programs", &programs()));
    checks
}

fn of_host(host: &Host) -> Vec<Check> {
    let mut checks = vec![
        hardware(host),
        smt(host),
        vulnerabilities(host),
        microcode(host),
        nested(host),
        ksm(host),
        swap(host),
        device(host),
        seccomp(host),
        landlock(host),
        memory_controller(host),
        user_namespaces(host),
        unprivileged_bpf(host),
        address_space(host),
    ];
    checks.extend(kvm_parameters(host));
    checks
}

fn hardware(host: &Host) -> Check {
    let name = "hardware virtualization";
    let cpuinfo = host.read("proc/cpuinfo").unwrap_or_default();
    let is_guest = has_flag(&cpuinfo, "hypervisor");
    match virtualization(&cpuinfo) {
        None => Check::fail(
            name,
            Way::Both,
            "none",
            "containers run in an emulator here, which is no boundary against hostile code",
        ),
        Some(kind) if is_guest => Check::warn(
            name,
            Way::Both,
            format!("{kind}, in a host that is a VM itself"),
            "the isolation is at most that of the hypervisor below; ask its operator for the \
             mitigations that this host cannot see",
        ),
        Some(kind) => Check::ok(name, Way::Both, kind),
    }
}

fn has_flag(cpuinfo: &str, flag: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag))
}

fn smt(host: &Host) -> Check {
    let name = "SMT";
    let control = host.read("sys/devices/system/cpu/smt/control");
    match host.read("sys/devices/system/cpu/smt/active").as_deref() {
        Some("1") => Check::warn(
            name,
            Way::Both,
            "active: two VMs may share a core's caches and buffers at the same time",
            "boot with `nosmt`, or `echo off > /sys/devices/system/cpu/smt/control`",
        ),
        Some(_) => Check::ok(name, Way::Both, control.unwrap_or_else(|| "off".to_owned())),
        None => unknown(name, "the kernel does not tell", "look for it in the firmware"),
    }
}

/// What the kernel says of each known flaw of this processor.
fn vulnerabilities(host: &Host) -> Check {
    let name = "processor flaws";
    let directory = "sys/devices/system/cpu/vulnerabilities";
    let flaws = host.list(directory);
    let exposed: Vec<String> = flaws
        .iter()
        .filter_map(|flaw| Some((flaw, host.read(&format!("{directory}/{flaw}"))?)))
        // Also inside a line: "Mitigation: …; SMT vulnerable".
        .filter(|(_, state)| state.to_ascii_lowercase().contains("vulnerable"))
        .map(|(flaw, state)| format!("{flaw}: {state}"))
        .collect();
    match (flaws.len(), exposed.len()) {
        (0, _) => {
            unknown(name, "the kernel does not tell", "use a kernel of version 4.15 or newer")
        }
        (known, 0) => Check::ok(name, Way::Both, format!("{known} known, all mitigated or absent")),
        _ => Check::fail(
            name,
            Way::Both,
            exposed.join("; "),
            "update microcode and kernel, and take `mitigations=off` from the command line; \
             `mitigations=auto,nosmt` is the strictest",
        ),
    }
}

fn microcode(host: &Host) -> Check {
    let name = "microcode";
    let cpuinfo = host.read("proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let advice = "install intel-microcode or amd64-microcode, and restart";
    let directory = "sys/devices/system/cpu/vulnerabilities";
    let lacks = |flaw: &String| {
        let state = host.read(&format!("{directory}/{flaw}")).unwrap_or_default();
        state.to_ascii_lowercase().contains("no microcode")
    };
    let lacking: Vec<_> = host.list(directory).into_iter().filter(lacks).collect();
    match field("microcode") {
        _ if !lacking.is_empty() => Check::fail(
            name,
            Way::Both,
            format!("too old for the mitigation of {}", lacking.join(", ")),
            advice,
        ),
        // What a hypervisor shows its guests.
        Some(revision) if revision == "0x1" || revision == "0xffffffff" => unknown(
            name,
            &format!("revision {revision} is what a hypervisor tells its guests"),
            "ask the operator of the host below",
        ),
        Some(revision) => Check::ok(
            name,
            Way::Both,
            format!("revision {revision}; the kernel misses nothing in it"),
        ),
        None => unknown(name, "no revision in /proc/cpuinfo", advice),
    }
}

fn nested(host: &Host) -> Check {
    let name = "nested virtualization";
    let enabled = ["kvm_intel", "kvm_amd"].into_iter().find(|module| {
        let value = host.read(&format!("sys/module/{module}/parameters/nested"));
        value.is_some_and(|value| is_set(&value))
    });
    match enabled {
        Some(module) => Check::warn(
            name,
            Way::Both,
            format!("offered by {module}; Caisson hides it from its guests"),
            &format!("`options {module} nested=0` in /etc/modprobe.d leaves less of KVM to attack"),
        ),
        None => Check::ok(name, Way::Both, "off"),
    }
}

fn is_set(value: &str) -> bool {
    matches!(value, "1" | "Y" | "y")
}

fn ksm(host: &Host) -> Check {
    let name = "page merging (KSM)";
    match host.read("sys/kernel/mm/ksm/run").as_deref() {
        Some("1") => Check::fail(
            name,
            Way::Both,
            "running: whether a write is slow tells a VM what its neighbours' memory holds",
            "`echo 2 > /sys/kernel/mm/ksm/run` ends it and separates the pages",
        ),
        Some(_) => Check::ok(name, Way::Both, "off"),
        None => Check::ok(name, Way::Both, "not in this kernel"),
    }
}

fn swap(host: &Host) -> Check {
    let name = "swap";
    let swaps = host.read("proc/swaps").unwrap_or_default();
    let areas: Vec<&str> =
        swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    if areas.is_empty() {
        return Check::ok(name, Way::Both, "off");
    }
    Check::warn(
        name,
        Way::Both,
        format!("{}: the memory of guests may stay there after them", areas.join(", ")),
        "`swapoff -a`, or encrypt it",
    )
}

fn device(host: &Host) -> Check {
    let name = "/dev/kvm";
    match fs::metadata(host.root.join("dev/kvm")) {
        Ok(metadata) if metadata.permissions().mode() & 0o006 != 0 => Check::warn(
            name,
            Way::Both,
            format!("mode {:04o}: every local user may make VMs", metadata.mode() & 0o7777),
            "`chmod o= /dev/kvm`, lasting by a udev rule; Caisson opens it as root",
        ),
        Ok(metadata) => Check::ok(
            name,
            Way::Both,
            format!("mode {:04o}, group {}", metadata.mode() & 0o7777, metadata.gid()),
        ),
        Err(error) => unknown(name, &error.to_string(), "`caisson doctor` tells what to do"),
    }
}

fn seccomp(host: &Host) -> Check {
    let name = "seccomp";
    let actions = host.read("proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    match actions.split_whitespace().any(|action| action == "kill_process") {
        true => Check::ok(name, Way::Both, "filters that end the process"),
        false => Check::fail(
            name,
            Way::Both,
            "this kernel has no filters that end the process",
            "use a kernel of version 4.14 or newer with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn landlock(host: &Host) -> Check {
    let name = "Landlock";
    let modules = host.read("sys/kernel/security/lsm").unwrap_or_default();
    match modules.split(',').any(|module| module == "landlock") {
        true => Check::ok(name, Way::Both, "confines the vmm once more"),
        false => Check::warn(
            name,
            Way::Both,
            "not among the kernel's security modules; the jail holds without it",
            "add `landlock` to `lsm=` on the kernel's command line, from version 5.13 on",
        ),
    }
}

fn memory_controller(host: &Host) -> Check {
    let name = "memory limits";
    let controllers = host.read("sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
    if controllers.split_whitespace().any(|controller| controller == "memory") {
        return Check::ok(name, Way::Both, "cgroup v2");
    }
    if host.root.join("sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        return Check::ok(name, Way::Both, "cgroup v1");
    }
    Check::fail(
        name,
        Way::Both,
        "no memory controller: nothing limits what a vmm takes beside its guest's memory",
        "mount cgroup2 at /sys/fs/cgroup, with the memory controller enabled",
    )
}

fn user_namespaces(host: &Host) -> Check {
    let name = "user namespaces";
    match host.read("proc/sys/user/max_user_namespaces").as_deref() {
        None | Some("0") => Check::warn(
            name,
            Way::Both,
            "not allowed; the vmm has a user of its own all the same",
            "`sysctl user.max_user_namespaces=10000` gives it a namespace too",
        ),
        Some(limit) => Check::ok(name, Way::Both, format!("at most {limit}")),
    }
}

fn unprivileged_bpf(host: &Host) -> Check {
    let name = "unprivileged BPF";
    match host.read("proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => Check::warn(
            name,
            Way::Both,
            "allowed: local users may load programs that aim at speculation",
            "`sysctl kernel.unprivileged_bpf_disabled=1`",
        ),
        Some(_) => Check::ok(name, Way::Both, "off"),
        None => Check::ok(name, Way::Both, "not in this kernel"),
    }
}

fn address_space(host: &Host) -> Check {
    let name = "address randomization";
    match host.read("proc/sys/kernel/randomize_va_space").as_deref() {
        Some("2") => Check::ok(name, Way::Both, "full"),
        found => Check::fail(
            name,
            Way::Both,
            format!("kernel.randomize_va_space is {}", found.unwrap_or("unknown")),
            "`sysctl kernel.randomize_va_space=2`",
        ),
    }
}

/// Parameters of KVM that are off by default and weaken it.
fn kvm_parameters(host: &Host) -> Option<Check> {
    let name = "KVM parameters";
    if !host.root.join("sys/module/kvm/parameters").exists() {
        return None;
    }
    let weak: Vec<&str> = ["ignore_msrs", "enable_vmware_backdoor"]
        .into_iter()
        .filter(|parameter| {
            let value = host.read(&format!("sys/module/kvm/parameters/{parameter}"));
            value.is_some_and(|value| is_set(&value))
        })
        .collect();
    if weak.is_empty() {
        return Some(Check::ok(name, Way::Both, "as the kernel sets them"));
    }
    let advice = "take it from /etc/modprobe.d and load kvm anew";
    Some(Check::warn(name, Way::Both, format!("{} is set", weak.join(", ")), advice))
}

fn programs() -> Vec<PathBuf> {
    let Ok(assets) = Assets::locate() else { return Vec::new() };
    let found = [assets.shim(), assets.vmm(), assets.kernel(), assets.initramfs()];
    found.into_iter().flatten().collect()
}

/// Who else than root can change these paths, or put others in their place.
fn ownership(name: &'static str, paths: &[PathBuf]) -> Check {
    let mut open: Vec<String> = paths.iter().flat_map(|path| changeable(path)).collect();
    open.sort();
    open.dedup();
    match open.is_empty() {
        true => Check::ok(name, Way::Both, "only root can change them"),
        false => Check::fail(
            name,
            Way::Both,
            format!("others than root can change {}", open.join(", ")),
            "`chown root` and `chmod go-w` them: who changes them is root",
        ),
    }
}

/// What of a path, and of the directories above it, others than root can write.
fn changeable(path: &Path) -> Vec<String> {
    let is_open = |path: &&Path| {
        let Ok(metadata) = fs::symlink_metadata(path) else { return false };
        let mode = metadata.permissions().mode();
        // In a sticky directory only its owner can put another in an entry's place.
        let writable = mode & 0o022 != 0 && !(metadata.is_dir() && mode & 0o1000 != 0);
        !metadata.is_symlink() && (metadata.uid() != 0 || writable)
    };
    path.ancestors().filter(is_open).map(|path| path.display().to_string()).collect()
}

fn unknown(name: &'static str, found: &str, advice: &str) -> Check {
    Check::warn(name, Way::Both, found, advice)
}

#[cfg(test)]
mod tests {
    use super::{super::Status, *};

    /// A host's files; those that are not named are missing.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn status(files: &[(&str, &str)], check: fn(&Host) -> Check) -> Status {
        let root = host(files);
        check(&Host { root: root.path() }).status
    }

    const FLAWS: &str = "sys/devices/system/cpu/vulnerabilities";

    #[test]
    fn a_flaw_without_its_mitigation_fails() {
        let meltdown = format!("{FLAWS}/meltdown");
        let mds = format!("{FLAWS}/mds");
        let of = |state: &str| {
            status(&[(&meltdown, "Mitigation: PTI\n"), (&mds, state)], vulnerabilities)
        };
        assert_eq!(of("Not affected\n"), Status::Ok);
        assert_eq!(of("Mitigation: Clear CPU buffers; SMT disabled\n"), Status::Ok);
        assert_eq!(of("Mitigation: Clear CPU buffers; SMT vulnerable\n"), Status::Fail);
        assert_eq!(of("Vulnerable\n"), Status::Fail);
        assert_eq!(status(&[], vulnerabilities), Status::Warn);
    }

    #[test]
    fn microcode_that_a_mitigation_lacks_fails() {
        let mds = format!("{FLAWS}/mds");
        let cpuinfo = ("proc/cpuinfo", "microcode\t: 0xf0\n");
        let lacking = (mds.as_str(), "Vulnerable: Clear CPU buffers attempted, no microcode\n");
        assert_eq!(status(&[cpuinfo], microcode), Status::Ok);
        assert_eq!(status(&[cpuinfo, lacking], microcode), Status::Fail);
        assert_eq!(status(&[("proc/cpuinfo", "microcode\t: 0x1\n")], microcode), Status::Warn);
        assert_eq!(status(&[], microcode), Status::Warn);
    }

    #[test]
    fn what_lets_neighbours_listen_is_told() {
        let smt_active = |value| status(&[("sys/devices/system/cpu/smt/active", value)], smt);
        assert_eq!((smt_active("0\n"), smt_active("1\n")), (Status::Ok, Status::Warn));
        let ksm_run = |value| status(&[("sys/kernel/mm/ksm/run", value)], ksm);
        assert_eq!((ksm_run("0\n"), ksm_run("1\n")), (Status::Ok, Status::Fail));
        let header = "Filename Type Size Used Priority\n";
        assert_eq!(status(&[("proc/swaps", header)], swap), Status::Ok);
        let area = format!("{header}/dev/sda2 partition 100 0 -2\n");
        assert_eq!(status(&[("proc/swaps", &area)], swap), Status::Warn);
    }

    #[test]
    fn an_emulator_is_no_boundary_and_a_guest_is_at_most_its_hosts() {
        let of = |flags| status(&[("proc/cpuinfo", flags)], hardware);
        assert_eq!(of("flags\t\t: fpu svm\n"), Status::Ok);
        assert_eq!(of("flags\t\t: fpu vmx hypervisor\n"), Status::Warn);
        assert_eq!(of("flags\t\t: fpu hypervisor\n"), Status::Fail);
    }

    #[test]
    fn what_widens_kvm_is_told() {
        let intel = "sys/module/kvm_intel/parameters/nested";
        assert_eq!(status(&[(intel, "Y\n")], nested), Status::Warn);
        assert_eq!(status(&[(intel, "N\n")], nested), Status::Ok);
        let root = host(&[("sys/module/kvm/parameters/ignore_msrs", "Y\n")]);
        let check = kvm_parameters(&Host { root: root.path() }).unwrap();
        assert_eq!((check.status, check.found.as_str()), (Status::Warn, "ignore_msrs is set"));
        assert_eq!(status(&[("dev/kvm", "")], device), Status::Warn, "others may read it");
    }

    #[test]
    fn a_host_that_tells_nothing_is_not_called_well() {
        let root = tempfile::tempdir().unwrap();
        let checks = of_host(&Host { root: root.path() });
        let well = checks.iter().filter(|check| check.status == Status::Ok);
        let well: Vec<&str> = well.map(|check| check.name).collect();
        // Their absence is the good case.
        let absent = ["nested virtualization", "page merging (KSM)", "swap", "unprivileged BPF"];
        assert_eq!(well, absent);
    }

    #[test]
    fn a_path_that_others_can_change_is_named() {
        let root = tempfile::tempdir().unwrap();
        let (open, closed) = (root.path().join("open"), root.path().join("closed"));
        for (path, mode) in [(&open, 0o777), (&closed, 0o755)] {
            fs::create_dir(path).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let names = |path: &Path| changeable(path).concat();
        assert!(names(&open).contains(&open.display().to_string()));
        assert!(!names(&closed).contains("closed") || !nix::unistd::Uid::effective().is_root());
        fs::set_permissions(&open, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(!names(&open).contains("open") || !nix::unistd::Uid::effective().is_root());
    }
}
