//! Specs as engines write them, and as nobody should.

use std::{fs, os::unix::net::UnixListener, path::Path};

use caisson_agent_protocol::plan::{
    DeviceKind, FilePlan, MountPlan, PidNamespace, TerminalSize, UserPlan,
};
use caisson_vmm::config::{Rate, RateLimit};
use serde_json::{Value, json};

use super::*;

/// What containerd and Docker agree on.
fn base() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": 1000, "gid": 1000, "additionalGids": [4, 24] },
            "args": ["sh", "-c", "true"],
            "env": ["PATH=/bin", "EMPTY=", "NO_VALUE", "=odd"],
            "cwd": "/srv",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_CHECKPOINT_RESTORE"],
                "effective": ["CAP_CHOWN"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "inheritable": ["CAP_KILL"],
                "ambient": ["CAP_KILL", "CAP_CHOWN"],
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 2048, "soft": 1024 }],
            "noNewPrivileges": true,
            "oomScoreAdj": 500,
            "apparmorProfile": "docker-default",
        },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["ro", "nosuid", "noexec", "nodev", "name=systemd"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "mount" }, { "type": "pid" }, { "type": "uts" }, { "type": "ipc" },
                { "type": "network" }, { "type": "cgroup" },
            ],
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0", "kernel/shmmax": "1" },
            "resources": {
                "devices": [
                    { "allow": false, "access": "rwm" },
                    { "allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw" },
                    { "allow": true, "type": "c", "major": 136, "minor": -1, "access": "rwm" },
                ],
            },
        },
    })
}

fn surroundings() -> Surroundings {
    Surroundings { ports: StdioPorts::default(), terminal: false, vcpus: 2, interfaces: vec![] }
}

fn planned(spec: &Value) -> Result<ContainerPlan, PlanError> {
    planned_with_shares(spec).map(|planned| planned.container)
}

fn planned_with_shares(spec: &Value) -> Result<Planned, PlanError> {
    container("c", &serde_json::from_value(spec.clone()).unwrap(), surroundings())
}

/// The base with `value` at a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut spec = base();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[key] = value;
    spec
}

fn refusal(pointer: &str, value: Value) -> String {
    let error = planned(&with(pointer, value.clone()));
    error.map(|_| panic!("{pointer} = {value} was taken")).unwrap_err().to_string()
}

fn size(spec: &Value, cpus: usize) -> Result<(u8, u32), PlanError> {
    let spec = serde_json::from_value(spec.clone()).unwrap();
    vm_size(&spec, HostSize { cpus }).map(|size| (size.vcpus, size.memory_mib))
}

#[test]
fn an_engines_spec_becomes_a_plan() {
    let plan = planned(&base()).unwrap();
    let process = &plan.process;
    assert_eq!(process.env, ["PATH=/bin", "EMPTY="], "nothing is taken from the host");
    assert_eq!(process.cwd, "/srv");
    let ids = UserPlan::Ids { uid: 1000, gid: 1000, additional_gids: vec![4, 24], umask: None };
    assert_eq!(process.user, ids);
    let capabilities = process.capabilities;
    assert_eq!(capabilities.bounding, 1 | 1 << 5 | 1 << 40);
    assert_eq!((capabilities.effective, capabilities.permitted), (1, 1 | 1 << 5));
    assert_eq!(capabilities.ambient, 1 << 5, "none that is not inheritable");
    let limit = process.rlimits[0];
    assert_eq!((limit.resource, limit.soft, limit.hard), (7, 1024, 2048));
    assert!(process.no_new_privileges && process.terminal.is_none());
    assert_eq!(process.oom_score_adj, Some(500));
    assert_eq!(plan.hostname.as_deref(), Some("box"));
    let namespaces = &plan.namespaces;
    assert_eq!(namespaces.pid, PidNamespace::Own);
    assert!(namespaces.ipc && namespaces.uts && namespaces.cgroup && namespaces.network);
    assert_eq!(plan.masked_paths, ["/proc/kcore"]);
    assert_eq!(plan.sysctls["kernel.shmmax"], "1");
    let rules = &plan.resources.devices;
    assert!(!rules[0].allow && rules[0].kind.is_none() && rules[0].mknod);
    assert_eq!((rules[1].kind, rules[1].major), (Some(DeviceKind::Char), Some(1)));
    assert!(rules[1].write && !rules[1].mknod && rules[2].minor.is_none());
}

