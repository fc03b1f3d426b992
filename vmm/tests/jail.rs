//! What a jailed vmm has while its guest runs, looked at from outside: exactly this.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use caisson_vmm::control::{ControlEvent, ControlRequest, EndReason, JailReport};
use support::{Builder, Vmm, has_kvm, is_root, payload::Payload};

/// Jailed, with a disk, its guest in an endless loop.
fn running() -> Option<Vmm> {
    if !has_kvm() || !is_root() {
        return None;
    }
    running_as_reported().map(|(vmm, _)| vmm)
}

fn running_as_reported() -> Option<(Vmm, JailReport)> {
    if !has_kvm() || !is_root() {
        return None;
    }
    let payload = Payload::new().spin();
    let mut vmm = Builder::new(&payload).jailed().disk("scratch", &[0; 8192]).start();
    let report = vmm.jailed();
    vmm.expect(ControlEvent::Running);
    Some((vmm, report))
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

/// Since Linux 6.13 a worker of KVM itself is counted as a thread of the process.
fn is_kvms_own(thread: &str) -> bool {
    thread.starts_with("kvm-")
}

#[test]
fn every_thread_is_nobody_with_no_rights_behind_a_filter() {
    let Some(vmm) = running() else { return };
    let threads = threads(&vmm);
    let names = threads.keys().map(String::as_str).filter(|name| !is_kvms_own(name));
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
        // The first process of its pid namespace, or a thread of it.
        let inner: u32 = fields["NSpid"].last().unwrap().parse().unwrap();
        assert_eq!(fields["NSpid"].len(), fields_of_this_test()["NSpid"].len() + 1, "{name}");
        assert_eq!(fields["NStgid"].last(), Some(&"1"), "{name}");
        assert_eq!(inner == 1, name == "caisson-vmm", "{name}");
    }
}

fn fields_of_this_test() -> BTreeMap<&'static str, Vec<&'static str>> {
    fields(fs::read_to_string("/proc/self/status").unwrap().leak())
}

/// The numbers of the signals in a mask of a `status` file.
fn signals(mask: &str) -> BTreeSet<i32> {
    let bits = u64::from_str_radix(mask, 16).unwrap();
    (1..=64).filter(|signal| bits >> (signal - 1) & 1 == 1).collect()
}

#[test]
fn signals_are_as_the_program_wants_them_whatever_the_parent_did() {
    let Some(vmm) = running() else { return };
    for (name, task) in &threads(&vmm) {
        let status = vmm.proc(&format!("task/{task}/status"));
        let fields = fields(&status);
        // std ignores SIGPIPE, and catches the faults by which a stack overflows.
        assert_eq!(signals(fields["SigIgn"][0]), [libc::SIGPIPE].into(), "{name}");
        // The kick of vCPUs; and what glibc catches for itself once there are threads.
        let (kick, setxid) = (libc::SIGRTMIN(), 33);
        let caught = [libc::SIGBUS, libc::SIGSEGV, setxid, kick].into();
        assert_eq!(signals(fields["SigCgt"][0]), caught, "{name}");
        // A worker of KVM itself blocks what it likes, for a while.
        let blocked = signals(fields["SigBlk"][0]);
        assert!(blocked.is_empty() || is_kvms_own(name), "{name}: {blocked:?}");
        assert!(signals(fields["SigPnd"][0]).is_empty(), "{name}");
        assert_eq!(fields["Umask"], ["0077"], "{name}");
    }
}

#[test]
fn nobody_but_root_may_trace_it_or_read_its_memory() {
    let Some(vmm) = running() else { return };
    use std::os::unix::fs::MetadataExt;
    // The files in /proc of what may not be dumped are root's.
    let memory = fs::metadata(format!("/proc/{}/mem", vmm.pid())).unwrap();
    assert_eq!((memory.uid(), memory.gid()), (0, 0));
    let read = as_user(64_001, || fs::read(format!("/proc/{}/environ", vmm.pid())).is_ok());
    assert!(!read, "its own user may not");
    // What it does about the host's memory is what its parent was told to do.
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    assert_eq!(vmm.proc("oom_score_adj"), score);
}

/// What `question` says in a child that is this user.
fn as_user(uid: u32, question: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child has one thread, allocates (glibc's allocator survives a fork), makes
    // plain system calls, and leaves without unwinding.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            if libc::setresgid(uid, uid, uid) != 0 || libc::setresuid(uid, uid, uid) != 0 {
                libc::_exit(2);
            }
            libc::_exit(question().into());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) < 2, "{status:#x}");
        libc::WEXITSTATUS(status) == 1
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
    let Some((vmm, report)) = running_as_reported() else { return };
    let namespace =
        |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).unwrap();
    let own: Vec<&str> = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]
        .into_iter()
        .filter(|name| namespace(&vmm.pid().to_string(), name) != namespace("self", name))
        .collect();
    let mut expected = vec!["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    // Where the host allows one; there is nobody in it but the vmm.
    match &report.no_user_namespace {
        None => {
            expected.insert(5, "user");
            let words = |name| vmm.proc(name).split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(words("uid_map"), "64001 64001 1");
            assert_eq!(words("gid_map"), "64002 64002 1");
            assert_eq!(words("setgroups"), "deny");
        }
        Some(refused) => eprintln!("without a user namespace: {refused}"),
    }
    assert_eq!(own, expected);
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
