//! `cargo xtask bench boot`: from `caisson run` to the first byte, measured.
//!
//! Outside, this program starts a machine whose clock counts instructions and carries
//! itself into it; inside, it measures. Where KVM runs guests it measures right here.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use caisson_benches::{
    bench::Bench,
    boot::{Programs, alone, chart, container::Place, report::Measured},
};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    bench: Bench,
    /// The busybox image
    #[arg(long)]
    busybox: PathBuf,
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

fn main() -> anyhow::Result<ExitCode> {
    let Arguments { bench, busybox, runs } = Arguments::parse();
    let programs = Programs {
        caisson: bench.caisson.clone(),
        reset_init: bench.reset_init.clone(),
        busybox: busybox.clone(),
    };
    let measured = bench
        .measured(("--busybox", &busybox), runs, || measure(&programs, &bench.directory, runs))?;
    let Some(mut measured) = measured else { return Ok(ExitCode::SUCCESS) };
    for _ in 0..runs.max(11) {
        measured.first_run_ms.push(alone::first_run_ms(&programs)?);
    }
    if let Some(trace) = measured.typical() {
        fs::write(bench.results.join("boot.svg"), chart::svg(trace))?;
    }
    bench.report("boot", &measured, &measured.table(), &measured.figures())
}

fn measure(programs: &Programs, directory: &Path, runs: usize) -> anyhow::Result<Measured> {
    let (root, state) = (directory.join("root"), directory.join("state"));
    let place = Place { programs, root: &root, state: &state };
    place.prepare()?;
    let initramfs = alone::reset_initramfs(programs)?;
    place.run_traced().context("warm up")?;
    let traces = (0..runs).map(|_| place.run_traced()).collect::<Result<_, _>>()?;
    let idle = place.idle_memory()?;
    let mut caisson = Vec::new();
    let mut qemu = Vec::new();
    for _ in 0..runs {
        caisson.push(alone::caisson(programs, initramfs.path())?);
        qemu.push(alone::qemu(programs, initramfs.path())?);
    }
    Ok(Measured { traces, idle, caisson, qemu, first_run_ms: Vec::new() })
}
