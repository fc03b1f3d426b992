//! `cargo xtask bench isolation`: what jail and filters cost, measured on and off in one run.

use std::{path::PathBuf, process::ExitCode};

use caisson_benches::{
    bench::Bench,
    boot::Programs,
    isolation::{Guests, Measured},
};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    bench: Bench,
    /// The init that reads and writes a disk, static
    #[arg(long)]
    block_init: PathBuf,
    /// Interleaved turns of each side
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let Arguments { bench, block_init, runs } = &arguments;
    let measured = bench.measured(("--block-init", block_init), *runs, || measure(&arguments))?;
    let Some(measured) = measured else { return Ok(ExitCode::SUCCESS) };
    bench.report("isolation", &measured, &measured.table(), &measured.figures())
}

fn measure(arguments: &Arguments) -> anyhow::Result<Measured> {
    let programs = Programs {
        caisson: arguments.bench.caisson.clone(),
        reset_init: arguments.bench.reset_init.clone(),
        // No image is loaded.
        busybox: PathBuf::new(),
    };
    Guests::new(&programs, &arguments.block_init)?.measure(arguments.runs)
}
