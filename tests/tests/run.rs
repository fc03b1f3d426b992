//! `caisson run`: what it prints and how it ends.

use caisson_tests::{Leftovers, Outcome, Terminal, host};

#[test]
fn the_kernel_is_the_guests_own() {
    let host = host!();
    let outcome = host.caisson(["run", "--rm", "debian:12", "uname", "-r"]).succeeded();
    assert!(outcome.stdout.trim().ends_with("-caisson"), "{outcome:?}");
    let here = host.inside("uname -r").succeeded();
    assert_ne!(outcome.stdout, here.stdout);
}

#[test]
fn input_output_errors_and_the_exit_code_are_the_containers() {
    let host = host!();
    host.caisson_with_input(
        ["run", "--rm", "-i", "debian:12", "sh", "-c", "cat; echo err >&2; exit 7"],
        b"hello\n",
    )
    .exited_with(7)
    .printed("hello\n")
    .complained_about("err\n");
}

#[test]
fn without_i_the_input_is_empty() {
    let host = host!();
    host.caisson_with_input(["run", "--rm", "busybox", "wc", "-c"], b"not for the container")
        .succeeded()
        .printed("0\n");
}

#[test]
fn a_megabyte_comes_back_byte_by_byte() {
    let host = host!();
    let input: Vec<u8> = (0_u32..262_144).flat_map(u32::to_le_bytes).collect();
    let outcome = host.caisson_with_input(["run", "--rm", "-i", "busybox", "cat"], &input);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.bytes == input, "{} bytes came back", outcome.bytes.len());
}

#[test]
fn a_command_that_is_not_there_exits_with_127() {
    let host = host!();
    host.caisson(["run", "--rm", "busybox", "no-such-command"])
        .exited_with(127)
        .complained_about("no-such-command")
        .complained_about("not found");
}

#[test]
fn a_command_that_cannot_be_executed_exits_with_126() {
    let host = host!();
    host.caisson(["run", "--rm", "busybox", "/etc/passwd"])
        .exited_with(126)
        .complained_about("/etc/passwd");
    host.caisson(["run", "--rm", "busybox", "/etc"]).exited_with(126);
}

#[test]
fn a_signal_that_ends_the_process_is_told_by_the_exit_code() {
    let host = host!();
    // PID 1 is deaf to signals it does not handle, so a child dies and the shell tells.
    host.caisson(["run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"])
        .exited_with(137);
}

#[test]
fn a_variable_without_a_value_takes_the_callers() {
    let host = host!();
    let script = "echo ${TOKEN-unset} ${OTHER-unset}";
    let mut command = host.command(["run", "--rm", "-e", "TOKEN", "busybox", "sh", "-c", script]);
    command.env("TOKEN", "from-the-caller").env("OTHER", "not asked for");
    let output = command.output().expect("start caisson");
    Outcome::of(&command, output).succeeded().printed("from-the-caller unset\n");
}

#[test]
fn environment_directory_user_and_hostname_are_as_asked() {
    let host = host!();
    host.caisson([
        "run",
        "--rm",
        "-e",
        "GREETING=hi there",
        "-w",
        "/var/log",
        "-u",
        "www:extra",
        "--hostname",
        "box",
        "busybox",
        "sh",
        "-c",
        "echo $GREETING; pwd; id -u; id -g; hostname; echo $HOME",
    ])
    .succeeded()
    .printed("hi there\n/var/log\n33\n44\nbox\n/home\n");
}

#[test]
fn an_unknown_user_is_named() {
    let host = host!();
    let outcome = host.caisson(["run", "--rm", "-u", "nobody-here", "busybox", "true"]);
    outcome.exited_with(125).complained_about("nobody-here");
}

#[test]
fn the_entrypoint_can_be_replaced() {
    let host = host!();
    host.caisson(["run", "--rm", "--entrypoint", "echo", "busybox", "a", "b"])
        .succeeded()
        .printed("a b\n");
}

#[test]
fn limits_reach_the_guest() {
    let host = host!();
    host.caisson([
        "run",
        "--rm",
        "-m",
        "256m",
        "--cpus",
        "2",
        "busybox",
        "sh",
        "-c",
        "cat /sys/fs/cgroup/memory.max; nproc",
    ])
    .succeeded()
    .printed("268435456\n2\n");
}