#[test]
fn mounts_are_split_into_flags_and_data() {
    let plan = planned(&base()).unwrap();
    let mount = |fstype: &str, source: &str, destination: &str, flags, data: &str| MountPlan {
        fstype: fstype.into(),
        source: source.into(),
        destination: destination.into(),
        flags,
        data: data.into(),
    };
    let locked = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    let expected = [
        mount("proc", "proc", "/proc", locked, ""),
        mount(
            "tmpfs",
            "tmpfs",
            "/dev",
            libc::MS_NOSUID | libc::MS_STRICTATIME,
            "mode=755,size=65536k",
        ),
        mount(
            "devpts",
            "devpts",
            "/dev/pts",
            libc::MS_NOSUID | libc::MS_NOEXEC,
            "newinstance,ptmxmode=0666,mode=0620,gid=5",
        ),
        mount("cgroup2", "cgroup", "/sys/fs/cgroup", locked | libc::MS_RDONLY, ""),
    ];
    assert_eq!(plan.mounts, expected);
    let options = ["ro", "rw", "rprivate", "tmpcopyup", "exec", "rnosuid", "size=1"];
    let tmpfs = json!([{ "destination": "/a/../b//c", "type": "tmpfs", "options": options }]);
    let plan = planned(&with("/mounts", tmpfs)).unwrap();
    assert_eq!(plan.mounts, [mount("tmpfs", "tmpfs", "/b/c", libc::MS_NOSUID, "size=1")]);
}

fn bound(source: &Path, destination: &str, options: &[&str]) -> Value {
    with(
        "/mounts",
        json!([{ "destination": destination, "type": "bind", "source": source, "options": options }]),
    )
}

#[test]
fn what_engines_generate_travels_in_the_plan() {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    let plan = planned(&bound(&hosts, "/etc/hosts", &["rbind", "ro"])).unwrap();
    let FilePlan { path, content, readonly, mode } = &plan.files[0];
    assert_eq!((path.as_str(), content.as_str()), ("/etc/hosts", "127.0.0.1 localhost\n"));
    assert!(readonly & (mode & 0o600 == 0o600));
    assert!(plan.mounts.is_empty());
}

#[test]
fn directories_and_files_become_shares_and_equal_ones_one() {
    let directory = tempfile::tempdir().unwrap();
    let (data, file) = (directory.path().join("data"), directory.path().join("hosts"));
    fs::create_dir(&data).unwrap();
    fs::write(&file, vec![0xff; (1 << 20) + 1]).unwrap();
    let bind = |source: &Path, destination: &str, options: &[&str]| json!({ "destination": destination, "type": "bind", "source": source, "options": options });
    let mounts = json!([
        bind(&data, "/a", &["rbind", "noexec"]),
        bind(&data, "/b", &["rbind", "ro"]),
        bind(&data, "/c/../d", &["rbind", "rro"]),
        bind(&data, "/e", &["bind", "ro"]),
        // No engine generates such a one.
        bind(&file, "/etc/hosts", &["rbind"]),
    ]);
    let Planned { container, shares } = planned_with_shares(&with("/mounts", mounts)).unwrap();
    let share = |index: &str, destination: &str, flags| MountPlan {
        fstype: "virtiofs".into(),
        source: index.into(),
        destination: destination.into(),
        flags,
        data: String::new(),
    };
    let expected = [
        share("0", "/a", libc::MS_NOEXEC),
        share("1", "/b", libc::MS_RDONLY),
        share("1", "/d", libc::MS_RDONLY),
        share("2", "/e", libc::MS_RDONLY),
        share("3", "/etc/hosts", 0),
    ];
    assert_eq!(container.mounts, expected);
    let kinds: Vec<_> = shares.iter().map(|share| (share.readonly, share.recursive)).collect();
    assert_eq!(kinds, [(false, true), (true, true), (true, false), (false, true)]);
    assert!(shares[3].source.metadata().unwrap().is_file() && container.files.is_empty());
}

#[test]
fn what_of_the_host_cannot_be_shared_is_named_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let _socket = UnixListener::bind(path("socket")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap();
    assert!(fifo.success());
    let device = Path::new("/dev/null");
    for (source, destination, words) in [
        (&path("socket"), "/mnt", ["socket", "not in the VM"]),
        (&path("fifo"), "/mnt", ["FIFO", "not in the VM"]),
        (&device.to_owned(), "/mnt", ["device", "no devices of the host"]),
        (&"/proc".into(), "/mnt", ["the host kernel's proc", "read-only"]),
        (&"/proc/sys/kernel".into(), "/mnt", ["the host kernel's proc", "read-only"]),
        (&directory.path().to_owned(), "/dev", ["\"/dev\"", "devices of the VM"]),
        (&path("missing"), "/mnt", ["read", "missing"]),
    ] {
        let error = planned(&bound(source, destination, &["rbind"])).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{}: {error}", source.display());
        }
    }
    planned(&bound(Path::new("/proc"), "/mnt", &["rbind", "ro"])).unwrap();
}

