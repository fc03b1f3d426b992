//! Containers from creation to removal.

use crate::host::{eventually, host};

#[test]
fn a_container_runs_and_is_gone() {
    let host = host!();
    host.caisson(&["run", "--rm", "tools", "sh", "-c", "echo out; echo err >&2; exit 7"])
        .exited_with(7)
        .printed("out\n")
        .complained("err\n");
    host.caisson(&["ps", "-a", "-q"]).succeeded().printed("");
    host.nothing_left();
}

#[test]
fn the_image_and_the_flags_make_the_process() {
    let host = host!();
    host.caisson(&["run", "--rm", "tools"]).succeeded().printed("default command\n");
    let script = "echo $FROM_IMAGE $MINE $HOSTNAME; pwd";
    host.caisson(&[
        "run", "--rm", "-e", "MINE=1", "-h", "box", "-w", "/usr", "tools", "sh", "-c", script,
    ])
    .succeeded()
    .printed("yes 1 box\n/usr\n");
    host.caisson(&["run", "--rm", "--entrypoint", "echo", "tools", "-n", "x"])
        .succeeded()
        .printed("x");
}

#[test]
fn a_stopped_container_keeps_its_logs_and_starts_again() {
    let host = host!();
    host.caisson(&["run", "--name", "kept", "tools", "echo", "one"]).succeeded().printed("one\n");
    host.caisson(&["ps", "-q"]).succeeded().printed("");
    host.caisson(&["ps", "-a"])
        .succeeded()
        .showed("Exited (0)")
        .showed("kept")
        .showed("\"echo one\"");
    host.caisson(&["start", "-a", "kept"]).succeeded().printed("one\n");
    host.caisson(&["start", "kept"]).succeeded().printed("kept\n");
    host.caisson(&["wait", "kept"]).succeeded().printed("0\n");
    host.caisson(&["logs", "kept"]).succeeded().printed("one\none\none\n");
    host.caisson(&["logs", "-n", "1", "kept"]).succeeded().printed("one\n");
    host.caisson(&["rm", "kept"]).succeeded().printed("kept\n");
    host.caisson(&["rm", "kept"]).exited_with(1).complained("No such container: kept");
    host.nothing_left();
}

#[test]
fn a_detached_container_is_watched_until_it_ends() {
    let host = host!();
    let id =
        host.caisson(&["run", "-d", "--name", "bg", "tools", "sh", "-c", "echo up; sleep 1000"]);
    let id = id.succeeded().stdout.trim().to_owned();
    assert_eq!(id.len(), 64);
    host.caisson(&["ps"]).succeeded().showed("Up ").showed("bg");
    eventually("it has written", || host.caisson(&["logs", "bg"]).stdout == "up\n");
    host.caisson(&["exec", "bg", "sh", "-c", "echo in; exit 4"]).exited_with(4).printed("in\n");
    host.caisson_with_input(&["exec", "-i", &id[..12], "cat"], b"text").succeeded().printed("text");
    host.caisson(&["exec", "-e", "A=1", "bg", "sh", "-c", "echo $A$FROM_IMAGE"])
        .succeeded()
        .printed("1yes\n");
    host.caisson(&["exec", "bg", "no-such-command"]).exited_with(127).complained("no-such-command");
    host.caisson(&["inspect", "-f", "{{.State.Status}} {{.Name}}", "bg"])
        .succeeded()
        .printed("running /bg\n");
    host.caisson(&["rm", "bg"]).exited_with(1).complained("container is running");
    host.caisson(&["stop", "bg"]).succeeded().printed("bg\n");
    host.caisson(&["ps", "-a"]).succeeded().showed("Exited (143)");
    host.caisson(&["exec", "bg", "true"]).exited_with(1).complained("is not running");
    host.caisson(&["stop", "bg"]).succeeded();
    host.caisson(&["rm", "bg"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_container_that_ends_by_itself_is_recorded() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "short", "tools", "sh", "-c", "exit 9"]).succeeded();
    eventually("its end is recorded", || host.caisson(&["ps", "-a"]).stdout.contains("Exited (9)"));
    host.caisson(&["wait", "short"]).succeeded().printed("9\n");
    // Nothing stays resident for it.
    eventually("its processes are gone", || host.processes().is_empty());
    host.caisson(&["rm", "short"]).succeeded();
}