#[test]
fn half_a_cpu_is_a_quota() {
    let host = host!();
    host.caisson(["run", "--rm", "--cpus", "0.5", "busybox", "cat", "/sys/fs/cgroup/cpu.max"])
        .succeeded()
        .printed("50000 100000\n");
}

#[test]
fn a_container_that_needs_more_memory_than_it_may_is_killed() {
    let host = host!();
    let hog = "x = bytearray(200 << 20); print('never')";
    host.caisson(["run", "--rm", "-m", "64m", "debian:12", "python3", "-c", hog])
        .exited_with(137)
        .printed("");
}

#[test]
fn a_read_only_root_takes_no_writes_but_a_tmpfs_does() {
    let host = host!();
    host.caisson([
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/scratch:size=1m",
        "busybox",
        "sh",
        "-c",
        "echo x > /file; echo y > /scratch/file && cat /scratch/file",
    ])
    .succeeded()
    .printed("y\n")
    .complained_about("Read-only file system");
}

#[test]
fn the_first_process_is_the_images_own_and_the_agent_is_not_seen() {
    let host = host!();
    let outcome = host
        .caisson([
            "run",
            "--rm",
            "busybox",
            "sh",
            "-c",
            "readlink /proc/1/exe; ls /proc | grep -c '^[0-9]'; ls -a /proc/self/fd | wc -l; ps",
        ])
        .succeeded();
    assert_eq!(outcome.lines()[0], "/bin/busybox", "{outcome:?}");
    assert!(!outcome.stdout.contains("agent"), "{outcome:?}");
}

#[test]
fn no_descriptor_capability_or_privilege_comes_along() {
    let host = host!();
    let outcome = host
        .caisson([
            "run",
            "--rm",
            "busybox",
            "sh",
            "-c",
            "ls /proc/self/fd; grep -E '^(Cap(Prm|Eff|Bnd)|Seccomp):' /proc/self/status",
        ])
        .succeeded();
    // 3 is the listing's own.
    assert!(outcome.stdout.starts_with("0\n1\n2\n3\n"), "{outcome:?}");
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert!(outcome.stdout.contains(&format!("{set}:\t00000000a80425fb")), "{outcome:?}");
    }
    assert!(outcome.stdout.contains("Seccomp:\t2"), "{outcome:?}");
}

#[test]
fn python_runs_in_debian() {
    let host = host!();
    let script = "import json, platform; print(json.dumps({'system': platform.system()}))";
    host.caisson(["run", "--rm", "debian:12", "python3", "-c", script])
        .succeeded()
        .printed("{\"system\": \"Linux\"}\n");
}

#[test]
fn a_terminal_is_one_with_a_size_and_keys() {
    let host = host!();
    let command = host.command(["run", "--rm", "-it", "busybox", "sh"]);
    let mut terminal = Terminal::start(command, 101, 37);
    terminal.shows("# ", 60);
    terminal.type_in("tty; stty size\n");
    terminal.shows("/dev/pts/0", 20);
    terminal.shows("37 101", 20);
    terminal.resize(80, 24);
    terminal.clear();
    terminal.type_in("sleep 1; stty size\n");
    terminal.shows("24 80", 20);
    terminal.clear();
    // The shell gives the terminal its usual mode when it runs a command: until the
    // command has spoken, Ctrl-C would only edit the line.
    terminal.type_in("printf 'o%s\\n' k; sleep 1000\n");
    terminal.shows("ok", 20);
    terminal.type_in("\u{3}");
    terminal.shows("# ", 20);
    terminal.type_in("exit 5\n");
    assert_eq!(terminal.exit_code(30), 5);
}

#[test]
fn the_terminal_is_as_before_when_the_container_has_ended() {
    let host = host!();
    let command = host.command(["run", "--rm", "-it", "busybox", "true"]);
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "\"$@\"; echo ended; sleep 5", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    let mut terminal = Terminal::start(shell, 80, 24);
    terminal.shows("ended", 60);
    assert!(terminal.is_cooked());
    assert_eq!(terminal.exit_code(20), 0);
}

