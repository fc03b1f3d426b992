//! A whole `caisson run`, and the memory of one that idles.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::{
    Programs,
    stages::{self, Trace},
};
use crate::memory::{self, Memory};

/// Store and state of the bench, apart from the user's.
pub struct Place<'a> {
    pub programs: &'a Programs,
    pub root: &'a Path,
    pub state: &'a Path,
}

/// The memory of one idle container's processes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Idle {
    pub vmm: Memory,
    pub shim: Memory,
}

impl Place<'_> {
    fn caisson(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.caisson);
        command.arg("--root").arg(self.root).arg("--state").arg(self.state).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    fn succeed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.caisson(arguments);
        let output = command.output().with_context(|| format!("start {command:?}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}: {stderr}", output.status);
        String::from_utf8(output.stdout).context("output in UTF-8")
    }

    /// Loads the image.
    pub fn prepare(&self) -> anyhow::Result<()> {
        let archive = self.programs.busybox.to_str().context("a path in UTF-8")?;
        self.succeed(&["load", "-i", archive]).map(drop)
    }

    /// One `caisson run --rm busybox echo`, traced.
    pub fn run_traced(&self) -> anyhow::Result<Trace> {
        let file = tempfile::NamedTempFile::new().context("a file for the stages")?;
        let mut command = self.caisson(&["run", "--rm", "busybox", "echo", "first byte"]);
        command.env("CAISSON_STAGES", file.path());
        let output = command.output().with_context(|| format!("start {command:?}"))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.stdout == b"first byte\n", "{command:?}: {}: {stderr}", output.status);
        stages::read(file.path())
    }

    /// Starts a container that sleeps, and reads its processes' memory.
    pub fn idle_memory(&self) -> anyhow::Result<Idle> {
        let id = self.succeed(&["run", "-d", "-m", "128m", "busybox", "sleep", "1000"])?;
        std::thread::sleep(std::time::Duration::from_secs(3));
        let idle = read_idle();
        self.succeed(&["rm", "-f", id.trim()])?;
        idle
    }
}

fn read_idle() -> anyhow::Result<Idle> {
    let of = |program: &str| {
        let processes = memory::processes(program)?;
        let [pid] = processes[..] else {
            anyhow::bail!("{} processes of {program}, not one", processes.len());
        };
        // The guest has 128 MiB and more; nothing else maps a fourth of that privately.
        memory::of(pid, 32 << 10)
    };
    Ok(Idle { vmm: of("caisson-vmm")?, shim: of("containerd-shim-caisson-v2")? })
}
