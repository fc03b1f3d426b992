//! `cargo xtask bench isolation`: what jail and filters cost, measured on and off in one run.

use std::{fs, path::PathBuf, process::ExitCode};

use caisson_benches::{
    boot::Programs,
    budgets::Budgets,
    isolation::{Guests, Measured},
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
    /// The init that reads and writes a disk, static
    #[arg(long)]
    block_init: PathBuf,
    /// `budgets.json`
    #[arg(long)]
    budgets: PathBuf,
    /// Where the machine's store and state go
    #[arg(long)]
    directory: PathBuf,
    /// Where results go
    #[arg(long)]
    results: PathBuf,
    /// Interleaved turns of each side
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Measure here, where KVM runs guests, and write the figures to this file
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(output) = &arguments.inside {
        let measured = measure(&arguments)?;
        fs::write(output, serde_json::to_vec(&measured)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    fs::create_dir_all(&arguments.directory)?;
    fs::create_dir_all(&arguments.results)?;
    let measured =
        if kvm_runs_guests() { measure(&arguments)? } else { measure_in_machine(&arguments)? };
    report(&arguments, &measured)
}

fn measure(arguments: &Arguments) -> anyhow::Result<Measured> {
    let programs = Programs {
        caisson: arguments.caisson.clone(),
        reset_init: arguments.reset_init.clone(),
        // No image is loaded.
        busybox: PathBuf::new(),
    };
    Guests::new(&programs, &arguments.block_init)?.measure(arguments.runs)
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
            ("--block-init", &arguments.block_init),
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
    let budgets = Budgets::read(&arguments.budgets, "isolation")?;
    let (judgement, kept) = budgets.judge(&measured.figures());
    let text = format!("{}\nBudgets\n\n{judgement}", measured.table());
    print!("{text}");
    fs::write(arguments.results.join("isolation.txt"), &text)?;
    fs::write(arguments.results.join("isolation.json"), serde_json::to_vec_pretty(measured)?)?;
    println!("\nsaved in {}", arguments.results.display());
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
