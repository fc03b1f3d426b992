//! What needs no VM: formatting, lints, policy and unit tests. All run, and all
//! failures are reported together.

use std::time::Instant;

use anyhow::bail;

use crate::{packages, policy, process, specification};

/// One named check.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) run: Box<dyn Fn() -> anyhow::Result<()>>,
}

impl Check {
    pub(crate) fn new(name: &'static str, run: impl Fn() -> anyhow::Result<()> + 'static) -> Self {
        Self { name, run: Box::new(run) }
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    packages::install_missing()?;
    run_all(&checks())
}

/// The checks in the order of their speed.
pub(crate) fn checks() -> Vec<Check> {
    vec![
        Check::new("format", || process::run(&mut process::cargo(["fmt", "--all", "--check"]))),
        Check::new("policy", policy::check),
        Check::new("specification", specification::check),
        Check::new("lints", || {
            process::run(&mut process::cargo([
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-Dwarnings",
            ]))
        }),
        Check::new("unit tests", || {
            process::run(&mut process::cargo([
                "test",
                "--workspace",
                "--exclude",
                "caisson-tests",
                "--no-fail-fast",
            ]))
        }),
    ]
}

/// Runs each, says how long it took, and fails at the end if any did.
pub(crate) fn run_all(checks: &[Check]) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for check in checks {
        eprintln!("== {}", check.name);
        let start = Instant::now();
        let result = (check.run)();
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(()) => eprintln!("== {}: ok after {seconds} s", check.name),
            Err(error) => {
                eprintln!("== {}: FAILED after {seconds} s: {error:#}", check.name);
                failed.push(check.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
