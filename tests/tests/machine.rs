//! `caisson machine`: the emulated host carries commands faithfully.

use std::process::{Command, Stdio};

use caisson_tests::{Host, Outcome, Terminal};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The host, if it is one that uses the machine.
fn emulated() -> Option<&'static Host> {
    let host = Host::get()?;
    if !host.uses_machine() {
        eprintln!("skipped: KVM runs guests here, the machine is not used");
        return None;
    }
    Some(host)
}

fn exec(host: &Host, script: &str) -> Outcome {
    host.caisson(["machine", "exec", "--", "sh", "-c", script])
}

#[test]
fn output_errors_and_exit_codes_come_out() {
    let Some(host) = emulated() else { return };
    exec(host, "echo out; echo err >&2; exit 42")
        .exited_with(42)
        .printed("out\n")
        .complained_about("err\n");
}

#[test]
fn kvm_is_real_in_it() {
    let Some(host) = emulated() else { return };
    exec(host, "grep -o -m1 -w svm /proc/cpuinfo; test -c /dev/kvm && echo kvm")
        .succeeded()
        .printed("svm\nkvm\n");
}

#[test]
fn ten_megabytes_go_in_and_out_unchanged() {
    let Some(host) = emulated() else { return };
    let input: Vec<u8> = (0_u32..2_621_440).flat_map(u32::to_le_bytes).collect();
    let outcome = host.caisson_with_input(["machine", "exec", "-i", "--", "cat"], &input);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.bytes == input, "{} bytes came back", outcome.bytes.len());
}

#[test]
fn the_working_directory_is_shared_writable_and_the_rest_is_not() {
    let Some(host) = emulated() else { return };
    let scratch = host.scratch();
    let mut command = host.command(["machine", "exec", "--", "sh", "-c", "pwd > here"]);
    let output = command.current_dir(scratch.path()).output().expect("start caisson");
    Outcome::of(&command, output).succeeded();
    let here = std::fs::read_to_string(scratch.path().join("here")).expect("a file written there");
    assert_eq!(here.trim(), scratch.path().to_str().expect("a path in UTF-8"));
    exec(host, "echo x > /etc/caisson-test && cat /etc/caisson-test").succeeded();
    assert!(!std::path::Path::new("/etc/caisson-test").exists());
}

#[test]
fn a_signal_to_the_command_here_reaches_the_command_there() {
    let Some(host) = emulated() else { return };
    let child = host
        .command([
            "machine",
            "exec",
            "--",
            "sh",
            "-c",
            "trap 'echo got it; exit 9' TERM; echo on; while :; do sleep 0.1; done",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start caisson");
    std::thread::sleep(std::time::Duration::from_secs(3));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).expect("signal caisson");
    let output = child.wait_with_output().expect("wait for caisson");
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "on\ngot it\n");
}

#[test]
fn a_terminal_goes_through() {
    let Some(host) = emulated() else { return };
    let command = host.command(["machine", "exec", "-it", "--", "sh"]);
    let mut terminal = Terminal::start(command, 90, 30);
    terminal.type_in("stty size; tty\n");
    terminal.shows("30 90", 30);
    terminal.shows("/dev/pts/", 10);
    terminal.type_in("exit 6\n");
    assert_eq!(terminal.exit_code(20), 6);
}

#[test]
fn a_killed_client_ends_its_command() {
    let Some(host) = emulated() else { return };
    let mut child = host
        .command(["machine", "exec", "--", "sleep", "4321"])
        .stdout(Stdio::null())
        .spawn()
        .expect("start caisson");
    let running = || exec(host, "ps axww 2>/dev/null | grep -q '[s]leep 4321'").code == 0;
    caisson_tests::eventually("it runs", 20, running);
    child.kill().expect("kill caisson");
    child.wait().expect("reap caisson");
    caisson_tests::eventually("it has ended", 20, || !running());
}

/// Not on the tests' own machine: it must keep running for the other tests.
#[test]
fn its_state_is_kept_between_starts() {
    let Some(host) = emulated() else { return };
    let scratch = host.scratch();
    let caisson = |arguments: &[&str]| {
        let mut command = Command::new(host.program());
        command.arg("--root").arg(scratch.path().join("root"));
        command.arg("--state").arg(scratch.path().join("state")).args(arguments);
        let output = command.output().expect("start caisson");
        Outcome::of(&command, output)
    };
    let kept = scratch.path().join("root/kept");
    let kept = kept.to_str().expect("a path in UTF-8");
    caisson(&["machine", "status"]).printed_something_like("stopped");
    caisson(&["machine", "start", "--memory", "1g"]).succeeded();
    caisson(&["machine", "status"]).succeeded().printed_something_like("running");
    caisson(&["machine", "exec", "--", "sh", "-c", &format!("echo here > {kept}")]).succeeded();
    caisson(&["machine", "stop"]).succeeded();
    caisson(&["machine", "exec", "--", "cat", kept]).succeeded().printed("here\n");
    caisson(&["machine", "stop"]).succeeded();
    caisson(&["machine", "stop"]).succeeded();
}
