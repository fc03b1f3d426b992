//! A state directory, the programs, and verbs.

use std::{
    fs,
    io::Write,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

pub(crate) struct Host {
    directory: tempfile::TempDir,
}

/// A host, or a return from the test with the reason.
macro_rules! host {
    () => {
        match $crate::host::Host::new() {
            Some(host) => host,
            None => return,
        }
    };
}
pub(crate) use host;

impl Host {
    /// With one image, `tools`, in its store.
    pub(crate) fn new() -> Option<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: only root has mount namespaces and a state directory");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("caisson-cli-").tempdir().unwrap();
        let host = Self { directory };
        let bin = host.path("bin");
        let lib = host.path("lib/caisson");
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(&lib).unwrap();
        // Copies: a program finds the others beside what it really is.
        let caisson = Path::new(env!("CARGO_BIN_EXE_caisson"));
        link_or_copy(caisson, &bin.join("caisson"));
        for (example, program) in
            [("fake-shim", "containerd-shim-caisson-v2"), ("unpack", "caisson-unpack")]
        {
            let example = caisson.parent().unwrap().join("examples").join(example);
            assert!(example.exists(), "no {example:?}: `cargo test -p caisson` builds it");
            link_or_copy(&example, &bin.join(program));
        }
        for (file, directory) in [
            ("caisson-vmm", &bin),
            ("caisson-fs", &bin),
            ("vmlinux", &lib),
            ("initramfs.cpio", &lib),
        ] {
            fs::write(directory.join(file), "").unwrap();
        }
        host.import("tools");
        Some(host)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An image that says how it runs; its files play no part here.
    pub(crate) fn import(&self, name: &str) {
        let tree = self.path("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        if tree.join("bin/sh").symlink_metadata().is_err() {
            symlink("busybox", tree.join("bin/sh")).unwrap();
        }
        let tar = self.path("tree.tar");
        let made = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg(".").status();
        assert!(made.unwrap().success());
        let tar = tar.to_str().unwrap();
        self.caisson(&[
            "import",
            "--change",
            "ENV FROM_IMAGE=yes",
            "--change",
            &format!("ENV {}", self.mark()),
            "--change",
            "CMD [\"echo\",\"default command\"]",
            tar,
            name,
        ])
        .succeeded();
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("bin/caisson"));
        command.arg("--root").arg(self.path("root")).arg("--state").arg(self.path("state"));
        command.args(args).env_remove("RUST_BACKTRACE").env_remove("CAISSON_ACCEL");
        // SAFETY: system calls alone, in the child of a fork.
        unsafe {
            command.pre_exec(|| {
                unshare(CloneFlags::CLONE_NEWNS)?;
                let none = None::<&str>;
                mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
                mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), none)?;
                nix::unistd::mkdir("/run/caisson-machine", nix::sys::stat::Mode::S_IRWXU)?;
                Ok(())
            });
        }
        command
    }

    pub(crate) fn caisson(&self, args: &[&str]) -> Outcome {
        self.caisson_with_input(args, b"")
    }

    pub(crate) fn caisson_with_input(&self, args: &[&str], input: &[u8]) -> Outcome {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Outcome::new(args, output)
    }

    /// In the background, with its output to be read.
    pub(crate) fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// In the environment of this host's containers.
    fn mark(&self) -> String {
        format!("TEST_HOST={}", self.directory.path().display())
    }

    /// Containers of this host, which unlike VMs outlive a shim that is killed.
    fn containers(&self) -> Vec<i32> {
        let mark = self.mark();
        let is_marked = |pid: &i32| {
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(is_marked).collect()
    }

    /// What containers have left: files beneath the state and container directories, and
    /// processes of theirs.
    pub(crate) fn leftovers(&self) -> String {
        let mut left = Vec::new();
        for directory in ["state", "root/containers"] {
            list(&self.path(directory), &mut left);
        }
        left.retain(|path| {
            path.components().count() > self.path("state/bundles").components().count()
        });
        let mut left: Vec<String> = left.iter().map(|path| path.display().to_string()).collect();
        left.extend(
            self.processes().into_iter().map(|(pid, name)| format!("process {pid} {name}")),
        );
        left.sort();
        left.join("\n")
    }

    /// Shims and monitors of this host.
    pub(crate) fn processes(&self) -> Vec<(i32, String)> {
        let bin = self.path("bin");
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let exe = fs::read_link(entry.path().join("exe")).unwrap_or_default();
            if exe.starts_with(&bin) {
                found.push((pid, exe.file_name().unwrap().to_string_lossy().into_owned()));
            }
        }
        found
    }

    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        eventually("nothing is left", || self.leftovers().is_empty());
    }
}

impl Drop for Host {
    /// A test must not leave processes behind, whatever it killed.
    fn drop(&mut self) {
        let shims = self.processes().into_iter().map(|(pid, _)| pid);
        for pid in shims.chain(self.containers()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn list(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        found.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), found);
        }
    }
}

fn link_or_copy(from: &Path, to: &Path) {
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).unwrap();
    }
}

/// Asks until it holds, or fails the test.
#[track_caller]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[derive(Debug)]
pub(crate) struct Outcome {
    args: Vec<String>,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) bytes: Vec<u8>,
}

impl Outcome {
    fn new(args: &[&str], output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Self {
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap()),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            bytes: output.stdout,
        }
    }

    pub(crate) fn of(args: &[&str], child: Child) -> Self {
        Self::new(args, child.wait_with_output().unwrap())
    }

    fn report(&self) -> String {
        let Self { args, code, stdout, stderr, .. } = self;
        format!("{args:?} exited with {code}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }

    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.stderr, "", "{}", self.report());
        self.exited_with(0)
    }

    #[track_caller]
    pub(crate) fn exited_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.report());
        self
    }

    #[track_caller]
    pub(crate) fn printed(self, expected: &str) -> Self {
        assert_eq!(self.stdout, expected, "{}", self.report());
        self
    }

    #[track_caller]
    pub(crate) fn showed(self, part: &str) -> Self {
        assert!(self.stdout.contains(part), "no {part:?}: {}", self.report());
        self
    }

    #[track_caller]
    pub(crate) fn complained(self, part: &str) -> Self {
        assert!(self.stderr.contains(part), "no {part:?}: {}", self.report());
        self
    }
}
