//! What goes in and comes out.

use std::{io::Read, process::Stdio};

use crate::host::{Outcome, host};

#[test]
fn without_i_the_input_is_empty() {
    let host = host!();
    host.caisson_with_input(&["run", "--rm", "tools", "wc", "-c"], b"not for it")
        .succeeded()
        .printed("0\n");
}

#[test]
fn megabytes_come_back_byte_by_byte() {
    let host = host!();
    let input: Vec<u8> = (0_u32..700_000).flat_map(u32::to_le_bytes).collect();
    for keep in [true, false] {
        let args: &[&str] = if keep {
            &["run", "-i", "tools", "cat"]
        } else {
            &["run", "--rm", "-i", "tools", "cat"]
        };
        let outcome = host.caisson_with_input(args, &input);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert!(outcome.bytes == input, "{} bytes came back", outcome.bytes.len());
    }
}

#[test]
fn a_closed_output_ends_it_quietly() {
    let host = host!();
    for args in [&["run", "--rm", "tools", "yes"][..], &["run", "tools", "yes"]] {
        let mut child = host.spawn(args);
        let mut stdout = child.stdout.take().unwrap();
        let mut first = [0; 2];
        stdout.read_exact(&mut first).unwrap();
        drop(stdout);
        let outcome = Outcome::of(args, child);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (141, ""), "{args:?}");
    }
    let mut command = host.command(&["ps", "-a"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(141), &b""[..]));
}

#[test]
fn logs_are_followed_to_the_end() {
    let host = host!();
    let script = "for i in 1 2 3; do echo line $i; sleep 0.2; done";
    host.caisson(&["run", "-d", "--name", "talker", "tools", "sh", "-c", script]).succeeded();
    host.caisson(&["logs", "-f", "talker"]).succeeded().printed("line 1\nline 2\nline 3\n");
    host.caisson(&["rm", "-f", "talker"]).succeeded();
    host.caisson(&["run", "--log-driver", "none", "--name", "silent", "tools", "echo", "x"])
        .succeeded();
    host.caisson(&["logs", "silent"]).exited_with(1).complained("keeps no logs");
}

#[test]
fn logs_are_read_and_followed_over_rotations() {
    let host = host!();
    let all: String = (1..=40).map(|number| format!("line {number}\n")).collect();
    let script = "i=1; while [ $i -le 40 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let limit = ["--log-opt", "max-size=400", "--log-opt", "max-file=100"];
    let run = |first: &[&str], name: &str| {
        let rest = ["--name", name, "tools", "sh", "-c", script];
        host.caisson(&[first, &limit[..], &rest].concat())
    };
    run(&["run", "-d"], "detached").succeeded();
    host.caisson(&["logs", "-f", "detached"]).succeeded().printed(&all);
    run(&["run"], "attached").succeeded().printed(&all);
    for name in ["detached", "attached"] {
        host.caisson(&["logs", name]).succeeded().printed(&all);
        host.caisson(&["logs", "-n", "2", name]).succeeded().printed("line 39\nline 40\n");
    }
    let rest = ["--log-opt", "max-size=400", "--name", "short", "tools", "sh", "-c", script];
    host.caisson(&[&["run"], &rest[..]].concat()).succeeded();
    let kept = host.caisson(&["logs", "short"]).succeeded().stdout.clone();
    assert!(all.ends_with(&kept) && (1..=6).contains(&kept.lines().count()), "{kept}");
}

#[test]
fn signals_are_passed_on() {
    let host = host!();
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let args = ["run", "--rm", "tools", "sh", "-c", script];
    let mut child = host.spawn(&args);
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    Outcome::of(&args, child).exited_with(3).printed("got it\n");
    host.nothing_left();
}

#[test]
fn three_interrupts_end_what_ignores_them() {
    let host = host!();
    let script = "trap '' INT; echo ready; while :; do sleep 0.05; done";
    let args = ["run", "--rm", "tools", "sh", "-c", script];
    let mut child = host.spawn(&args);
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    for _ in 0..3 {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Outcome::of(&args, child).exited_with(137).complained("killing");
    host.nothing_left();
}
