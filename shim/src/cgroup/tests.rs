use std::{
    os::{fd::AsRawFd, unix::process::CommandExt, unix::process::ExitStatusExt},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::*;

const MIB: u64 = 1 << 20;

fn size(memory_mib: u32) -> VmSize {
    VmSize { vcpus: 2, memory_mib, disk_limit: Default::default() }
}

fn plan(id: &str, linux: Value) -> CgroupPlan {
    let spec = json!({ "ociVersion": "1.1.0", "linux": linux });
    let bundle = Path::new("/bundles").join(id);
    CgroupPlan::of(id, &bundle, &serde_json::from_value(spec).unwrap(), &size(128)).unwrap()
}

/// A host of version 2 with these controllers, in a directory.
fn unified(directory: &Path, controllers: &str) -> Host {
    fs::write(directory.join("cgroup.controllers"), controllers).unwrap();
    fs::write(directory.join("cgroup.subtree_control"), "").unwrap();
    let mount = format!("30 1 0:26 / {} rw - cgroup2 cgroup2 rw", directory.display());
    Host::of_mounts(&mount)
}

/// As a mount of version 1 names its controllers.
fn separate(directory: &Path, controllers: &[&str]) -> Host {
    let mounts: Vec<String> = controllers
        .iter()
        .map(|names| {
            let point = directory.join(names);
            fs::create_dir_all(&point).unwrap();
            format!("30 1 0:26 / {} rw,relatime - cgroup cgroup rw,{names}", point.display())
        })
        .collect();
    Host::of_mounts(&mounts.join("\n"))
}

fn group(version: Version, directory: &Path, controllers: &[Controller]) -> Group {
    Group { version, directory: directory.to_owned(), controllers: controllers.to_vec() }
}

#[test]
fn each_controller_is_found_in_one_hierarchy() {
    let directory = tempfile::tempdir().unwrap();
    let version_1 = separate(directory.path(), &["cpu,cpuacct", "memory", "freezer", "blkio"]);
    let found: Vec<_> = version_1
        .hierarchies
        .iter()
        .map(|h| (h.version, h.mount.strip_prefix(&directory).unwrap().to_str().unwrap()))
        .collect();
    let expected = ["cpu,cpuacct", "memory", "blkio"].map(|name| (Version::One, name));
    assert_eq!(found, expected);

    // Hybrid: what the unified hierarchy has is taken there.
    let point = directory.path().join("unified with blank");
    fs::create_dir(&point).unwrap();
    fs::write(point.join("cgroup.controllers"), "hugetlb memory pids\n").unwrap();
    let mount = |name: &str, rest: &str| {
        let point = directory.path().join(name).to_str().unwrap().replace(' ', "\\040");
        format!("31 1 0:27 / {point} rw - {rest}\n")
    };
    let hybrid = Host::of_mounts(
        &[
            mount("memory", "cgroup cgroup rw,memory"),
            mount("pids", "cgroup cgroup rw,pids"),
            mount("cpu", "cgroup cgroup rw,cpu"),
            mount("unified with blank", "cgroup2 cgroup2 rw"),
            mount("other", "tmpfs tmpfs rw"),
        ]
        .concat(),
    );
    let found: Vec<_> = hybrid.hierarchies.iter().map(|h| (h.version, h.mount.clone())).collect();
    let cpu = directory.path().join("cpu");
    assert_eq!(found, [(Version::Two, point), (Version::One, cpu)]);
    assert_eq!(Host::of_mounts("garbage\n - cgroup2\n"), Host::default());
}

#[test]
fn limits_are_written_in_the_words_of_each_version() {
    let plan = plan(
        "c",
        json!({ "resources": {
            "cpu": { "quota": 50_000, "period": 20_000, "shares": 1024 },
            "memory": { "limit": 64 * MIB },
            "blockIO": {
                "weight": 500,
                "throttleReadBpsDevice": [{ "major": 8, "minor": 16, "rate": 1000 }],
                "throttleWriteIOPSDevice": [{ "major": 8, "minor": 0, "rate": 7 }],
            },
        } }),
    );
    // 128 MiB of guest memory, 64 for the vmm, 1 for page tables.
    let memory = (193 * MIB).to_string();
    let written = |version| {
        let Limits { cpu, .. } = &plan.limits;
        let mut settings = plan.limits.memory(version);
        settings.extend(plan.limits.pids());
        settings.extend(cpu.settings(version));
        settings.extend(plan.limits.io(version));
        settings.into_iter().map(|s| format!("{}={}", s.file, s.value)).collect::<Vec<_>>()
    };
    assert_eq!(
        written(Version::Two),
        [
            &format!("memory.max={memory}"),
            "memory.swap.max=0",
            "pids.max=18",
            "cpu.max=50000 20000",
            "cpu.weight=39",
            "io.weight=4950",
            "io.max=8:16 rbps=1000",
            "io.max=8:0 wiops=7",
        ]
    );
    assert_eq!(
        written(Version::One),
        [
            &format!("memory.limit_in_bytes={memory}"),
            &format!("memory.memsw.limit_in_bytes={memory}"),
            "pids.max=18",
            "cpu.cfs_period_us=20000",
            "cpu.cfs_quota_us=50000",
            "cpu.shares=1024",
            "blkio.weight=500",
            "blkio.throttle.read_bps_device=8:16 1000",
            "blkio.throttle.write_iops_device=8:0 7",
        ]
    );
}

#[test]
fn a_lifted_cpu_limit_is_written_and_an_absent_one_is_left_alone() {
    let limits = |cpu| CpuLimits::of(&serde_json::from_value(cpu).unwrap());
    let lifted = limits(json!({ "quota": -1 }));
    assert_eq!(lifted.settings(Version::Two)[0].value, "max 100000");
    assert_eq!(lifted.settings(Version::One)[1].value, "-1");
    assert_eq!(limits(json!({ "cpus": "0" })), CpuLimits::default());
    assert_eq!(limits(json!({})).settings(Version::Two), []);
}

#[test]
fn a_place_is_named_by_the_spec_or_by_the_id_and_the_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let host = unified(directory.path(), "memory pids");
    let leaf = |linux| {
        let place = plan("c1", linux).place(&host);
        place.leaves[0].strip_prefix(&directory).unwrap().to_str().unwrap().to_owned()
    };
    let own = leaf(json!({}));
    assert!(own.starts_with("caisson/c1-"), "{own}");
    assert_ne!(own_path("c1", Path::new("/a")), own_path("c1", Path::new("/b")));
    assert_eq!(leaf(json!({ "cgroupsPath": "/pod/c1" })), "pod/c1");
    assert_eq!(leaf(json!({ "cgroupsPath": "a-b.slice:x:c1" })), "a.slice/a-b.slice/x-c1.scope");
    let spec = json!({ "ociVersion": "1.1.0", "linux": { "cgroupsPath": "/a/../../b" } });
    let refused =
        CgroupPlan::of("c", Path::new("/b"), &serde_json::from_value(spec).unwrap(), &size(64));
    let error = refused.unwrap_err().to_string();
    assert!(error.starts_with("linux.cgroupsPath: has a component \"..\""), "{error}");
}

