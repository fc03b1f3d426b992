//! What a jailed vmm has while its guest runs, looked at from outside: exactly this.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use caisson_vmm::control::{ControlEvent, ControlRequest, EndReason};
use support::{Builder, Vmm, has_kvm, is_root, payload::Payload};

/// Jailed, with a disk, its guest in an endless loop.
fn running() -> Option<Vmm> {
    if !has_kvm() || !is_root() {
        return None;
    }
    let payload = Payload::new().spin();
    let mut vmm = Builder::new(&payload).jailed().disk("scratch", &[0; 8192]).start();
    vmm.expect(ControlEvent::Running);
    Some(vmm)
}

/// The fields of a `status` file.
fn fields(status: &str) -> BTreeMap<&str, Vec<&str>> {
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, values)| (name, values.split_whitespace().collect()))
        .collect()
}

/// The thread ids of the process, with their names.
fn threads(vmm: &Vmm) -> BTreeMap<String, String> {
    fs::read_dir(format!("/proc/{}/task", vmm.pid()))
        .unwrap()
        .map(|entry| {
            let task = entry.unwrap().file_name().into_string().unwrap();
            let name = vmm.proc(&format!("task/{task}/comm")).trim().to_owned();
            (name, task)
        })
        .collect()
}

#[test]
fn every_thread_is_nobody_with_no_rights_behind_a_filter() {
    let Some(vmm) = running() else { return };
    let threads = threads(&vmm);
    // Since Linux 6.13 a worker of KVM itself is counted as a thread of the process.
    let names = threads.keys().map(String::as_str).filter(|name| !name.starts_with("kvm-"));
    let names: Vec<&str> = names.collect();
    assert_eq!(names, ["block", "caisson-vmm", "vcpu0"]);
    for (name, task) in &threads {
        let status = vmm.proc(&format!("task/{task}/status"));
        let fields = fields(&status);
        assert_eq!(fields["Uid"], ["64001"; 4], "{name}");
        assert_eq!(fields["Gid"], ["64002"; 4], "{name}");
        assert!(fields["Groups"].is_empty(), "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(fields[set], ["0000000000000000"], "{name} {set}");
        }
        assert_eq!(fields["NoNewPrivs"], ["1"], "{name}");
        assert_eq!(fields["Seccomp"], ["2"], "{name}");
        assert_eq!(fields["Seccomp_filters"], ["1"], "{name}");
    }
}

#[test]
fn the_files_are_those_that_the_guest_needs() {
    let Some(vmm) = running() else { return };
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", vmm.pid())).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap();
        let target = target.to_str().unwrap();
        // Temporary files and sockets have numbers in their names.
        let kind = match target {
            _ if target.ends_with("(deleted)") => "temporary file",
            _ if target.starts_with("socket:") => "socket",
            _ if target.starts_with("pipe:") => "pipe",
            other => other,
        };
        *kinds.entry(kind.to_owned()).or_default() += 1;
    }
    let expected = [
        // Standard input and output.
        ("/dev/null", 2),
        ("anon_inode:kvm-vm", 1),
        ("anon_inode:kvm-vcpu:0", 1),
        ("anon_inode:kvm-vcpu-stats:0", 1),
        // The end of the VM; the serial port's interrupt; the disk's interrupt and queue;
        // the wake-up of its loop.
        ("anon_inode:[eventfd]", 5),
        ("anon_inode:[eventpoll]", 1),
        // Standard error is the test's pipe, control its socket.
        ("pipe", 1),
        ("socket", 1),
        // Console and disk; config and kernel have been read and closed, as was KVM's own.
        ("temporary file", 2),
    ];
    assert_eq!(kinds, expected.map(|(kind, count)| (kind.to_owned(), count)).into());
}

#[test]
fn the_root_is_empty_and_cannot_be_written() {
    let Some(vmm) = running() else { return };
    let mounts = vmm.proc("mountinfo");
    let lines: Vec<&str> = mounts.lines().collect();
    assert_eq!(lines.len(), 1, "{mounts}");
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(words[3..5], ["/", "/"], "{mounts}");
    let options: BTreeSet<&str> = words[5].split(',').collect();
    assert!(options.is_superset(&["ro", "nosuid", "nodev", "noexec"].into()), "{mounts}");
    assert!(mounts.contains(" - tmpfs "), "{mounts}");
    let root = format!("/proc/{}/root/", vmm.pid());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert!(fs::write(format!("{root}file"), "").is_err());
    let directory = fs::read_link(format!("/proc/{}/cwd", vmm.pid())).unwrap();
    assert_eq!(directory, std::path::Path::new("/"));
}

#[test]
fn the_namespaces_are_its_own() {
    let Some(vmm) = running() else { return };
    let namespace =
        |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).unwrap();
    for name in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let own = namespace(&vmm.pid().to_string(), name);
        assert_ne!(own, namespace("self", name), "{name}");
    }
    let interfaces = vmm.proc("net/dev");
    assert_eq!(interfaces.matches(':').count(), 1, "only a loopback: {interfaces}");
}

#[test]
fn limits_and_environment_are_set() {
    let Some(vmm) = running() else { return };
    let limits = vmm.proc("limits");
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["128"; 2]);
    assert_eq!(limit("Max core file size"), ["0"; 2]);
    assert_eq!(limit("Max locked memory"), ["0"; 2]);
    assert_eq!(limit("Max msgqueue size"), ["0"; 2]);
    let environment = vmm.proc("environ");
    assert!(environment.bytes().all(|byte| byte == 0), "{environment:?}");
}

#[test]
fn the_jailed_vm_still_obeys_its_parent() {
    let Some(mut vmm) = running() else { return };
    vmm.request(ControlRequest::Pause);
    vmm.expect(ControlEvent::Paused);
    vmm.request(ControlRequest::Resume);
    vmm.expect(ControlEvent::Resumed);
    vmm.request(ControlRequest::Stop);
    let (reason, _, status) = vmm.ended();
    assert_eq!((reason, status.code()), (EndReason::Stopped, Some(0)), "{}", vmm.stderr());
}
