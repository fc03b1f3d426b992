//! The shim as the CLI runs it: real processes, the real sockets, and a vmm without a VM.

#[allow(unreachable_pub, dead_code, reason = "shared by test binaries")]
mod support;

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use caisson_shim::{
    client::{ClientError, Status, Stdio},
    exit::Exit,
    kind::ErrorKind,
    vm,
};
use containerd_shim::protos::{
    api::CreateTaskRequest, protobuf::Message, ttrpc::proto::Request, types::mount::Mount,
};
use support::host::{Host, eventually, is_alive, kill};

#[test]
fn a_container_runs_and_leaves_nothing() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("good", "echo out; echo err >&2; sleep 0.2; exit 7");
    let vmm = client.create(&host.create_spec("good")).unwrap();
    assert!(is_alive(vmm));
    assert_eq!(client.state(None).unwrap().status, Status::Created);
    assert_eq!(client.start(None).unwrap(), vmm);
    assert_eq!(client.state(None).unwrap().status, Status::Running);
    let (shim, pid) = client.host_pids().unwrap();
    assert_eq!(pid, vmm);
    assert_eq!(client.pids().unwrap(), [2, 3]);
    assert_eq!(client.stats().unwrap().pids, 2);
    assert_eq!(client.wait(None).unwrap().code, 7);
    let log = host.log("good");
    assert_eq!(log.len(), 2);
    let line =
        |stream: &str| log.iter().find(|line| line["stream"] == stream).unwrap()["log"].clone();
    assert_eq!((line("stdout"), line("stderr")), ("out\n".into(), "err\n".into()));
    assert_eq!(client.delete(None).unwrap().code, 7);
    assert!(!is_alive(vmm));
    client.shutdown(false).unwrap();
    eventually("the shim exits", || !is_alive(shim));
    assert_eq!(host.leftovers("good"), Vec::<String>::new());
}

#[test]
fn an_exec_and_signals_reach_the_processes() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("execs", "sleep 100");
    client.create(&host.create_spec("execs")).unwrap();
    client.start(None).unwrap();
    let process = serde_json::from_slice(&support::process_json("exit 9")).unwrap();
    client.exec("e", &process, &Stdio::default()).unwrap();
    client.start(Some("e")).unwrap();
    assert_eq!(client.wait(Some("e")).unwrap().code, 9);
    assert_eq!(client.delete(Some("e")).unwrap().code, 9);
    assert_eq!(client.delete(Some("e")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(client.delete(None).unwrap_err().kind(), ErrorKind::FailedPrecondition);
    client.kill(None, 15, false).unwrap();
    assert_eq!(client.wait(None).unwrap().code, 143);
    client.delete(None).unwrap();
    client.shutdown(false).unwrap();
}

#[test]
fn a_failed_boot_says_how_far_it_came() {
    let Some(host) = Host::new() else { return };
    for (id, words) in [
        ("refuse-1", &["refused, as asked", "code 2"][..]),
        (
            "panic-1",
            &["first_run", "triple fault", "Kernel panic - not syncing: \u{fffd}[31mas asked"],
        ),
        ("silent-1", &["within 3 s", "stage reached: first_run"]),
    ] {
        let client = host.spawn(id, "true");
        let error = client.create(&host.create_spec(id)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BootFailed, "{error}");
        for word in words {
            assert!(error.to_string().contains(word), "{id}: {error}");
        }
        client.shutdown(false).unwrap();
        assert_eq!(host.leftovers(id), Vec::<String>::new());
    }
}

#[test]
fn a_missing_command_is_told_apart() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("missing", "true");
    let config = host.path("missing").join("config.json");
    let spec = fs::read_to_string(&config).unwrap().replace("\"sh\"", "\"no-such-command\"");
    fs::write(config, spec).unwrap();
    client.create(&host.create_spec("missing")).unwrap();
    let error = client.start(None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommandNotFound, "{error}");
    client.delete(None).unwrap();
    client.shutdown(false).unwrap();
    assert_eq!(host.leftovers("missing"), Vec::<String>::new());
}

#[test]
fn a_killed_vmm_ends_the_container() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("killed", "sleep 100");
    let vmm = client.create(&host.create_spec("killed")).unwrap();
    client.start(None).unwrap();
    kill(vmm);
    let exit = client.wait(None).unwrap();
    assert_eq!(exit.code, 137);
    assert!(exit.reason.unwrap().contains("SIGKILL"));
    client.delete(None).unwrap();
    client.shutdown(false).unwrap();
    assert_eq!(host.leftovers("killed"), Vec::<String>::new());
}