#[test]
fn directories_are_made_in_every_hierarchy_and_removed_with_parents_of_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let host = separate(directory.path(), &["memory", "pids"]);
    let others = directory.path().join("memory/pod");
    fs::create_dir(&others).unwrap();
    for linux in [json!({}), json!({ "cgroupsPath": "/pod/sub/c1" })] {
        let plan = plan("c1", linux);
        let place = plan.place(&host);
        let cgroup = Cgroup::create(&host, &plan, &place).unwrap();
        assert_eq!(cgroup.groups.len(), 2);
        assert!(place.leaves.iter().all(|leaf| leaf.is_dir()));
        // The journal's way there and back.
        let place = serde_json::from_slice(&serde_json::to_vec(&place).unwrap()).unwrap();
        remove(&place);
        remove(&place);
        let left = |name| fs::read_dir(directory.path().join(name)).unwrap().count();
        assert_eq!((left("memory"), left("pids")), (1, 0), "what was there before stays");
    }
    assert!(others.is_dir());
}

#[test]
fn another_vms_parent_stays_until_the_last_has_gone() {
    let directory = tempfile::tempdir().unwrap();
    let host = separate(directory.path(), &["memory"]);
    let [first, second] = ["c1", "c2"].map(|id| {
        let plan = plan(id, json!({}));
        let place = plan.place(&host);
        Cgroup::create(&host, &plan, &place).unwrap();
        place
    });
    remove(&first);
    assert!(second.leaves[0].is_dir());
    remove(&second);
    assert_eq!(fs::read_dir(directory.path().join("memory")).unwrap().count(), 0);
}