#[test]
fn shares_are_bounded() {
    let mounts: Vec<_> = (0..300)
        .map(|n| {
            let source = format!("/{}", "usr/../".repeat(n));
            json!({ "destination": "/a", "type": "bind", "source": source, "options": ["rbind"] })
        })
        .collect();
    let error = planned(&with("/mounts", json!(mounts))).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("at most 256"), "{error}");
}

#[test]
fn an_engines_shared_memory_becomes_the_guests() {
    let directory = tempfile::tempdir().unwrap();
    let plan = planned(&bound(directory.path(), "/dev/shm", &["rbind"])).unwrap();
    assert_eq!(plan.mounts[0].fstype, "tmpfs");
    assert!(plan.mounts[0].data.starts_with("mode=1777,size="));
}

#[test]
fn a_user_by_name_is_for_the_agent_to_look_up() {
    let user = json!({ "uid": 0, "gid": 0, "username": "www-data:adm", "additionalGids": [7] });
    let plan = planned(&with("/process/user", user)).unwrap();
    let expected =
        UserPlan::Name { user: "www-data:adm".into(), additional_groups: vec!["7".into()] };
    assert_eq!(plan.process.user, expected);
}

#[test]
fn a_terminal_has_a_size() {
    let terminal = |spec: Value| {
        let spec = serde_json::from_value(spec).unwrap();
        container("c", &spec, Surroundings { terminal: true, ..surroundings() })
            .unwrap()
            .container
            .process
            .terminal
            .unwrap()
    };
    assert_eq!(terminal(base()), TerminalSize { columns: 80, rows: 24 });
    let large = with("/process/consoleSize", json!({ "width": 100_000, "height": 50 }));
    assert_eq!(terminal(large), TerminalSize { columns: u16::MAX, rows: 50 });
}

#[test]
fn limits_become_those_of_cgroup_v2() {
    let limits = |value: Value| planned(&with("/linux/resources", value)).unwrap().resources;
    let memory =
        limits(json!({ "memory": { "limit": 1 << 28, "swap": 3 << 27, "reservation": 5 } }));
    assert_eq!(memory.memory_bytes, Some(1 << 28));
    assert_eq!(memory.swap_bytes, Some(1 << 27));
    assert_eq!(memory.memory_reservation_bytes, Some(5));
    let unlimited =
        limits(json!({ "memory": { "limit": -1, "swap": -1 }, "pids": { "limit": -1 } }));
    assert_eq!((unlimited.memory_bytes, unlimited.swap_bytes, unlimited.pids), (None, None, None));
    for (shares, weight) in [(2, 1), (1024, 39), (262_144, 10_000), (1_u64 << 40, 10_000)] {
        assert_eq!(limits(json!({ "cpu": { "shares": shares } })).cpu_weight, Some(weight));
    }
    let cpu =
        limits(json!({ "cpu": { "shares": 0, "quota": 150_000, "cpus": "0-1", "mems": "0" } }));
    assert_eq!((cpu.cpu_quota_usec, cpu.cpu_period_usec), (Some(150_000), Some(100_000)));
    assert_eq!((cpu.cpu_weight, cpu.cpuset_cpus.as_deref()), (None, Some("0-1")));
    let beyond = limits(json!({ "cpu": { "cpus": "6,7", "mems": "1" } }));
    assert_eq!((beyond.cpuset_cpus, beyond.cpuset_mems), (None, None), "the host's numbers");
    let other = limits(json!({ "pids": { "limit": 9 }, "unified": { "memory.high": "5" } }));
    assert_eq!((other.pids, other.unified["memory.high"].as_str()), (Some(9), "5"));
}

