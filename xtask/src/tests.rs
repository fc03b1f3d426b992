//! Every check and every test, the end-to-end ones on the staged programs.

use std::{path::PathBuf, process::Command};

use crate::{
    binaries,
    check::{self, Check},
    fuzz, images, packages, process,
};

/// How long each fuzz target runs: it finds what is broken at once, not what is rare.
const FUZZ_SECONDS: u64 = 10;

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
    let [busybox, debian] = images::make_all()?;
    let mut test = process::cargo(["test", "--package", "caisson-tests", "--no-fail-fast", "--"]);
    if let Some(filter) = filter {
        test.arg(filter);
    }
    // One at a time: each looks for what is left behind where all containers run.
    test.args(["--test-threads", "1"]);
    test.env("CAISSON_E2E_PROGRAM", binaries::caisson())
        .env("CAISSON_E2E_BUSYBOX", busybox.path)
        .env("CAISSON_E2E_DEBIAN", debian.path)
        .env("CAISSON_E2E_DIRECTORY", directory());
    let tested = process::run(&mut test);
    let mut stop = Command::new(binaries::caisson());
    stop.arg("--root").arg(directory().join("root")).arg("--state").arg(directory().join("state"));
    let stopped = process::run(stop.args(["machine", "stop"]));
    tested.and(stopped)
}

/// Where the tests keep their store, state and machine.
fn directory() -> PathBuf {
    crate::workspace::target().join("e2e")
}