#[test]
fn a_detached_container_is_listed_logged_and_removed() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let id = host
        .caisson(["run", "-d", "--name", "sleeper", "busybox", "sh", "-c", "echo up; sleep 1000"])
        .succeeded()
        .stdout;
    assert_eq!(id.trim().len(), 64, "{id}");
    host.caisson(["ps"]).succeeded().printed_something_like("sleeper");
    caisson_tests::eventually("its output is logged", 20, || {
        host.caisson(["logs", "sleeper"]).stdout == "up\n"
    });
    host.caisson(["exec", "sleeper", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '; exit 4"])
        .exited_with(4)
        .printed_something_like("sleep");
    host.caisson(["rm", "sleeper"]).exited_with(1).complained_about("running");
    host.caisson(["run", "--name", "sleeper", "busybox", "true"])
        .exited_with(125)
        .complained_about("sleeper");
    host.caisson(["rm", "-f", "sleeper"]).succeeded();
    let listed = host.caisson(["ps", "-a", "--format", "{{.Names}}"]).succeeded();
    assert!(!listed.lines().contains(&"sleeper"), "{listed:?}");
    leftovers.none(host);
}

#[test]
fn a_stopped_container_keeps_its_files_and_starts_again() {
    let host = host!();
    host.caisson(["run", "--name", "kept", "busybox", "sh", "-c", "date >> /log; wc -l < /log"])
        .succeeded()
        .printed("1\n");
    host.caisson(["ps", "-a"]).succeeded().printed_something_like("Exited (0)");
    host.caisson(["start", "-a", "kept"]).succeeded().printed("2\n");
    host.caisson(["rm", "kept"]).succeeded();
    host.caisson(["rm", "kept"]).exited_with(1).complained_about("No such container");
}

#[test]
fn stop_ends_a_container_that_listens_and_one_that_does_not() {
    let host = host!();
    let polite = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    host.caisson(["run", "-d", "--name", "polite", "busybox", "sh", "-c", polite]).succeeded();
    caisson_tests::eventually("it is ready", 20, || {
        host.caisson(["logs", "polite"]).stdout.contains("ready")
    });
    host.caisson(["stop", "polite"]).succeeded();
    host.caisson(["wait", "polite"]).succeeded().printed("3\n");
    host.caisson(["run", "-d", "--name", "deaf", "busybox", "sleep", "1000"]).succeeded();
    host.caisson(["stop", "-t", "1", "deaf"]).succeeded();
    host.caisson(["wait", "deaf"]).succeeded().printed("137\n");
    host.caisson(["rm", "polite", "deaf"]).succeeded();
}

#[test]
fn a_container_is_paused_renamed_and_restarted() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let count = "while :; do echo tick; sleep 0.1; done";
    host.caisson(["run", "-d", "--name", "clock", "busybox", "sh", "-c", count]).succeeded();
    let ticks = || host.caisson(["logs", "clock"]).stdout.len();
    host.caisson(["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"])
        .succeeded()
        .printed_something_like("clock ")
        .printed_something_like("MiB / 1GiB");
    host.caisson(["pause", "clock"]).succeeded();
    host.caisson(["ps"]).succeeded().printed_something_like("(Paused)");
    host.caisson(["exec", "clock", "true"]).exited_with(1).complained_about("is paused");
    let stood_at = ticks();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(ticks(), stood_at);
    host.caisson(["unpause", "clock"]).succeeded();
    caisson_tests::eventually("it goes on", 20, || ticks() > stood_at);
    host.caisson(["rename", "clock", "watch"]).succeeded();
    host.caisson(["restart", "-t", "0", "watch"]).succeeded().printed("watch\n");
    host.caisson(["exec", "watch", "true"]).succeeded();
    host.caisson(["rm", "-f", "watch"]).succeeded();
    leftovers.none(host);
}

#[test]
fn nothing_is_left_of_a_removed_container() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    for code in ["0", "9"] {
        let exit = format!("exit {code}");
        host.caisson(["run", "--rm", "busybox", "sh", "-c", &exit])
            .exited_with(code.parse().expect("a number"));
    }
    leftovers.none(host);
}