#[test]
fn an_update_can_lift_a_limit() {
    let lifted = update(br#"{"memory":{"limit":-1},"pids":{"limit":-1}}"#, 1).unwrap();
    assert_eq!((lifted.memory_bytes, lifted.pids), (Some(u64::MAX), Some(u64::MAX)));
    let kept = update(br#"{"cpu":{"shares":2}}"#, 1).unwrap();
    assert_eq!((kept.memory_bytes, kept.cpu_weight), (None, Some(1)));
    update(b"{", 1).unwrap_err();
}

#[test]
fn the_vm_is_as_large_as_the_limits_need() {
    assert_eq!(size(&base(), 8).unwrap(), (1, 1024));
    let limits = |value| with("/linux/resources", value);
    let memory = |bytes: u64| size(&limits(json!({ "memory": { "limit": bytes } })), 8).unwrap().1;
    assert_eq!(memory(128 << 20), 192);
    assert_eq!(memory((128 << 20) + 1), 194);
    assert_eq!(memory(1 << 60), 65_536);
    let cpus = |value: Value, host| size(&limits(json!({ "cpu": value })), host).unwrap().0;
    assert_eq!(cpus(json!({ "quota": 150_000 }), 8), 2);
    assert_eq!(cpus(json!({ "quota": 900_000 }), 4), 4, "no more than the host has");
    assert_eq!(cpus(json!({ "quota": 90_000_000, "period": 1000 }), 64), 32);
    assert_eq!(cpus(json!({ "cpus": "2-4,7" }), 8), 4);
    assert_eq!(cpus(json!({ "quota": -1, "cpus": "" }), 8), 1);
}

#[test]
fn annotations_are_an_allow_list() {
    let spec = |annotations: Value| with("/annotations", annotations);
    let asked = json!({ "io.caisson.vcpus": "3", "io.caisson.memory-mib": "300", "other": "x" });
    assert_eq!(size(&spec(asked), 8).unwrap(), (3, 300));
    for (name, value) in [
        ("io.caisson.vcpu", "1"),
        ("io.caisson.vcpus", "0"),
        ("io.caisson.vcpus", "33"),
        ("io.caisson.vcpus", "two"),
        ("io.caisson.memory-mib", "65537"),
        ("io.caisson.memory-mib", "-1"),
        ("io.caisson.", ""),
    ] {
        let error = size(&spec(json!({ name: value })), 8).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn ids_follow_the_grammar() {
    let longest = "a".repeat(128);
    for good in ["a", "0", "A.b_c-d", "x..y", &longest] {
        check_id("id", good).unwrap();
    }
    let long = "a".repeat(129);
    let bad = [
        "",
        "../x",
        "a/b",
        ".a",
        "-a",
        "_a",
        "a\n",
        "\na",
        "a b",
        "ä",
        "a\0",
        &long,
        &"x".repeat(300),
    ];
    for bad in bad {
        check_id("id", bad).unwrap_err();
    }
}

#[test]
fn contradictions_are_refused_by_field() {
    for (pointer, value, word) in [
        ("/process/args", json!([]), "process.args"),
        ("/process/args", json!([""]), "process.args"),
        ("/process/args", json!(["a\0b"]), "NUL"),
        ("/process/env", json!(["A=\0"]), "process.env"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/process/cwd", json!(""), "process.cwd"),
        ("/process/oomScoreAdj", json!(1001), "1001"),
        ("/process/user", json!({ "uid": 0, "gid": 0, "umask": 0o1000 }), "umask"),
        ("/process/user", json!({ "uid": 0, "gid": 0, "username": "a\nb" }), "username"),
        ("/process/capabilities/effective", json!(["CAP_SYS_ADMIN"]), "not permitted"),
        ("/process/rlimits", json!([{ "type": "RLIMIT_CPU", "soft": 2, "hard": 1 }]), "above"),
        (
            "/process/rlimits",
            json!([{ "type": "RLIMIT_CPU", "soft": 1, "hard": 1 },
                   { "type": "RLIMIT_CPU", "soft": 1, "hard": 1 }]),
            "twice",
        ),
        ("/hostname", json!("h".repeat(65)), "hostname"),
        ("/linux/namespaces", json!([{ "type": "pid" }, { "type": "pid" }]), "twice"),
        ("/linux/namespaces", json!([{ "type": "pid" }]), "namespace of its kind"),
        ("/linux/maskedPaths", json!(["relative"]), "maskedPaths"),
        ("/linux/sysctl", json!({ "kernel.core_pattern": "|/x" }), "no namespace"),
        ("/linux/sysctl", json!({ "net..x": "1" }), "no name"),
        ("/linux/sysctl", json!({ "net/../kernel/core_pattern": "1" }), "no name"),
        ("/linux/sysctl", json!({ "net.x": "1\n2" }), "line break"),
        ("/linux/resources", json!({ "memory": { "limit": 10, "swap": 5 } }), "swap"),
        ("/linux/resources", json!({ "cpu": { "quota": 10 } }), "quota"),
        ("/linux/resources", json!({ "cpu": { "quota": 10_000, "period": 5 } }), "period"),
        ("/linux/resources", json!({ "cpu": { "cpus": "3-1" } }), "3-1"),
        ("/linux/resources", json!({ "cpu": { "cpus": "0-4294967295" } }), "list like"),
        ("/linux/resources", json!({ "unified": { "../memory.max": "1" } }), "no name"),
        ("/linux/resources", json!({ "unified": { "cgroup.procs": "1" } }), "not a limit"),
        ("/linux/resources", json!({ "devices": [{ "allow": true, "access": "rx" }] }), "'x'"),
        ("/linux/resources", json!({ "devices": [{ "allow": true, "major": 5000 }] }), "5000"),
        (
            "/linux/devices",
            json!([{ "path": "dev/x", "type": "c", "major": 1, "minor": 3 }]),
            "dev/x",
        ),
        ("/linux/devices", json!([{ "path": "/x", "type": "a" }]), "no type"),
    ] {
        let error = refusal(pointer, value);
        assert!(error.contains(word), "{pointer}: {error}");
    }
}

#[test]
fn mounts_that_would_undo_the_container_are_refused() {
    for (mount, word) in [
        (json!({ "destination": "/", "type": "tmpfs" }), "mounted over"),
        (json!({ "destination": "/a/..", "type": "tmpfs" }), "mounted over"),
        (json!({ "destination": "/proc", "type": "tmpfs" }), "inside /proc"),
        (json!({ "destination": "/x/../proc/self", "type": "tmpfs" }), "inside /proc"),
        (
            json!({ "destination": "/proc/sys", "type": "bind", "source": "/etc/passwd" }),
            "inside /proc",
        ),
        (json!({ "destination": "etc", "type": "tmpfs" }), "absolute"),
        (json!({ "destination": "/a", "type": "overlay" }), "overlay"),
        (json!({ "destination": "/a", "type": "nfs" }), "nfs"),
        (json!({ "destination": "/a" }), "no type"),
        (json!({ "destination": "/a", "type": "bind", "source": "etc" }), "not absolute"),
        (json!({ "destination": "/a", "type": "bind" }), "no source"),
        (json!({ "destination": "/a", "type": "tmpfs", "options": ["remount"] }), "remount"),
        (json!({ "destination": "/a", "type": "tmpfs", "options": ["idmap"] }), "idmap"),
    ] {
        let error = refusal("/mounts", json!([mount.clone()]));
        assert!(error.contains(word), "{mount}: {error}");
    }
}

#[test]
fn what_a_microvm_cannot_do_is_refused_not_ignored() {
    let throttle = json!([{ "major": 8, "minor": 0, "rate": 1 }]);
    for (pointer, value, word) in [
        ("/hooks", json!({ "prestart": [{ "path": "/x" }] }), "hooks"),
        (
            "/linux/uidMappings",
            json!([{ "hostID": 1, "containerID": 0, "size": 1 }]),
            "user namespaces",
        ),
        ("/linux/namespaces", json!([{ "type": "user" }]), "user"),
        (
            "/linux/namespaces",
            json!([{ "type": "uts", "path": "/proc/1/ns/uts" }]),
            "/proc/1/ns/uts",
        ),
        ("/linux/intelRdt", json!({}), "intelRdt"),
        ("/process/scheduler", json!({ "policy": "SCHED_FIFO" }), "scheduler"),
        (
            "/linux/resources",
            json!({ "blockIO": { "weightDevice": [{ "major": 8, "minor": 0, "weight": 10 }] } }),
            "blockIO.weightDevice",
        ),
        (
            "/linux/resources",
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 1 }] }),
            "hugepage",
        ),
        ("/linux/resources", json!({ "cpu": { "realtimeRuntime": 1 } }), "realtime"),
        (
            "/linux/devices",
            json!([{ "path": "/dev/sda", "type": "b", "major": 8, "minor": 0 }]),
            "8:0",
        ),
        (
            "/linux/devices",
            json!([{ "path": "/dev/kvm", "type": "c", "major": 10, "minor": 232 }]),
            "10:232",
        ),
    ] {
        let error = planned(&with(pointer, value)).unwrap_err();
        assert!(matches!(error, PlanError::Unsupported { .. }), "{pointer}: {error}");
        assert!(error.to_string().contains(word), "{pointer}: {error}");
    }
    // And what engines write without meaning anything by it is taken.
    for (pointer, value) in [
        ("/hooks", json!({ "prestart": [] })),
        ("/linux/resources", json!({ "blockIO": { "weight": 0 } })),
        // And what the host keeps.
        ("/linux/resources", json!({ "blockIO": { "weight": 10 } })),
        ("/linux/resources", json!({ "blockIO": { "throttleReadBpsDevice": throttle } })),
        ("/linux/resources", json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] })),
        (
            "/linux/devices",
            json!([{ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229 }]),
        ),
        ("/linux/devices", json!([{ "path": "/dev/pipe", "type": "p" }])),
    ] {
        planned(&with(pointer, value)).unwrap();
    }
}

