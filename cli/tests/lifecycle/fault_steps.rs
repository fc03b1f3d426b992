//! Every step of the command line and the store fails once, as an operation that fails and
//! as a process that dies: what failed is told, the state stays valid, nothing is left, and
//! the same commands then succeed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use caisson_failpoints::{
    cases::{self, Case},
    steps::{self, Step},
};

use crate::host::{Host, Outcome, eventually, host};

fn steps_of_the_cli() -> impl Iterator<Item = &'static Step> {
    steps::ALL.iter().filter(|step| !step.name.starts_with("shim."))
}

/// What a user does with an image and a container, and whom a fault could strike.
const DAY: [&[&str]; 9] = [
    &["import", "TREE", "other"],
    &["run", "-d", "--name", "web", "-v", "kept:/kept", "tools", "sleep", "1000"],
    &["exec", "web", "true"],
    &["kill", "web"],
    &["wait", "web"],
    &["start", "web"],
    &["rm", "-f", "web"],
    &["volume", "rm", "kept"],
    &["rmi", "other"],
];

/// The day up to the first command that fails, which is returned.
fn live(host: &Host, failure: Option<&str>) -> Option<Outcome> {
    let tree = tree(host);
    DAY.iter().find_map(|args| {
        let args: Vec<_> =
            args.iter().map(|&arg| if arg == "TREE" { &tree } else { arg }).collect();
        let mut command = host.command(&args);
        command.env("CAISSON_FAIL_LOG", log(host));
        if let Some(failure) = failure {
            command.env("CAISSON_FAIL", failure);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let outcome = Outcome::of(&args, command.spawn().unwrap());
        (outcome.code != 0).then_some(outcome)
    })
}

/// An archive whose layer no other image has.
fn tree(host: &Host) -> String {
    let directory = host.path("other");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("file"), "of the other image").unwrap();
    let tar = host.path("other.tar");
    let made = Command::new("tar").arg("-C").arg(&directory).arg("-cf").arg(&tar).arg(".").status();
    assert!(made.unwrap().success());
    tar.to_str().unwrap().to_owned()
}

fn log(host: &Host) -> PathBuf {
    host.path("passed")
}

fn passed(host: &Host) -> Vec<String> {
    fs::read_to_string(log(host)).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn assert_no_volume_is_left(host: &Host, case: &str) {
    let directory = host.path("root/volumes");
    let left = if directory.exists() { list(&directory) } else { Vec::new() };
    assert!(left.is_empty(), "{case}: {left:?}");
}

/// Nothing is left of any image.
fn assert_store_is_empty(host: &Host, case: &str) {
    host.caisson(&["rmi", "tools"]).exited_with(0);
    for directory in ["layers", "blobs/sha256"] {
        let left: Vec<_> = list(&host.path("root").join(directory));
        assert!(left.is_empty(), "{case}: {left:?}");
    }
}

fn list(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_step_of_the_table_is_passed() {
    let host = host!();
    let failed = live(&host, None);
    assert!(failed.is_none(), "{failed:?}");
    host.nothing_left();
    let passed = passed(&host);
    let names = steps_of_the_cli().map(|step| step.name);
    let missed: Vec<_> = names.filter(|&name| !passed.contains(&name.to_owned())).collect();
    assert!(missed.is_empty(), "no code passes {missed:?}");
    assert_no_volume_is_left(&host, "without a fault");
    assert_store_is_empty(&host, "without a fault");
}

#[test]
fn every_step_fails_once_and_the_next_attempt_succeeds() {
    drop(host!());
    // An import stores several blobs.
    let times = |step: &Step| if step.name.starts_with("store.blob.") { 3 } else { 1 };
    cases::try_all(&cases::of(steps_of_the_cli(), times), 4, try_case);
}

fn try_case(injected: Case) {
    let (Case { step, action, .. }, case) = (injected, injected.to_string());
    let host = Host::new().unwrap();
    let failed = live(&host, Some(&case));
    let struck = || passed(&host).contains(&format!("{}!", step.name));
    // It may be a monitor that is struck, a moment later.
    eventually(&format!("{case}: it is reached"), struck);
    match (&failed, action) {
        (None, _) => assert!(happens_behind_the_scenes(step), "{case}: no command has failed"),
        (Some(failed), "kill") => assert_eq!(failed.code, 137, "{case}: {failed:?}"),
        (Some(failed), _) => {
            let told = ["No space left on device", "the disk is full"];
            let told = told.iter().any(|words| failed.stderr.contains(words));
            assert!(told, "{case}: {failed:?}");
        }
    }
    // The state is valid, and a user can tidy up by the usual commands.
    host.caisson(&["images"]).exited_with(0).showed("tools");
    let listed = host.caisson(&["ps", "-a"]).exited_with(0);
    if listed.stdout.contains("web") {
        host.caisson(&["rm", "-f", "web"]).exited_with(0);
    }
    host.nothing_left();
    host.caisson(&["volume", "rm", "-f", "kept"]).exited_with(0);
    assert_no_volume_is_left(&host, &case);
    // Whole or not at all.
    if host.caisson(&["images"]).stdout.contains("other") {
        host.caisson(&["rmi", "other"]).exited_with(0);
    }

    let again = live(&host, None);
    assert!(again.is_none(), "after {case}: {again:?}");
    host.nothing_left();
    assert_store_is_empty(&host, &case);
}

/// A monitor records the end of a container without a terminal.
fn happens_behind_the_scenes(step: &Step) -> bool {
    step.name.starts_with("cli.finish.")
}
