//! The benches, on the staged programs.

use crate::{binaries, images, packages, process, workspace};

/// `boot`: stages, exits, instructions and memory from `caisson run` to the first byte.
pub(crate) fn boot(runs: usize) -> anyhow::Result<()> {
    packages::install_missing()?;
    binaries::build_all()?;
    let built = binaries::build_programs(&["caisson-benches"])?;
    let [busybox, _] = images::make_all()?;
    let benches = workspace::root().join("benches");
    let mut bench = process::command(built.join("bench-boot"), [] as [&str; 0]);
    for (option, path) in [
        ("--caisson", binaries::caisson()),
        ("--reset-init", built.join("reset-init")),
        ("--busybox", busybox.path),
        ("--budgets", benches.join("budgets.json")),
        ("--directory", workspace::target().join("bench")),
        ("--results", benches.join("results")),
    ] {
        bench.arg(option).arg(path);
    }
    process::run(bench.args(["--runs", &runs.to_string()]))
}
