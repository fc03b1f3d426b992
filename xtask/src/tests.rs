//! Every check and every test, the end-to-end ones on the staged programs.

use std::{
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

use crate::{
    binaries,
    check::{self, Check},
    fuzz, images, packages, process,
};

/// How long each fuzz target runs: it finds what is broken at once, not what is rare.
const FUZZ_SECONDS: u64 = 10;

/// QEMU's emulation of a CPU that runs guests errs at times: a guest crashes at its boot, or
/// sleeps for ever. So many tests may fail by that, and are run once more in a new machine;
/// what is broken fails again, and more failures than these are no accident.
const MAY_BE_THE_EMULATOR: usize = 3;

pub(crate) fn run(filter: Option<&str>, only_end_to_end: bool) -> anyhow::Result<()> {
    packages::install_missing()?;
    let mut checks = Vec::new();
    if !only_end_to_end && filter.is_none() {
        checks = check::checks();
        checks.push(Check::new("fuzzing", || fuzz::run(&[], FUZZ_SECONDS)));
    }
    let filter = filter.map(str::to_owned);
    checks.push(Check::new("build", binaries::build_all));
    checks.push(Check::new("images", || images::make_all().map(drop)));
    checks.push(Check::new("end-to-end tests", move || end_to_end(filter.as_deref())));
    check::run_all(&checks)
}

fn end_to_end(filter: Option<&str>) -> anyhow::Result<()> {
    let filter: Vec<&str> = filter.into_iter().collect();
    let mut failed = run_end_to_end(&filter)?;
    let emulated = directory().join("state/machine/console.log").exists();
    stop_machine()?;
    if emulated && (1..=MAY_BE_THE_EMULATOR).contains(&failed.len()) {
        eprintln!("failed in an emulated host, which errs at times; in another one: {failed:?}");
        let names: Vec<&str> = failed.iter().map(String::as_str).collect();
        failed = run_end_to_end(&[&["--exact"], names.as_slice()].concat())?;
        stop_machine()?;
    }
    if !failed.is_empty() {
        bail!("failed: {failed:?}");
    }
    Ok(())
}

/// Runs these tests, or all, with their output shown; the names of those that failed.
fn run_end_to_end(filters: &[&str]) -> anyhow::Result<Vec<String>> {
    let [busybox, debian] = images::make_all()?;
    let mut test = process::cargo(["test", "--package", "caisson-tests", "--no-fail-fast", "--"]);
    // One at a time: each looks for what is left behind where all containers run.
    test.args(["--test-threads", "1"]).args(filters);
    test.env("CAISSON_E2E_PROGRAM", binaries::caisson())
        .env("CAISSON_E2E_BUSYBOX", busybox.path)
        .env("CAISSON_E2E_DEBIAN", debian.path)
        .env("CAISSON_E2E_DIRECTORY", directory());
    let mut running = test.stdout(Stdio::piped()).spawn().context("start the tests")?;
    let output = running.stdout.take().context("the tests' output is a pipe")?;
    let mut failed = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("read the tests' output")?;
        println!("{line}");
        failed.extend(failed_test(&line));
    }
    let status = running.wait().context("wait for the tests")?;
    if !status.success() && failed.is_empty() {
        bail!("the tests could not be run: {status}");
    }
    Ok(failed)
}

/// The name in a line of libtest's about a test that has failed.
fn failed_test(line: &str) -> Option<String> {
    Some(line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?.to_owned())
}

/// Also one that does not answer any more, and none.
fn stop_machine() -> anyhow::Result<()> {
    let stop = |option: &[&str]| {
        let mut command = Command::new(binaries::caisson());
        command.arg("--root").arg(directory().join("root"));
        command.arg("--state").arg(directory().join("state"));
        process::run(command.args(["machine", "stop"]).args(option))
    };
    stop(&[]).or_else(|_| stop(&["--force"]))
}

/// Where the tests keep their store, state and machine.
fn directory() -> PathBuf {
    crate::workspace::target().join("e2e")
}

#[cfg(test)]
mod libtest {
    use super::*;

    #[test]
    fn the_failed_tests_are_read_from_libtests_lines() {
        assert_eq!(failed_test("test a_b ... FAILED").as_deref(), Some("a_b"));
        for line in ["test a_b ... ok", "test result: FAILED. 1 passed", "FAILED", "test x"] {
            assert_eq!(failed_test(line), None, "{line}");
        }
    }
}
