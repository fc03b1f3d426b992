//! `doctor`: what this host offers to containers, and what to do about each lack.

mod checks;
mod kvm;
mod security;

use std::{io::IsTerminal, process::ExitCode};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::print_line;
use crate::{
    failure::{CommandResult, Failure},
    format::inert::inert,
    globals::{Accel, Globals},
    machine,
};

#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    /// Check how well this host keeps VMs apart, and say what each finding means
    #[arg(long)]
    pub security: bool,
    /// Format output (table|json)
    #[arg(
        short,
        long,
        value_name = "string",
        default_value = "table",
        hide_possible_values = true
    )]
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
}

/// For which way of running containers a check matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Both,
    Kvm,
    Machine,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do, unless all is well.
    advice: Option<String>,
    #[serde(skip)]
    way: Way,
}

impl Check {
    fn ok(name: &'static str, way: Way, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None, way }
    }

    fn warn(name: &'static str, way: Way, found: impl Into<String>, advice: &str) -> Self {
        Self { status: Status::Warn, advice: Some(advice.to_owned()), ..Self::ok(name, way, found) }
    }

    fn fail(name: &'static str, way: Way, found: impl Into<String>, advice: &str) -> Self {
        Self { status: Status::Fail, ..Self::warn(name, way, found, advice) }
    }
}

/// How containers can run here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum RunsBy {
    Kvm,
    Machine,
}

pub(super) fn doctor(globals: &Globals, args: &DoctorArgs) -> CommandResult {
    if args.security {
        return security(globals, args.format);
    }
    let mut checks = checks::all(globals);
    if machine::is_inside() {
        checks.retain(|check| check.way != Way::Machine);
    }
    let runs_by = verdict(&checks, globals.accel, machine::is_inside());
    soften(&mut checks, runs_by);
    let report = serde_json::json!({ "checks": checks, "runs_by": runs_by });
    print_report(args.format, &checks, &report, conclusion(runs_by))?;
    if runs_by.is_some() { Ok(ExitCode::SUCCESS) } else { Err(Failure::quiet(1)) }
}

fn security(globals: &Globals, format: Format) -> CommandResult {
    let checks = security::all(globals);
    let fit = checks.iter().all(|check| check.status != Status::Fail);
    let report = serde_json::json!({ "checks": checks, "fit_for_hostile_code": fit });
    let conclusion = match fit {
        true => "No finding stands against hostile code on this host.",
        false => "This host is not fit for hostile code; see what failed above.",
    };
    print_report(format, &checks, &report, conclusion)?;
    if fit { Ok(ExitCode::SUCCESS) } else { Err(Failure::quiet(1)) }
}

fn print_report(
    format: Format,
    checks: &[Check],
    report: &serde_json::Value,
    conclusion: &str,
) -> Result<(), Failure> {
    match format {
        Format::Json => print_line(&serde_json::to_string_pretty(report)?),
        Format::Table => print_line(&table(checks, conclusion, std::io::stdout().is_terminal())),
    }
}

/// The first way that nothing stands in, of those that are allowed.
fn verdict(checks: &[Check], accel: Accel, inside: bool) -> Option<RunsBy> {
    let is_open = |way: Way| {
        let concerns = |check: &&Check| check.way == Way::Both || check.way == way;
        checks.iter().filter(concerns).all(|check| check.status != Status::Fail)
    };
    if accel != Accel::Machine && is_open(Way::Kvm) {
        return Some(RunsBy::Kvm);
    }
    (accel != Accel::Kvm && !inside && is_open(Way::Machine)).then_some(RunsBy::Machine)
}

/// What only stands in the way that is not taken is no failure.
fn soften(checks: &mut [Check], runs_by: Option<RunsBy>) {
    let unused = match runs_by {
        Some(RunsBy::Kvm) => Way::Machine,
        Some(RunsBy::Machine) => Way::Kvm,
        None => return,
    };
    for check in checks.iter_mut().filter(|check| check.way == unused) {
        if check.status == Status::Fail {
            check.status = Status::Warn;
        }
    }
}