#[test]
fn a_cgroup_with_processes_of_others_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let host = separate(directory.path(), &["memory"]);
    let plan = plan("c", json!({ "cgroupsPath": "/taken" }));
    let taken = directory.path().join("memory/taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("cgroup.procs"), "1\n").unwrap();
    let refused = Cgroup::create(&host, &plan, &plan.place(&host));
    assert!(matches!(refused, Err(CgroupError::InUse { .. })), "{refused:?}");
}

#[test]
fn what_the_host_lacks_is_an_error_only_for_who_asks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let nothing = Host::default();
    let only_memory = separate(directory.path(), &["memory"]);
    // The kernel lets nobody make a directory there, as on a file system that is read-only.
    let closed = Host::of_mounts("30 1 0:26 / /sys rw - cgroup cgroup rw,cpu,memory,blkio");
    for host in [&nothing, &only_memory, &closed] {
        let modest = plan("c", json!({ "resources": { "memory": { "limit": 64 * MIB } } }));
        let place = modest.place(host);
        Cgroup::create(host, &modest, &place).unwrap();
        remove(&place);
        for resources in [
            json!({ "cpu": { "quota": 10_000 } }),
            json!({ "cpu": { "shares": 10 } }),
            json!({ "blockIO": { "weight": 10 } }),
        ] {
            let demanding = plan("c", json!({ "resources": resources }));
            let refused = Cgroup::create(host, &demanding, &demanding.place(host));
            let Err(CgroupError::NoController { controller, .. }) = refused else {
                panic!("{host:?}: {refused:?}");
            };
            let expected =
                if resources["cpu"].is_null() { Controller::Io } else { Controller::Cpu };
            assert_eq!(controller, expected);
            remove(&demanding.place(host));
        }
    }
}

#[test]
fn a_limit_without_its_file_is_an_error_only_for_who_asks_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let io = group(Version::Two, directory.path(), &[Controller::Io, Controller::Memory]);
    let plan = plan("c", json!({ "resources": { "blockIO": { "weight": 10 } } }));
    io.apply(plan.limits.memory(Version::Two)).unwrap();
    let refused = io.apply(plan.limits.io(Version::Two)).unwrap_err();
    assert!(refused.to_string().ends_with("io.weight, which linux.resources.blockIO needs"));
    fs::write(directory.path().join("io.weight"), "").unwrap();
    io.apply(plan.limits.io(Version::Two)).unwrap();
    assert_eq!(fs::read_to_string(directory.path().join("io.weight")).unwrap(), "1");
}

