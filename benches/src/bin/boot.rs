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
    boot::{Programs, alone, chart, container::Place, report::Measured},
    budgets::Budgets,
    machine::{Machine, kvm_runs_guests},
};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// The staged `caisson`
    #[arg(long)]
    caisson: PathBuf,
    /// The init that resets, static
    #[arg(long)]
    reset_init: PathBuf,
    /// The busybox image
    #[arg(long)]
    busybox: PathBuf,
    /// `budgets.json`
    #[arg(long)]
    budgets: PathBuf,
    /// Where store and state go
    #[arg(long)]
    directory: PathBuf,
    /// Where results go
    #[arg(long)]
    results: PathBuf,
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Measure here, where KVM runs guests, and write the figures to this file
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let programs = Programs {
        caisson: arguments.caisson.clone(),
        reset_init: arguments.reset_init.clone(),
        busybox: arguments.busybox.clone(),
    };
    if let Some(output) = &arguments.inside {
        let measured = measure(&programs, &arguments.directory, arguments.runs)?;
        fs::write(output, serde_json::to_vec(&measured)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(&arguments.directory)?;
    fs::create_dir_all(&arguments.results)?;
    let mut measured = if kvm_runs_guests() {
        measure(&programs, &arguments.directory, arguments.runs)?
    } else {
        measure_in_machine(&arguments)?
    };
    for _ in 0..arguments.runs.max(11) {
        measured.first_run_ms.push(alone::first_run_ms(&programs)?);
    }
    report(&arguments, &measured)
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

fn measure_in_machine(arguments: &Arguments) -> anyhow::Result<Measured> {
    let machine = Machine {
        caisson: &arguments.caisson,
        directory: &arguments.directory,
        results: &arguments.results,
    };
    machine.measure(|inside| {
        for (option, value) in [
            ("--caisson", &arguments.caisson),
            ("--reset-init", &arguments.reset_init),
            ("--busybox", &arguments.busybox),
            ("--budgets", &arguments.budgets),
            ("--directory", &arguments.directory),
            ("--results", &arguments.results),
        ] {
            inside.arg(option).arg(value);
        }
        inside.args(["--runs", &arguments.runs.to_string()]);
    })
}

fn report(arguments: &Arguments, measured: &Measured) -> anyhow::Result<ExitCode> {
    let budgets = Budgets::read(&arguments.budgets, "boot")?;
    let (judgement, kept) = budgets.judge(&measured.figures());
    let text = format!("{}\nBudgets\n\n{judgement}", measured.table());
    print!("{text}");
    fs::write(arguments.results.join("boot.txt"), &text)?;
    fs::write(arguments.results.join("boot.json"), serde_json::to_vec_pretty(measured)?)?;
    if let Some(trace) = measured.typical() {
        fs::write(arguments.results.join("boot.svg"), chart::svg(trace))?;
    }
    println!("\nsaved in {}", arguments.results.display());
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
