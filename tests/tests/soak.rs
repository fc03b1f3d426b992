//! A short soak; `cargo xtask soak` is the long one.

use std::process::{Command, Stdio};

use caisson_tests::{Leftovers, Outcome, host};

#[test]
fn a_minute_of_containers_and_faults_leaves_everything_flat() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let directory = host.root().parent().expect("the root lies in a directory").to_owned();
    let arguments = ["--rounds", "200", "--seconds", "45", "--seed", "1", "--every", "10"];
    let mut soak = vec![
        env!("CARGO_BIN_EXE_soak").to_owned(),
        "--inside".to_owned(),
        format!("--caisson={}", host.program().display()),
        format!("--busybox={}", host.busybox.display()),
        format!("--directory={}", directory.display()),
    ];
    soak.extend(arguments.map(str::to_owned));
    let mut command = match host.uses_machine() {
        true => {
            let mut command = host.command(["machine", "exec", "--"]);
            command.args(soak);
            command
        }
        false => {
            let mut command = Command::new(&soak[0]);
            command.args(&soak[1..]);
            command
        }
    };
    let output = command.stdin(Stdio::null()).output().expect("start the soak");
    let outcome = Outcome::of(&command, output).succeeded();
    println!("{}", outcome.stdout);
    leftovers.none(host);
}
