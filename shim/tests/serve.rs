//! The shim as the CLI runs it: real processes, the real sockets, and a vmm without a VM.

#[allow(unreachable_pub, dead_code, reason = "shared by test binaries")]
mod support;

use std::{
    fs,
    io::Write,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use caisson_shim::{
    assets::Assets,
    client::{ClientError, CreateSpec, RootfsMount, ShimClient, SpawnSpec, Status, Stdio},
    exit::Exit,
    kind::ErrorKind,
    vm,
};
use containerd_shim::protos::{
    api::CreateTaskRequest, protobuf::Message, ttrpc::proto::Request, types::mount::Mount,
};

struct Host {
    directory: tempfile::TempDir,
    assets: Assets,
}

impl Host {
    /// `None`, with the reason printed, where this cannot be tested.
    fn new() -> Option<Self> {
        if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
            eprintln!("skipped: /dev/kvm cannot be opened, and the shim opens it for its vmm");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let (programs, files) = (directory.path().join("bin"), directory.path().join("lib"));
        fs::create_dir_all(&programs).unwrap();
        fs::create_dir_all(&files).unwrap();
        let built = std::env::current_exe().unwrap();
        let examples = built.parent().unwrap().parent().unwrap().join("examples");
        for (from, to) in [
            (
                PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-caisson-v2")),
                "containerd-shim-caisson-v2",
            ),
            (examples.join("fake_vmm"), "caisson-vmm"),
        ] {
            fs::copy(&from, programs.join(to)).unwrap_or_else(|e| panic!("{from:?}: {e}"));
        }
        fs::write(files.join("vmlinux"), "kernel").unwrap();
        fs::write(files.join("initramfs.cpio"), "initramfs").unwrap();
        let assets = Assets::at(programs, files);
        Some(Self { directory, assets })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn bundle(&self, id: &str, script: &str) -> PathBuf {
        let bundle = self.path(id);
        fs::create_dir_all(&bundle).unwrap();
        let process: serde_json::Value =
            serde_json::from_slice(&support::process_json(script)).unwrap();
        let spec = serde_json::json!({
            "ociVersion": "1.1.0",
            "process": process,
            "linux": { "namespaces": [{ "type": "pid" }] },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    fn spawn(&self, id: &str, script: &str) -> ShimClient {
        let bundle = self.bundle(id, script);
        // SAFETY: every test sets the same values.
        unsafe {
            std::env::set_var("CAISSON_ASSETS", self.path("lib"));
            std::env::set_var("CAISSON_BOOT_TIMEOUT", "3");
        }
        let spec = SpawnSpec {
            assets: &self.assets,
            id,
            bundle: &bundle,
            socket: &self.path(&format!("shims/{id}.sock")),
            root: &self.path("root"),
            state: &self.path("state"),
        };
        ShimClient::spawn(&spec).unwrap()
    }

    fn create_spec(&self, id: &str) -> CreateSpec {
        let layer = self.path("layer.erofs");
        fs::write(&layer, [0; 4096]).unwrap();
        let rootfs = vec![RootfsMount {
            fstype: "erofs".into(),
            source: layer.to_str().unwrap().into(),
            options: vec!["ro".into()],
        }];
        let log = self.path(id).join("log.json");
        let stdout = format!("json-file://{}", log.display());
        CreateSpec { rootfs, stdio: Stdio { stderr: stdout.clone(), stdout, ..Default::default() } }
    }

    fn log(&self, id: &str) -> Vec<serde_json::Value> {
        let log = fs::read_to_string(self.path(id).join("log.json")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What a VM or a shim would leave.
    fn leftovers(&self, id: &str) -> Vec<String> {
        let names = |directory: &Path| -> Vec<String> {
            let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let expected = ["config.json", "console.log", "exit.json", "log.json", "shim.log"];
        let mut left = names(&self.path(id));
        left.retain(|name| !expected.contains(&name.as_str()));
        left.extend(names(&self.path("shims")).into_iter().filter(|name| name.contains(id)));
        left
    }
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is this test's own child.
    !stat.is_empty() && !stat.contains(") Z ")
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

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
    let script = host.path("bin/containerd-shim-caisson-v2");
    fs::remove_file(&script).unwrap();
    fs::write(&script, "#!/bin/sh\necho 'no luck' >&2; exit 3\n").unwrap();
    Command::new("chmod").arg("+x").arg(&script).status().unwrap();
    let client = host.spawn("unlucky", "true");
    let error = client.create(&host.create_spec("unlucky")).unwrap_err();
    assert!(matches!(error, ClientError::Gone { .. }), "{error}");
    assert!(error.to_string().contains("no luck"), "{error}");
}

fn kill(pid: u32) {
    // SAFETY: kill takes any numbers; the process is one that this test started.
    unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) };
}