#[test]
fn unknown_words_do_not_parse() {
    for (pointer, value) in [
        ("/process/capabilities/bounding", json!(["CAP_FLY"])),
        ("/process/rlimits", json!([{ "type": "RLIMIT_FUN", "soft": 1, "hard": 1 }])),
        ("/linux/namespaces", json!([{ "type": "quantum" }])),
        ("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_PARDON" })),
    ] {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), with(pointer, value).to_string()).unwrap();
        let error = load(directory.path()).unwrap_err();
        assert!(matches!(error, PlanError::Parse { .. }), "{pointer}: {error}");
    }
}

#[test]
fn a_config_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let error = load(directory.path()).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    fs::write(&path, vec![b' '; (MAX_CONFIG_BYTES + 1) as usize]).unwrap();
    assert!(matches!(load(directory.path()), Err(PlanError::TooLarge { .. })));
}

#[test]
fn an_exec_has_the_containers_filters() {
    let filters = vec![caisson_agent_protocol::plan::SeccompProgram {
        flags: 4,
        instructions: vec![(6, 0, 0, 0)],
    }];
    let json = base()["process"].to_string();
    let plan = exec(json.as_bytes(), true, filters.clone()).unwrap();
    assert_eq!(plan.seccomp, filters);
    assert!(plan.terminal.is_some());
    exec(b"", false, vec![]).unwrap_err();
}

