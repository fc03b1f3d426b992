//! End-to-end tests in plain verbs: what a user types, what a user sees.
//!
//! `cargo xtask test` builds the programs and images and sets `CAISSON_E2E_*`; without
//! those every test here says why it skips. On a host whose KVM cannot run guests the
//! programs carry themselves into the machine, so the tests are the same everywhere.

mod bounded;
pub mod containerd;
pub mod killed;
mod leftovers;
mod outcome;
pub mod soak;
mod terminal;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

pub use leftovers::Leftovers;
pub use outcome::Outcome;
pub use terminal::Terminal;

/// How long any one command may take; the slowest takes half a minute on an idle host.
const COMMAND_LIMIT: Duration = Duration::from_secs(150);

/// The programs under test, a store with the two images, and a place for their state.
pub struct Host {
    program: PathBuf,
    directory: PathBuf,
    pub busybox: PathBuf,
    pub debian: PathBuf,
}

/// The host, or a return from the test with the reason.
#[macro_export]
macro_rules! host {
    () => {
        match $crate::Host::get() {
            Some(host) => host,
            None => return,
        }
    };
}

impl Host {
    /// `None`, with the reason printed, where `cargo xtask test` has not prepared one.
    pub fn get() -> Option<&'static Self> {
        static HOST: OnceLock<Option<Host>> = OnceLock::new();
        let host = HOST.get_or_init(Self::prepare).as_ref()?;
        host.remove_containers();
        Some(host)
    }

    fn prepare() -> Option<Self> {
        let path = |name| env::var_os(format!("CAISSON_E2E_{name}")).map(PathBuf::from);
        let (Some(program), Some(directory), Some(busybox), Some(debian)) =
            (path("PROGRAM"), path("DIRECTORY"), path("BUSYBOX"), path("DEBIAN"))
        else {
            assert!(env::var_os("CI").is_none(), "CI runs these tests by `cargo xtask test`");
            eprintln!("skipped: `cargo xtask test` sets up what end-to-end tests need");
            return None;
        };
        let host = Self { program, directory, busybox, debian };
        fs::create_dir_all(&host.directory).expect("the tests' directory can be made");
        let lock = fs::File::create(host.directory.join("lock")).expect("a lock file");
        lock.lock().expect("lock the tests' directory");
        for (name, archive) in [("busybox", &host.busybox), ("debian:12", &host.debian)] {
            if host.caisson(["images", "-q", name]).stdout.trim().is_empty() {
                let archive = archive.to_str().expect("an UTF-8 path");
                host.caisson(["load", "-i", archive]).succeeded();
            }
        }
        Some(host)
    }

    /// A test that failed, or lost its machine, leaves its containers to whoever comes next.
    fn remove_containers(&self) {
        let listed = self.caisson(["ps", "-aq"]).succeeded().stdout;
        let ids: Vec<_> = listed.split_whitespace().collect();
        if !ids.is_empty() {
            eprintln!("removing what earlier tests have left: {ids:?}");
            self.caisson([&["rm", "-f"], ids.as_slice()].concat()).succeeded();
        }
    }

    /// Runs `caisson` with these arguments to its end.
    pub fn caisson<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
        self.caisson_with_input(arguments, b"")
    }

    pub fn caisson_with_input<'a>(
        &self,
        arguments: impl IntoIterator<Item = &'a str>,
        input: &[u8],
    ) -> Outcome {
        let arguments: Vec<_> = arguments.into_iter().collect();
        self.within(&arguments, input, COMMAND_LIMIT)
    }

    /// Runs `caisson`, which ends within `limit`.
    fn within(&self, arguments: &[&str], input: &[u8], limit: Duration) -> Outcome {
        if let Some(outcome) = self.attempt(arguments, input, limit) {
            return outcome;
        }
        // The emulated host is QEMU's nested virtualization, which can stop for good. That
        // is no answer to what the test asks; a second time is.
        assert!(self.uses_machine() && !self.machine_answers(), "{arguments:?} does not end");
        eprintln!("the machine hangs; starting another one for {arguments:?}");
        self.stop_machine();
        self.attempt(arguments, input, limit).expect("the command ends in a new machine")
    }

    /// Whether the machine runs a command within its time.
    fn machine_answers(&self) -> bool {
        self.attempt(&["machine", "exec", "--", "true"], b"", COMMAND_LIMIT)
            .is_some_and(|it| it.code == 0)
    }

    fn stop_machine(&self) {
        let stopped = self.command(["machine", "stop", "--force"]).status();
        assert!(stopped.expect("start caisson").success(), "the machine cannot be stopped");
    }

    /// One run of a command; `None` if it had to be killed after its time.
    fn attempt(&self, arguments: &[&str], input: &[u8], limit: Duration) -> Option<Outcome> {
        let mut command = self.command(arguments.iter().copied());
        let ended =
            bounded::run(&mut command, input, limit).unwrap_or_else(|problem| panic!("{problem}"));
        (!ended.killed).then(|| Outcome::of(&command, ended.output))
    }

    /// `caisson` with the tests' store and state, not yet started.
    pub fn command<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        self.command_in(&self.root(), arguments)
    }

    /// As [`Host::command`], with another store.
    pub fn command_in<'a>(
        &self,
        root: &Path,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(root).arg("--state").arg(self.state()).args(arguments);
        command.env_remove("RUST_BACKTRACE");
        command
    }

    /// Starts `caisson` in the background.
    pub fn spawn<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Child {
        self.command(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start caisson")
    }

    /// Runs a shell command where the containers run: in the machine, or here.
    pub fn inside(&self, script: &str) -> Outcome {
        self.inside_within(&["sh", "-c", script], COMMAND_LIMIT)
    }

    /// Runs a program, which ends within `limit`, where the containers run.
    pub fn inside_within(&self, words: &[&str], limit: Duration) -> Outcome {
        if self.uses_machine() {
            return self.within(&[&["machine", "exec", "--"], words].concat(), b"", limit);
        }
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let ended =
            bounded::run(&mut command, b"", limit).unwrap_or_else(|problem| panic!("{problem}"));
        assert!(!ended.killed, "{words:?} does not end");
        Outcome::of(&command, ended.output)
    }

    /// Whether KVM here cannot run guests.
    pub fn uses_machine(&self) -> bool {
        !runs_guests()
    }

    /// `C=…`: a shell then runs `caisson` with this store and state as `$C`.
    pub fn shell_variable(&self) -> String {
        let (program, root, state) = (self.program.display(), self.root(), self.state());
        format!("C='{program} --root {} --state {}'", root.display(), state.display())
    }

    pub fn root(&self) -> PathBuf {
        self.directory.join("root")
    }

    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    /// A directory for the test's own files, seen at the same path in the machine.
    pub fn scratch(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("test-").tempdir_in(&self.directory).expect("a directory")
    }
}

/// Whether KVM here runs guests.
pub fn runs_guests() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.split_whitespace().any(|flag| flag == "svm" || flag == "vmx")
}

/// Asks `condition` until it holds; fails the test, with `what`, after `seconds`.
pub fn eventually(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < deadline, "after {seconds} s still not: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}
