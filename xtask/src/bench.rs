//! The benches, on the staged programs.

use std::path::{Path, PathBuf};

use crate::{binaries, images, packages, process, workspace};

/// `boot`: stages, exits, instructions and memory from `caisson run` to the first byte.
pub(crate) fn boot(runs: usize) -> anyhow::Result<()> {
    let built = prepare()?;
    let [busybox, _] = images::make_all()?;
    run(&built, "bench-boot", runs, &[("--busybox", busybox.path)])
}

/// `isolation`: boot and disk I/O with jail and filters, and without.
pub(crate) fn isolation(runs: usize) -> anyhow::Result<()> {
    let built = prepare()?;
    run(&built, "bench-isolation", runs, &[("--block-init", built.join("block-init"))])
}

/// Everything built and staged; where the benches are.
fn prepare() -> anyhow::Result<PathBuf> {
    packages::install_missing()?;
    binaries::build_all()?;
    binaries::build_programs(&["caisson-benches"], binaries::Profile::Release)
}

fn run(built: &Path, bench: &str, runs: usize, more: &[(&str, PathBuf)]) -> anyhow::Result<()> {
    let benches = workspace::root().join("benches");
    let mut command = process::command(built.join(bench), [] as [&str; 0]);
    let common = [
        ("--caisson", binaries::caisson()),
        ("--reset-init", built.join("reset-init")),
        ("--budgets", benches.join("budgets.json")),
        ("--directory", workspace::target().join("bench")),
        ("--results", benches.join("results")),
    ];
    for (option, path) in common.iter().chain(more) {
        command.arg(option).arg(path);
    }
    process::run(command.args(["--runs", &runs.to_string()]))
}
