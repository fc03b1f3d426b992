//! What every bench is told by `cargo xtask bench`, and what it does with what it measures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    budgets::Budgets,
    machine::{Machine, kvm_runs_guests},
};

#[derive(Args)]
pub struct Bench {
    /// The staged `caisson`
    #[arg(long)]
    pub caisson: PathBuf,
    /// The init that resets, static
    #[arg(long)]
    pub reset_init: PathBuf,
    /// `budgets.json`
    #[arg(long)]
    pub budgets: PathBuf,
    /// Where store and state go
    #[arg(long)]
    pub directory: PathBuf,
    /// Where results go
    #[arg(long)]
    pub results: PathBuf,
    /// Measure here, where KVM runs guests, and write the figures to this file
    #[arg(long, hide = true)]
    pub inside: Option<PathBuf>,
}

impl Bench {
    /// What `measure` measures: here where KVM runs guests, else by this program in a machine
    /// whose clock counts instructions, which is told `more` and the number of runs.
    ///
    /// `None` in that machine, where the figures are for the program outside.
    pub fn measured<T: Serialize + DeserializeOwned>(
        &self,
        more: (&str, &Path),
        runs: usize,
        measure: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<Option<T>> {
        if let Some(output) = &self.inside {
            fs::write(output, serde_json::to_vec(&measure()?)?)?;
            return Ok(None);
        }
        fs::create_dir_all(&self.directory)?;
        fs::create_dir_all(&self.results)?;
        let measured = if kvm_runs_guests() { measure()? } else { self.in_machine(more, runs)? };
        Ok(Some(measured))
    }

    fn in_machine<T: DeserializeOwned>(
        &self,
        more: (&str, &Path),
        runs: usize,
    ) -> anyhow::Result<T> {
        let machine =
            Machine { caisson: &self.caisson, directory: &self.directory, results: &self.results };
        machine.measure(|inside| {
            for (option, value) in [
                ("--caisson", self.caisson.as_path()),
                ("--reset-init", &self.reset_init),
                ("--budgets", &self.budgets),
                ("--directory", &self.directory),
                ("--results", &self.results),
                more,
            ] {
                inside.arg(option).arg(value);
            }
            inside.args(["--runs", &runs.to_string()]);
        })
    }

    /// Judges the figures by the budgets of `name`, prints them below `table`, and saves all
    /// of it; a failure if a budget is exceeded.
    pub fn report(
        &self,
        name: &str,
        measured: &impl Serialize,
        table: &str,
        figures: &BTreeMap<String, f64>,
    ) -> anyhow::Result<ExitCode> {
        let (judgement, kept) = Budgets::read(&self.budgets, name)?.judge(figures);
        let text = format!("{table}\nBudgets\n\n{judgement}");
        print!("{text}");
        fs::write(self.results.join(format!("{name}.txt")), &text)?;
        let json = self.results.join(format!("{name}.json"));
        fs::write(json, serde_json::to_vec_pretty(measured)?)?;
        println!("\nsaved in {}", self.results.display());
        Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
