//! `cargo xtask soak`: containers and random faults for as long as it is told, and nothing
//! that grows.

use clap::Args;

use crate::{binaries, images, packages, process, workspace};

#[derive(Args)]
pub(crate) struct SoakArgs {
    /// Stop after so many rounds
    #[arg(long, default_value_t = 2000)]
    rounds: u64,
    /// Stop after so many seconds
    #[arg(long)]
    seconds: Option<u64>,
    /// Repeat the random choices of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Begin with this round, to repeat one that failed
    #[arg(long)]
    first: Option<u64>,
}

pub(crate) fn run(arguments: &SoakArgs) -> anyhow::Result<()> {
    packages::install_missing()?;
    binaries::build_all()?;
    let [busybox, _] = images::make_all()?;
    let mut soak =
        process::cargo(["run", "--quiet", "--package", "caisson-tests", "--bin", "soak"]);
    soak.arg("--").arg("--caisson").arg(binaries::caisson()).arg("--busybox").arg(busybox.path);
    soak.arg("--directory").arg(workspace::target().join("soak"));
    soak.arg("--rounds").arg(arguments.rounds.to_string());
    for (option, value) in
        [("--seconds", arguments.seconds), ("--seed", arguments.seed), ("--first", arguments.first)]
    {
        if let Some(value) = value {
            soak.arg(option).arg(value.to_string());
        }
    }
    process::run(&mut soak)
}