#[test]
fn a_detached_container_removes_itself() {
    let host = host!();
    host.caisson(&["run", "-d", "--rm", "tools", "sleep", "0.2"]).succeeded();
    eventually("it is gone", || host.caisson(&["ps", "-aq"]).stdout.is_empty());
    host.nothing_left();
}

#[test]
fn a_paused_container_stands_still_until_it_is_unpaused() {
    let host = host!();
    let count = "while :; do echo tick; sleep 0.05; done";
    host.caisson(&["run", "-d", "--name", "clock", "tools", "sh", "-c", count]).succeeded();
    let ticks = || host.caisson(&["logs", "clock"]).stdout.len();
    eventually("it ticks", || ticks() > 0);
    host.caisson(&["pause", "clock"]).succeeded().printed("clock\n");
    host.caisson(&["ps"]).succeeded().showed(" (Paused)");
    host.caisson(&["ps", "-q", "--filter", "status=running"]).succeeded().printed("");
    host.caisson(&["inspect", "-f", "{{.State.Status}} {{.State.Paused}}", "clock"])
        .succeeded()
        .printed("paused true\n");
    host.caisson(&["pause", "clock"]).exited_with(1).complained("already paused");
    host.caisson(&["exec", "clock", "true"]).exited_with(1).complained("caisson unpause clock");
    // What was written before it stood still may still be on its way.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let stood_at = ticks();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(ticks(), stood_at);
    host.caisson(&["unpause", "clock"]).succeeded().printed("clock\n");
    eventually("it goes on", || ticks() > stood_at);
    host.caisson(&["unpause", "clock"]).exited_with(1).complained("is not paused");
    host.caisson(&["pause", "clock"]).succeeded();
    host.caisson(&["stop", "clock"]).succeeded();
    host.caisson(&["wait", "clock"]).succeeded().printed("143\n");
    host.caisson(&["pause", "clock"]).exited_with(1).complained("is not running");
    host.caisson(&["inspect", "-f", "{{.State.Paused}}", "clock"]).succeeded().printed("false\n");
    host.caisson(&["rm", "clock"]).succeeded();
    host.nothing_left();
}

#[test]
fn statistics_show_what_runs() {
    let host = host!();
    host.caisson(&["create", "--name", "idle", "tools"]).succeeded();
    host.caisson(&["run", "-d", "--name", "busy", "tools", "sleep", "1000"]).succeeded();
    let shape = "{{.Name}} {{.MemUsage}} {{.PIDs}}";
    let stats = |more: &[&str]| {
        host.caisson(&[&["stats", "--no-stream", "--format", shape], more].concat())
    };
    stats(&[]).succeeded().printed("busy 5MiB / 1GiB 2\n");
    stats(&["-a"]).succeeded().showed("idle 0B / 0B 0\n");
    stats(&["idle"]).succeeded().printed("idle 0B / 0B 0\n");
    stats(&["none"]).exited_with(1).complained("No such container: none");
    host.caisson(&["rm", "-f", "idle", "busy"]).succeeded();
    host.nothing_left();
}

#[test]
fn a_container_restarts_with_its_files_and_its_logs() {
    let host = host!();
    let script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done";
    host.caisson(&["run", "-d", "--name", "again", "tools", "sh", "-c", script]).succeeded();
    eventually("it is up", || host.caisson(&["logs", "again"]).stdout == "up\n");
    let started = || host.caisson(&["inspect", "-f", "{{.State.StartedAt}}", "again"]).stdout;
    let before = started();
    host.caisson(&["restart", "-t", "5", "again"]).succeeded().printed("again\n");
    assert_ne!(started(), before);
    eventually("it is up again", || host.caisson(&["logs", "again"]).stdout == "up\nup\n");
    host.caisson(&["stop", "again"]).succeeded();
    host.caisson(&["restart", "again"]).succeeded();
    host.caisson(&["ps", "-q"]).succeeded().showed("\n");
    host.caisson(&["rm", "-f", "again"]).succeeded();
    host.caisson(&["restart", "again"]).exited_with(1).complained("No such container");
    host.nothing_left();
}

#[test]
fn a_renamed_container_is_found_by_its_new_name_alone() {
    let host = host!();
    host.caisson(&["create", "--name", "old", "tools", "true"]).succeeded();
    host.caisson(&["create", "--name", "other", "tools", "true"]).succeeded();
    host.caisson(&["rename", "old", "new"]).succeeded().printed("");
    host.caisson(&["inspect", "-f", "{{.Name}}", "new"]).succeeded().printed("/new\n");
    host.caisson(&["rename", "old", "third"]).exited_with(1).complained("No such container: old");
    host.caisson(&["rename", "new", "other"]).exited_with(1).complained("already in use");
    host.caisson(&["rename", "new", "new"]).exited_with(1).complained("the name that");
    host.caisson(&["rename", "new", "a b"]).exited_with(1).complained("a b");
    host.caisson(&["rm", "new", "other"]).succeeded();
    host.nothing_left();
}