#[test]
fn disks_are_limited_by_annotations() {
    let limit = |name: &str, value: &str| {
        let mut spec = base();
        spec["annotations"] = json!({ name: value });
        let spec = serde_json::from_value(spec).unwrap();
        vm_size(&spec, HostSize { cpus: 1 }).map(|size| size.disk_limit)
    };
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let bandwidth = limit("io.caisson.disk-bandwidth", "1048576:65536").unwrap();
    assert_eq!(bandwidth, RateLimit { bandwidth: rate(1 << 20, 65536), operations: None });
    let operations = limit("io.caisson.disk-iops", "100").unwrap();
    assert_eq!(operations, RateLimit { bandwidth: None, operations: rate(100, 100) });
    for (name, value, message) in [
        ("io.caisson.disk-bandwidth", "10", "\"10\" is no number from 4096 to 1099511627776"),
        ("io.caisson.disk-bandwidth", "10m", "\"10m\" is no number"),
        ("io.caisson.disk-iops", "0", "\"0\" is no number from 1 to 1000000000"),
        ("io.caisson.disk-iops", "5:0", "\"0\" is no number from 1 to 1099511627776"),
        ("io.caisson.disk-iops", "5:", "\"\" is no number"),
        ("io.caisson.disk-iops", "5:6:7", "\"6:7\" is no number"),
        ("io.caisson.disk", "5", "unknown"),
    ] {
        let error = limit(name, value).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains(name), "{error}");
    }
}

#[test]
fn a_network_namespace_has_an_absolute_path_or_none() {
    let of = |namespace: Value| {
        let spec = with("/linux/namespaces", json!([namespace]));
        network_namespace(&serde_json::from_value(spec).unwrap())
    };
    let path = of(json!({ "type": "network", "path": "/run/netns/x" })).unwrap();
    assert_eq!(path.unwrap(), Path::new("/run/netns/x"));
    assert_eq!(of(json!({ "type": "network" })).unwrap(), None);
    assert_eq!(of(json!({ "type": "pid" })).unwrap(), None);
    let error = of(json!({ "type": "network", "path": "netns/x" })).unwrap_err().to_string();
    assert!(
        error.contains("linux.namespaces, network: \"netns/x\" is no absolute path"),
        "{error}"
    );
}
