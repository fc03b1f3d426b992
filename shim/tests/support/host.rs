//! A shim as the CLI runs it: real processes and sockets, and a vmm without a VM.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock},
    time::{Duration, Instant},
};

use caisson_shim::{
    assets::Assets,
    cgroup::{self, CgroupPlan},
    client::{CreateSpec, RootfsMount, ShimClient, SpawnSpec, Stdio},
    sandbox::VmSize,
};

use super::engine::Engine;

/// The real shim; what bears its usual name is a script that sets its environment.
const SHIM: &str = "bin/shim";

/// Written while programs are, read while one is started: a child that another thread
/// forks meanwhile holds the file open for writing until it executes its own program, and
/// what is open for writing is not executed (ETXTBSY).
static PROGRAMS: RwLock<()> = RwLock::new(());

pub struct Host {
    /// What stands in the bundles' network namespace, where there can be one.
    pub engine: Option<Engine>,
    /// Instead, containers are on the bridge of a host that is the engine's outside.
    pub on_bridge: bool,
    directory: tempfile::TempDir,
    assets: Assets,
}

impl Host {
    /// `None`, with the reason printed, where this cannot be tested.
    pub fn new() -> Option<Self> {
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
        let shim = PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-caisson-v2"));
        let linking = PROGRAMS.write().unwrap_or_else(PoisonError::into_inner);
        link_or_copy(&shim, &directory.path().join(SHIM));
        link_or_copy(&examples.join("fake_vmm"), &programs.join("caisson-vmm"));
        link_or_copy(&examples.join("fake_fs"), &programs.join("caisson-fs"));
        fs::write(files.join("vmlinux"), "kernel").unwrap();
        fs::write(files.join("initramfs.cpio"), "initramfs").unwrap();
        let assets = Assets::at(programs, files);
        let host = Self { engine: Engine::new(), on_bridge: false, directory, assets };
        let script = format!(
            "#!/bin/sh\n\
             export CAISSON_ASSETS={lib} CAISSON_BOOT_TIMEOUT=3\n\
             if [ -e {fail} ]; then export CAISSON_FAIL=\"$(cat {fail})\"; fi\n\
             export CAISSON_FAIL_LOG={log}\n\
             exec $(cat {enter} 2>/dev/null) {shim} \"$@\"\n",
            enter = host.path("enter").display(),
            lib = host.path("lib").display(),
            fail = host.path("fail").display(),
            log = host.path("passed").display(),
            shim = host.path(SHIM).display(),
        );
        drop(linking);
        host.write_shim(&script);
        Some(host)
    }

    /// Puts containers on the bridge from now on.
    pub fn use_bridge(&mut self) {
        let engine = self.engine.as_ref().expect("there are network namespaces");
        let enter = format!("nsenter --net={}", engine.outside_path().display());
        fs::write(self.path("enter"), enter).unwrap();
        self.on_bridge = true;
    }

    /// Makes this script what bears the shim's name.
    pub fn write_shim(&self, script: &str) {
        let _writing = PROGRAMS.write().unwrap_or_else(PoisonError::into_inner);
        let path = self.path("bin/containerd-shim-caisson-v2");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Shims that start from now on fail so ([`caisson_failpoints`]), or not.
    pub fn inject(&self, failure: Option<&str>) {
        let _ = fs::remove_file(self.path("passed"));
        match failure {
            Some(failure) => fs::write(self.path("fail"), failure).unwrap(),
            None => drop(fs::remove_file(self.path("fail"))),
        }
    }

    /// The steps that were passed since, with a `!` where it was made to fail.
    pub fn passed(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("passed")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    pub fn bundle(&self, id: &str, script: &str) -> PathBuf {
        let bundle = self.path(id);
        fs::create_dir_all(&bundle).unwrap();
        let process: serde_json::Value =
            serde_json::from_slice(&super::process_json(script)).unwrap();
        let mut namespaces = vec![serde_json::json!({ "type": "pid" })];
        let named = self.engine.iter().filter(|_| !self.on_bridge);
        namespaces
            .extend(named.map(|it| serde_json::json!({ "type": "network", "path": it.path() })));
        let spec = serde_json::json!({
            "ociVersion": "1.1.0",
            "process": process,
            "mounts": [{ "destination": "/data", "type": "bind", "source": self.directory.path(),
                "options": ["rbind", "ro"] }],
            "linux": { "namespaces": namespaces },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    pub fn spawn(&self, id: &str, script: &str) -> ShimClient {
        let bundle = self.bundle(id, script);
        let ports = ["8080:80".parse().unwrap()];
        let spec = SpawnSpec {
            assets: &self.assets,
            id,
            bundle: &bundle,
            socket: &self.socket(id),
            root: &self.path("root"),
            state: &self.path("state"),
            bridge: self.on_bridge.then_some(&ports),
        };
        let _starting = PROGRAMS.read().unwrap_or_else(PoisonError::into_inner);
        ShimClient::spawn(&spec).unwrap()
    }

    pub fn socket(&self, id: &str) -> PathBuf {
        self.path(&format!("shims/{id}.sock"))
    }

    pub fn create_spec(&self, id: &str) -> CreateSpec {
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

    pub fn log(&self, id: &str) -> Vec<serde_json::Value> {
        let log = fs::read_to_string(self.path(id).join("log.json")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What a VM or a shim would leave.
    pub fn leftovers(&self, id: &str) -> Vec<String> {
        let names = |directory: &Path| -> Vec<String> {
            let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let expected = ["config.json", "console.log", "exit.json", "log.json", "shim.log"];
        let mut left = names(&self.path(id));
        left.retain(|name| !expected.contains(&name.as_str()));
        left.extend(names(&self.path("shims")).into_iter().filter(|name| name.contains(id)));
        let cgroups = self.cgroups(id).into_iter().filter(|leaf| leaf.exists());
        left.extend(cgroups.map(|leaf| leaf.display().to_string()));
        left.extend(self.engine.iter().flat_map(Engine::leftovers));
        left.extend(self.engine.iter().flat_map(Engine::ends_on_the_bridge));
        left
    }

    /// Where the cgroup of a container's VM is, in each hierarchy of this host.
    pub fn cgroups(&self, id: &str) -> Vec<PathBuf> {
        let spec = serde_json::from_str("{\"ociVersion\":\"1.1.0\"}").unwrap();
        let size = VmSize { vcpus: 1, memory_mib: 64, disk_limit: Default::default() };
        let plan = CgroupPlan::of(id, &self.path(id), &spec, &size).unwrap();
        plan.place(&cgroup::Host::detect().unwrap()).leaves().to_vec()
    }

    /// Shims, vmms and file servers of this host that run.
    pub fn processes(&self) -> Vec<u32> {
        let programs = self.path("bin");
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| {
            let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            exe.starts_with(&programs) && is_alive(*pid)
        })
        .collect()
    }
}

fn link_or_copy(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap_or_else(|error| panic!("{from:?}: {error}"));
    }
}

pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is this test's own child.
    !stat.is_empty() && !stat.contains(") Z ")
}

pub fn kill(pid: u32) {
    // SAFETY: kill takes any numbers; the process is one that this test started.
    unsafe { libc::kill(i32::try_from(pid).unwrap(), libc::SIGKILL) };
}

#[track_caller]
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