#[test]
fn an_oom_kill_is_told_with_whose_memory_ran_out() {
    let directory = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
    let cgroup =
        |version| Cgroup { groups: vec![group(version, directory.path(), &[Controller::Memory])] };
    let (one, two) = (cgroup(Version::One), cgroup(Version::Two));
    assert_eq!((one.oom_kill(), two.oom_kill()), (None, None), "no files at all");
    write("memory.max", "1048576\n");
    write("memory.limit_in_bytes", "1048576\n");
    let own = Some(OomKill::OwnLimit { limit_bytes: MIB });
    for (events, expected) in [
        ("low 0\nhigh 0\nmax 9\noom 0\noom_kill 0\noom_group_kill 0\n", None),
        ("max 9\noom 2\noom_kill 1\n", own),
        ("max 0\noom 0\noom_kill 1\n", Some(OomKill::Host)),
        ("oom_kill x\n", None),
        ("", None),
    ] {
        write("memory.events", events);
        assert_eq!(two.oom_kill(), expected, "{events:?}");
    }
    for (control, peak, expected) in [
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", "1048576\n", None),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "1044480\n", own),
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "524288\n", Some(OomKill::Host)),
    ] {
        write("memory.oom_control", control);
        write("memory.max_usage_in_bytes", peak);
        assert_eq!(one.oom_kill(), expected, "{control:?} {peak:?}");
    }
}

/// A real cgroup of this host with a limit of 16 MiB; the reason is printed if there is none.
fn real(id: &str) -> Option<(Cgroup, Place)> {
    let host = Host::detect().unwrap();
    let mut plan = plan(&format!("{id}-{}", std::process::id()), json!({}));
    plan.limits.memory_bytes = 16 * MIB;
    let place = plan.place(&host);
    let cgroup = Cgroup::create(&host, &plan, &place).unwrap();
    if cgroup.group_of(Controller::Memory).is_none() {
        eprintln!("SKIP: this host offers no memory controller that this process may use");
        remove(&place);
        return None;
    }
    Some((cgroup, place))
}

/// A shell in the cgroup, from before its first instruction.
fn shell(cgroup: &Cgroup, script: &str) -> Command {
    let entrances = cgroup.entrances().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: the child only writes to files that are open.
    unsafe {
        command.pre_exec(move || {
            for entrance in &entrances {
                if libc::write(entrance.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command
}

#[test]
fn a_real_cgroup_holds_the_process_is_limited_and_goes() {
    let Some((cgroup, place)) = real("test-limits") else { return };
    let mut child = shell(&cgroup, "exec sleep 1000").spawn().unwrap();
    for group in &cgroup.groups {
        let pids = fs::read_to_string(group.directory.join("cgroup.procs")).unwrap();
        assert!(pids.lines().any(|pid| pid == child.id().to_string()), "{group:?}: {pids}");
        let read = |file| fs::read_to_string(group.directory.join(file)).unwrap();
        if group.controllers.contains(&Controller::Pids) {
            assert_eq!(read("pids.max"), "18\n");
        }
        if group.controllers.contains(&Controller::Cpu) {
            let cpu = serde_json::from_value(json!({ "quota": 20_000, "shares": 512 })).unwrap();
            cgroup.limit_cpu(&CpuLimits::of(&cpu)).unwrap();
            match group.version {
                Version::Two => assert_eq!(read("cpu.max"), "20000 100000\n"),
                Version::One => assert_eq!(read("cpu.cfs_quota_us"), "20000\n"),
            }
        }
    }
    assert_eq!(cgroup.oom_kill(), None);
    child.kill().unwrap();
    child.wait().unwrap();
    remove(&place);
    assert!(place.leaves.iter().all(|leaf| !leaf.exists()), "{place:?}");
}

#[test]
fn a_real_oom_kill_is_noticed() {
    let Some((cgroup, place)) = real("test-oom") else { return };
    // A variable of 64 MiB.
    let hungry = "x=$(head -c 67108864 /dev/zero | tr '\\0' x); sleep 1";
    let mut shell = shell(&cgroup, hungry);
    let status = shell.status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL), "{status}");
    let limit_bytes = 16 * MIB;
    assert_eq!(cgroup.oom_kill(), Some(OomKill::OwnLimit { limit_bytes }));
    remove(&place);
    assert!(place.leaves.iter().all(|leaf| !leaf.exists()), "{place:?}");
}