#[test]
fn a_vm_that_takes_too_much_of_the_host_is_ended_and_told_apart() {
    let Some(host) = Host::new() else { return };
    let memory = host.cgroups("hungry").into_iter().find(|leaf| {
        let names = leaf.to_string_lossy().into_owned();
        names.contains("/memory/") || leaf.ancestors().any(|a| a.join("memory.stat").exists())
    });
    if memory.is_none() || fs::metadata("/proc/self/oom_score_adj").is_err() {
        eprintln!("SKIP: this host has no memory controller of cgroups");
        return;
    }
    let client = host.spawn("hungry", "sleep 100");
    let config = host.path("hungry").join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    // On the host 64 MiB more, 128 for the files of its share, and some page tables.
    spec["annotations"] = serde_json::json!({ "io.caisson.memory-mib": "64" });
    spec["process"]["oomScoreAdj"] = 77.into();
    fs::write(&config, spec.to_string()).unwrap();
    let vmm = client.create(&host.create_spec("hungry")).unwrap();
    let score = fs::read_to_string(format!("/proc/{vmm}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "77");
    for leaf in host.cgroups("hungry") {
        let pids = fs::read_to_string(leaf.join("cgroup.procs")).unwrap();
        assert!(pids.lines().any(|pid| pid == vmm.to_string()), "{}: {pids}", leaf.display());
        let (shim, _) = client.host_pids().unwrap();
        assert!(!pids.lines().any(|pid| pid == shim.to_string()), "the shim is outside");
    }
    client.start(None).unwrap();
    let exit = client.wait(None).unwrap();
    assert_eq!((exit.code, exit.oom_killed), (137, true), "{exit:?}");
    let reason = exit.reason.clone().unwrap();
    assert!(reason.contains("went over its host memory limit of 256 MiB"), "{reason}");
    assert_eq!(Exit::load(&host.path("hungry")).unwrap(), Some(exit));
    client.delete(None).unwrap();
    client.shutdown(false).unwrap();
    assert_eq!(host.leftovers("hungry"), Vec::<String>::new());
}

#[test]
fn a_killed_shim_takes_its_vmm_along_and_the_reaper_the_rest() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("reaped", "sleep 100");
    let vmm = client.create(&host.create_spec("reaped")).unwrap();
    client.start(None).unwrap();
    let (shim, _) = client.host_pids().unwrap();
    kill(shim);
    let error = client.wait(None).unwrap_err();
    assert!(matches!(error, ClientError::Gone { .. }), "{error}");
    eventually("the vmm ends", || !is_alive(vmm));
    vm::reap(&host.path("reaped")).unwrap();
    assert_eq!(host.leftovers("reaped"), ["reaped.sock"]);
    assert_eq!(Exit::load(&host.path("reaped")).unwrap(), None);
}

#[test]
fn shutdown_ends_a_running_container_only_when_told_now() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("busy", "sleep 100");
    let vmm = client.create(&host.create_spec("busy")).unwrap();
    client.start(None).unwrap();
    let (shim, _) = client.host_pids().unwrap();
    client.shutdown(false).unwrap();
    assert!(is_alive(vmm) && is_alive(shim), "containerd asks while others still run");
    client.shutdown(true).unwrap();
    eventually("the shim exits", || !is_alive(shim));
    assert!(!is_alive(vmm));
    assert_eq!(host.leftovers("busy"), Vec::<String>::new());
}

#[test]
fn a_client_that_dies_during_the_boot_takes_the_vm_along() {
    let Some(host) = Host::new() else { return };
    let client = host.spawn("silent-2", "true");
    let journal = host.path("silent-2/sandbox.json");
    let dying = begin_create(&host, "silent-2");
    eventually("the VM boots", || journal.exists());
    drop(dying);
    let start = Instant::now();
    eventually("the VM is gone", || !journal.exists());
    assert!(start.elapsed() < Duration::from_secs(2), "that was the boot's own deadline");
    client.shutdown(false).unwrap();
    assert_eq!(host.leftovers("silent-2"), Vec::<String>::new());
}

/// Sends a Create as one ttrpc message and leaves its reply alone.
fn begin_create(host: &Host, id: &str) -> UnixStream {
    let spec = host.create_spec(id);
    let mount = Mount {
        type_: "erofs".into(),
        source: spec.rootfs[0].source.clone(),
        ..Default::default()
    };
    let create = CreateTaskRequest {
        id: id.into(),
        bundle: host.path(id).to_str().unwrap().into(),
        rootfs: vec![mount],
        ..Default::default()
    };
    let request = Request {
        service: "containerd.task.v2.Task".into(),
        method: "Create".into(),
        payload: create.write_to_bytes().unwrap(),
        ..Default::default()
    };
    let payload = request.write_to_bytes().unwrap();
    let mut message = u32::try_from(payload.len()).unwrap().to_be_bytes().to_vec();
    // Stream 1, a request, no flags.
    message.extend([0, 0, 0, 1, 1, 0]);
    message.extend(payload);
    let mut stream = UnixStream::connect(host.path(&format!("shims/{id}.sock"))).unwrap();
    stream.write_all(&message).unwrap();
    stream
}

#[test]
fn a_shim_that_cannot_start_is_reported_with_its_words() {
    let Some(host) = Host::new() else { return };
    host.write_shim("#!/bin/sh\necho 'no luck' >&2; exit 3\n");
    let client = host.spawn("unlucky", "true");
    let error = client.create(&host.create_spec("unlucky")).unwrap_err();
    assert!(matches!(error, ClientError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("no luck"), "{error}");
}
