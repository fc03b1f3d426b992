//! Power loss: the emulated host is cut off between two writes and started again.
//!
//! SIGKILL to the emulator loses what the machine's kernel had not yet written to its
//! disk, as a power cut does; what it had flushed stays.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use caisson_tests::{Host, Outcome, eventually, host};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A machine of the test's own.
struct Machine<'a> {
    host: &'a Host,
    directory: tempfile::TempDir,
}

impl<'a> Machine<'a> {
    fn start(host: &'a Host) -> Self {
        let machine = Self { host, directory: host.scratch() };
        machine.switch_on();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.host.program());
        command.arg("--root").arg(self.path("root")).arg("--state").arg(self.path("state"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn caisson(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.command(arguments);
        let output = command.output().expect("start caisson");
        Outcome::of(&command, output)
    }

    fn switch_on(&self) {
        self.caisson(&["machine", "start", "--memory", "1g"]).succeeded();
    }

    fn pid(&self) -> i32 {
        let status = self.caisson(&["machine", "status", "--format", "json"]).succeeded().stdout;
        let status: serde_json::Value = serde_json::from_str(&status).expect("the status as JSON");
        let pid = status["pid"].as_i64().expect("the emulator's pid");
        i32::try_from(pid).expect("a pid")
    }

    /// Starts a command, and cuts the power this long after.
    fn cut_during(&self, arguments: &[&str], after: Duration) {
        let pid = self.pid();
        let mut command = self.command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start caisson");
        thread::sleep(after);
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the emulator runs");
        let path = format!("/proc/{pid}");
        eventually("the emulator is gone", 20, || !Path::new(&path).exists());
        let _ = child.kill();
        child.wait().expect("wait for caisson");
    }

    /// Lists what is in a directory of the store.
    fn list(&self, directory: &str) -> Vec<String> {
        let directory = self.path("root").join(directory);
        let script = format!("ls -A {}", directory.display());
        let listed = self.caisson(&["machine", "exec", "--", "sh", "-c", &script]).succeeded();
        listed.stdout.lines().map(str::to_owned).collect()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        self.caisson(&["machine", "stop", "--force"]);
    }
}

#[test]
fn a_power_cut_leaves_a_valid_store_and_nothing_half_made() {
    let host = host!();
    if !host.uses_machine() {
        eprintln!("skipped: KVM runs guests here, there is no emulated host to cut off");
        return;
    }
    let machine = Machine::start(host);
    let busybox = host.busybox.to_str().expect("an UTF-8 path").to_owned();
    let debian = host.debian.to_str().expect("an UTF-8 path").to_owned();
    machine.caisson(&["load", "-i", &busybox]).succeeded();
    // A checkpoint, so that at least this must have survived.
    machine.caisson(&["machine", "exec", "--", "sync"]).succeeded();

    for millis in [900, 4000] {
        machine.cut_during(&["load", "-i", &debian], Duration::from_millis(millis));
        machine.switch_on();
        let listed = machine.caisson(&["images", "-q"]).succeeded();
        // The new image is whole or not at all; the old one is there.
        assert!((1..=2).contains(&listed.lines().len()), "{listed:?}");
        machine.caisson(&["run", "--rm", "busybox", "echo", "old"]).succeeded().printed("old\n");
        if listed.lines().len() == 2 {
            machine.caisson(&["run", "--rm", "debian:12", "true"]).succeeded();
            machine.caisson(&["rmi", "debian:12"]).succeeded();
        }
    }
    machine.caisson(&["load", "-i", &debian]).succeeded();
    machine.caisson(&["run", "--rm", "debian:12", "echo", "new"]).succeeded().printed("new\n");
    machine.caisson(&["rmi", "debian:12"]).succeeded();
    let partial = |names: Vec<String>| names.into_iter().filter(|name| name.contains("partial"));
    let left: Vec<_> =
        ["layers", "blobs/sha256"].iter().flat_map(|name| partial(machine.list(name))).collect();
    assert!(left.is_empty(), "{left:?}");

    // Containers, one after the other, some of them running.
    let script = format!(
        "C='{} --root {} --state {}'; $C run -d --name up busybox sleep 1000
         for i in $(seq 1000); do $C create --name c$i busybox true; done",
        host.program().display(),
        machine.path("root").display(),
        machine.path("state").display(),
    );
    let making = ["machine", "exec", "--", "sh", "-c", &script];
    machine.cut_during(&making, Duration::from_secs(8));
    machine.switch_on();
    let names = machine.caisson(&["ps", "-a", "--format", "{{.Names}} {{.State}}"]).succeeded();
    for line in names.lines() {
        let (name, state) = line.split_once(' ').expect("a name and a state");
        assert!(["created", "exited"].contains(&state), "{names:?}");
        if state == "created" {
            machine.caisson(&["start", "-a", name]).succeeded();
        }
        machine.caisson(&["rm", name]).succeeded();
    }
    assert_eq!(machine.list("containers"), Vec::<String>::new());
    machine.caisson(&["rmi", "busybox"]).succeeded();
}
