//! Processes that die, and many that want the same.

use std::{process::Stdio, thread, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::host::{Host, eventually, host};

pub(crate) fn kill_all(host: &Host, name: &str) {
    for (pid, program) in host.processes() {
        if program.contains(name) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

#[test]
fn ctrl_c_during_the_boot_leaves_nothing() {
    let host = host!();
    for flags in [&["--rm"][..], &[], &["-d"]] {
        let args = [&["run"], flags, &["tools", "sleep", "1000"]].concat();
        let mut command = host.command(&args);
        command.env("CAISSON_FAKE_BOOT_MS", "20000").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        eventually("it boots", || host.processes().iter().any(|(_, name)| name.contains("shim")));
        thread::sleep(Duration::from_millis(200));
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(130), "{flags:?}");
        host.nothing_left();
        host.caisson(&["ps", "-aq"]).succeeded().printed("");
    }
}

#[test]
fn a_killed_boot_is_tidied_by_the_next_command() {
    let host = host!();
    for (flags, listed) in [(&["--rm"][..], 0), (&["--name", "kept"], 1)] {
        let args = [&["run"], flags, &["tools", "sleep", "1000"]].concat();
        let mut command = host.command(&args);
        command.env("CAISSON_FAKE_BOOT_MS", "20000").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        eventually("it boots", || host.processes().iter().any(|(_, name)| name.contains("shim")));
        child.kill().unwrap();
        child.wait().unwrap();
        let left = host.caisson(&["ps", "-aq"]).succeeded().stdout;
        assert_eq!(left.lines().count(), listed, "{left}");
        eventually("the shim is gone", || host.processes().is_empty());
    }
    host.caisson(&["rm", "kept"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_killed_caller_leaves_its_container_watched() {
    let host = host!();
    let mut child =
        host.spawn(&["run", "--name", "web", "tools", "sh", "-c", "sleep 2; echo late; exit 5"]);
    eventually("it runs", || host.caisson(&["ps"]).stdout.contains("Up "));
    child.kill().unwrap();
    child.wait().unwrap();
    // The next command notices, and hands it to a monitor, which also takes its output.
    host.caisson(&["ps"]).succeeded().showed("Up ");
    eventually("its end is recorded", || host.caisson(&["ps", "-a"]).stdout.contains("Exited (5)"));
    host.caisson(&["logs", "web"]).succeeded().printed("late\n");
    host.caisson(&["rm", "web"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_monitor_stands_by_for_long_runs() {
    let host = host!();
    let mut child = host.spawn(&["run", "--rm", "tools", "sleep", "6"]);
    eventually("a monitor stands by", || host.processes().len() == 3);
    child.kill().unwrap();
    child.wait().unwrap();
    // No other command is needed.
    host.nothing_left();
}

#[test]
fn a_killed_shim_is_an_exit_of_137() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "lost", "tools", "sleep", "3"]).succeeded();
    kill_all(&host, "shim");
    eventually("it is listed as exited", || {
        host.caisson(&["ps", "-a"]).stdout.contains("Exited (137)")
    });
    host.caisson(&["wait", "lost"]).succeeded().printed("137\n");
    host.caisson(&["rm", "lost"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_killed_shim_ends_an_attached_run() {
    let host = host!();
    let args = ["run", "--rm", "tools", "sleep", "3"];
    let child = host.spawn(&args);
    eventually("it runs", || host.caisson(&["ps"]).stdout.contains("Up "));
    kill_all(&host, "shim");
    crate::host::Outcome::of(&args, child).exited_with(137).complained("went away");
    host.nothing_left();
}

#[test]
fn a_shim_that_does_not_answer_is_killed() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "stuck", "tools", "sleep", "1000"]).succeeded();
    for (pid, program) in host.processes() {
        if program.contains("shim") {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        }
    }
    host.caisson(&["ps"]).succeeded().showed("stuck");
    host.caisson(&["rm", "-f", "stuck"])
        .exited_with(0)
        .printed("stuck\n")
        .complained("does not answer");
    host.nothing_left();
}

#[test]
fn a_killed_monitor_is_replaced() {
    let host = host!();
    host.caisson(&["run", "-d", "--rm", "tools", "sleep", "2"]).succeeded();
    for (pid, program) in host.processes() {
        if program == "caisson" {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
    }
    host.caisson(&["ps", "-q"]).exited_with(0);
    host.nothing_left();
}

/// From before the record is written until after it is removed.
#[test]
fn a_caller_killed_at_any_time_leaves_nothing() {
    let host = host!();
    for millis in (0..120).step_by(6) {
        let mut child = host.spawn(&["run", "--rm", "tools", "sleep", "0.03"]);
        thread::sleep(Duration::from_millis(millis));
        child.kill().unwrap();
        child.wait().unwrap();
        host.caisson(&["ps", "-q"]).exited_with(0);
        eventually(&format!("nothing is listed ({millis} ms)"), || {
            host.caisson(&["ps", "-aq"]).stdout.is_empty()
        });
        host.nothing_left();
    }
}

#[test]
fn everything_killed_at_any_time_is_tidied() {
    let host = host!();
    for millis in (0..120).step_by(12) {
        let mut child = host.spawn(&["run", "-d", "--name", "web", "tools", "sleep", "1000"]);
        thread::sleep(Duration::from_millis(millis));
        kill_all(&host, "");
        child.wait().unwrap();
        // Only then: a process of the container may just have been on its way.
        kill_all(&host, "");
        host.caisson(&["ps", "-q"]).exited_with(0);
        let listed = host.caisson(&["ps", "-aq"]).succeeded().stdout;
        assert!(listed.lines().count() <= 1, "{listed}");
        if !listed.is_empty() {
            host.caisson(&["rm", "-f", "web"]).exited_with(0);
        }
        host.nothing_left();
    }
}

#[test]
fn of_many_that_want_one_name_one_wins() {
    let host = host!();
    let children: Vec<_> = (0..8)
        .map(|_| host.spawn(&["run", "--name", "one", "tools", "sh", "-c", "sleep 0.5"]))
        .collect();
    let codes: Vec<_> =
        children.into_iter().map(|mut child| child.wait().unwrap().code().unwrap()).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|&&code| code == 125).count(), 7, "{codes:?}");
    let removals: Vec<_> = (0..8).map(|_| host.spawn(&["rm", "-f", "one"])).collect();
    for mut removal in removals {
        assert_eq!(removal.wait().unwrap().code(), Some(0));
    }
    host.nothing_left();
}

#[test]
fn an_exec_ends_with_its_container() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "web", "tools", "sleep", "1000"]).succeeded();
    let mut exec = host.spawn(&["exec", "web", "sleep", "1000"]);
    thread::sleep(Duration::from_millis(300));
    host.caisson(&["rm", "-f", "web"]).succeeded();
    assert_ne!(exec.wait().unwrap().code(), Some(0));
    host.nothing_left();
}