fn table(checks: &[Check], conclusion: &str, colors: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0).max("CHECK".len());
    let mut text = format!("{:<width$}   STATUS   FOUND\n", "CHECK");
    for check in checks {
        let status = status(check.status, colors);
        text.push_str(&format!("{:<width$}   {status}   {}\n", check.name, inert(&check.found)));
        if let (Some(advice), true) = (&check.advice, check.status != Status::Ok) {
            text.push_str(&format!("{:width$}            → {}\n", "", inert(advice)));
        }
    }
    text.push('\n');
    text.push_str(conclusion);
    text
}

fn conclusion(runs_by: Option<RunsBy>) -> &'static str {
    match runs_by {
        Some(RunsBy::Kvm) => "Containers run on this host's KVM.",
        Some(RunsBy::Machine) => {
            "Containers run in the emulated machine: for development and tests, not for speed and not \
             for hostile code."
        }
        None => "Containers cannot run here; see what failed above.",
    }
}

fn status(status: Status, colors: bool) -> String {
    let (word, color) = match status {
        Status::Ok => ("ok    ", 32),
        Status::Warn => ("warn  ", 33),
        Status::Fail => ("fail  ", 31),
    };
    if colors { format!("\x1b[{color}m{word}\x1b[0m") } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(both: Status, kvm: Status, machine: Status) -> Vec<Check> {
        let check =
            |name, way, status| Check { status, ..Check::warn(name, way, "found", "do this") };
        vec![
            check("user", Way::Both, both),
            check("/dev/kvm", Way::Kvm, kvm),
            check("qemu", Way::Machine, machine),
        ]
    }

    #[test]
    fn kvm_comes_first_and_the_machine_second() {
        use Status::{Fail, Ok, Warn};
        let cases = [
            ((Ok, Ok, Ok), Accel::Auto, Some(RunsBy::Kvm)),
            ((Warn, Warn, Fail), Accel::Auto, Some(RunsBy::Kvm)),
            ((Ok, Fail, Ok), Accel::Auto, Some(RunsBy::Machine)),
            ((Ok, Ok, Ok), Accel::Machine, Some(RunsBy::Machine)),
            ((Ok, Fail, Ok), Accel::Kvm, None),
            ((Ok, Fail, Fail), Accel::Auto, None),
            ((Fail, Ok, Ok), Accel::Auto, None),
        ];
        for ((both, kvm, machine), accel, expected) in cases {
            assert_eq!(verdict(&checks(both, kvm, machine), accel, false), expected);
        }
        assert_eq!(verdict(&checks(Ok, Fail, Ok), Accel::Auto, true), None);
    }

    #[test]
    fn the_way_not_taken_only_warns() {
        let mut checks = checks(Status::Ok, Status::Fail, Status::Ok);
        soften(&mut checks, Some(RunsBy::Machine));
        assert_eq!(checks[1].status, Status::Warn);
        let table = table(&checks, conclusion(Some(RunsBy::Machine)), false);
        assert_eq!(
            table,
            "CHECK      STATUS   FOUND\n\
             user       ok       found\n\
             /dev/kvm   warn     found\n\
             \x20                   → do this\n\
             qemu       ok       found\n\n\
             Containers run in the emulated machine: for development and tests, not for speed and \
             not for hostile code."
        );
    }

    #[test]
    fn this_host_is_looked_at_without_a_panic() {
        let root = tempfile::tempdir().unwrap();
        let checks = checks::all(&Globals::sample(root.path()));
        for check in &checks {
            assert_eq!(check.status == Status::Ok, check.advice.is_none(), "{check:?}");
            assert!(!check.found.is_empty(), "{check:?}");
        }
        assert!(table(&checks, conclusion(None), true).contains("\x1b["));
    }
}