#[test]
fn signals_end_containers() {
    let host = host!();
    let deaf = "trap '' TERM; while :; do sleep 0.1; done";
    host.caisson(&["run", "-d", "--name", "deaf", "tools", "sh", "-c", deaf]).succeeded();
    std::thread::sleep(std::time::Duration::from_millis(300));
    host.caisson(&["stop", "-t", "1", "deaf"]).succeeded();
    host.caisson(&["wait", "deaf"]).succeeded().printed("137\n");
    host.caisson(&["start", "deaf"]).succeeded();
    host.caisson(&["kill", "-s", "USR1", "deaf"]).succeeded().printed("deaf\n");
    host.caisson(&["wait", "deaf"]).succeeded().printed("138\n");
    host.caisson(&["kill", "deaf"]).exited_with(1).complained("is not running");
    host.caisson(&["rm", "deaf"]).succeeded();
    host.nothing_left();
}

#[test]
fn running_containers_are_forced_away() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "a", "tools", "sleep", "1000"]).exited_with(125);
    host.caisson(&["run", "-d", "--name", "aa", "tools", "sleep", "1000"]).succeeded();
    host.caisson(&["create", "--name", "bb", "tools"]).succeeded();
    host.caisson(&["rm", "-f", "aa", "bb"]).succeeded().printed("aa\nbb\n");
    host.caisson(&["rm", "-f", "aa"]).exited_with(0).complained("No such container");
    host.nothing_left();
}

#[test]
fn created_containers_start_and_are_pruned() {
    let host = host!();
    let cidfile = host.path("cid");
    let cidfile = cidfile.to_str().unwrap();
    let id =
        host.caisson(&["create", "--cidfile", cidfile, "--name", "later", "tools"]).succeeded();
    assert_eq!(std::fs::read_to_string(cidfile).unwrap(), id.stdout.trim());
    host.caisson(&["create", "--cidfile", cidfile, "tools"])
        .exited_with(125)
        .complained("ID file found");
    host.caisson(&["ps", "-a", "--format", "{{.Names}} {{.Status}}"])
        .succeeded()
        .printed("later Created\n");
    host.caisson(&["start", "-a", "later"]).succeeded().printed("default command\n");
    let prune = |filter| host.caisson(&["container", "prune", "-f", "--filter", filter]);
    for kept in ["label=x", "until=1h"] {
        prune(kept).succeeded().printed("Total reclaimed space: 0B\n");
    }
    prune("until=soon")
        .exited_with(1)
        .complained("invalid filter \"until=soon\": invalid value \"soon\": expected a time");
    host.caisson_with_input(&["container", "prune"], b"n\n").exited_with(1).complained("--force");
    host.caisson_with_input(&["container", "prune"], b"y\n")
        .succeeded()
        .showed(id.stdout.trim())
        .showed("Total reclaimed space: ");
    host.nothing_left();
}

#[test]
fn listings_filter_and_format() {
    let host = host!();
    host.caisson(&["create", "--name", "one", "-l", "kind=a", "tools"]).succeeded();
    host.caisson(&["create", "--name", "two", "tools"]).succeeded();
    let names = |args: &[&str]| {
        let args = [&["ps", "-a", "--format", "{{.Names}}"], args].concat();
        host.caisson(&args).succeeded().stdout
    };
    assert_eq!(names(&[]), "two\none\n");
    assert_eq!(names(&["-f", "label=kind=a"]), "one\n");
    assert_eq!(names(&["-n", "1"]), "two\n");
    assert_eq!(names(&["-f", "status=exited"]), "");
    let json = host.caisson(&["ps", "-a", "-l", "--format", "json"]).succeeded().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["Names"], "two");
    host.caisson(&["ps", "-a", "--format", "table {{.Names}}\\t{{.Image}}"])
        .succeeded()
        .printed("NAMES   IMAGE\ntwo     tools\none     tools\n");
    host.caisson(&["ps", "--format", "{{.Nope}}"]).succeeded();
    host.caisson(&["ps", "-a", "--format", "{{.Nope}}"]).exited_with(1).complained("Nope");
}
