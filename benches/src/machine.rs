//! Measuring on a host whose KVM runs guests: here, or in a machine whose clock counts
//! instructions.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;

/// Of the host's time, for everything that is measured in the machine.
const INSIDE_LIMIT: Duration = Duration::from_secs(600);

/// Whether this host's KVM runs guests.
pub fn kvm_runs_guests() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    processor.split_whitespace().any(|flag| flag == "svm" || flag == "vmx")
}

/// What a bench needs to start a machine.
pub struct Machine<'a> {
    /// The staged `caisson`.
    pub caisson: &'a Path,
    /// Where the machine's store and state go.
    pub directory: &'a Path,
    /// Shared with the machine, and its working directory.
    pub results: &'a Path,
}

impl Machine<'_> {
    /// Runs this program again in the machine, with what `arguments` adds and `--inside FILE`,
    /// and reads what it has written to that file.
    pub fn measure<T: DeserializeOwned>(
        &self,
        arguments: impl FnOnce(&mut Command),
    ) -> anyhow::Result<T> {
        succeed(&mut self.command(&["start", "--icount"]))?;
        let output = self.results.join("inside.json");
        let mut inside = self.command(&["exec", "--"]);
        inside.arg(std::env::current_exe()?);
        arguments(&mut inside);
        inside.arg("--inside").arg(&output);
        let measured = succeed_within(&mut inside, INSIDE_LIMIT);
        let stopped = succeed(&mut self.command(&["stop"]));
        measured?;
        stopped?;
        let bytes = fs::read(&output).with_context(|| format!("read {}", output.display()))?;
        serde_json::from_slice(&bytes).context("parse what was measured in the machine")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut caisson = Command::new(self.caisson);
        caisson.arg("--root").arg(self.directory.join("root"));
        caisson.arg("--state").arg(self.directory.join("state"));
        caisson.arg("machine").args(words).current_dir(self.results);
        caisson
    }
}

/// As [`succeed`]; a machine that hangs fails the bench instead of holding it for ever.
fn succeed_within(command: &mut Command, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    loop {
        if let Some(status) = child.try_wait()? {
            ensure!(status.success(), "{command:?}: {status}");
            return Ok(());
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{command:?}: not done after {limit:?}");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
