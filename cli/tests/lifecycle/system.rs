//! What happened, what takes space, and giving it back.

use crate::host::host;

/// The actions that were told of container `name`.
fn actions(host: &crate::host::Host, name: &str) -> Vec<String> {
    let filter = format!("container={name}");
    let told = host.caisson(&[
        "events",
        "--since",
        "0",
        "--until",
        "0s",
        "-f",
        &filter,
        "--format",
        "{{.Action}}",
    ]);
    told.succeeded().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn events_tell_a_containers_life() {
    let host = host!();
    host.caisson(&["run", "-d", "--name", "told", "tools", "sleep", "1000"]).succeeded();
    for command in
        [&["pause", "told"][..], &["unpause", "told"], &["restart", "told"], &["kill", "told"]]
    {
        host.caisson(command).succeeded();
    }
    host.caisson(&["rename", "told", "retold"]).succeeded();
    assert_eq!(
        actions(&host, "told"),
        [
            "create", "start", "pause", "unpause", "kill", "die", "stop", "start", "restart",
            "kill", "die"
        ]
    );
    host.caisson(&["rm", "retold"]).succeeded();
    assert_eq!(actions(&host, "retold"), ["rename", "destroy"]);
    let line = ["events", "--since", "0", "--until", "0s", "-f", "event=die", "-f", "event=pull"];
    host.caisson(&line)
        .succeeded()
        .showed(" container die ")
        .showed("exitCode=137")
        .showed("name=told");
    let json = ["events", "--since", "0", "--until", "0s", "-f", "type=image", "--format", "json"];
    host.caisson(&["tag", "tools", "other"]).succeeded();
    host.caisson(&json).succeeded().showed("\"Action\":\"tag\"").showed("\"ID\":\"other:latest\"");
    host.caisson(&["events", "-f", "since=1"]).exited_with(1).complained("invalid filter");
    host.nothing_left();
}

#[test]
fn a_container_that_goes_with_its_end_survives_a_restart() {
    let host = host!();
    host.caisson(&["run", "-d", "--rm", "--name", "again", "tools", "sleep", "1000"]).succeeded();
    host.caisson(&["restart", "again"]).succeeded().printed("again\n");
    host.caisson(&["ps", "--format", "{{.Names}}"]).succeeded().printed("again\n");
    host.caisson(&["stop", "again"]).succeeded();
    host.caisson(&["ps", "-aq"]).succeeded().printed("");
    host.nothing_left();
}

#[test]
fn what_takes_space_is_listed_and_what_is_unused_removed() {
    let host = host!();
    host.caisson(&["create", "--name", "idle", "tools"]).succeeded();
    let total = |kind: &str| {
        let listed =
            host.caisson(&["system", "df", "--format", "{{.Type}}:{{.TotalCount}}/{{.Active}}"]);
        let listed = listed.succeeded().stdout;
        let line = listed.lines().find_map(|line| line.strip_prefix(kind)).unwrap_or_default();
        line.trim_start_matches(':').to_owned()
    };
    assert_eq!((total("Images"), total("Containers")), ("1/1".to_owned(), "1/0".to_owned()));
    host.caisson(&["system", "df"]).succeeded().showed("RECLAIMABLE").showed("Local Volumes");
    host.caisson(&["system", "df", "-v"]).succeeded().showed("UNIQUE SIZE").showed("idle");
    host.caisson(&["system", "prune"])
        .exited_with(1)
        .showed("  - all stopped containers\n  - all dangling images\n")
        .complained("--force");
    host.caisson(&["system", "prune", "-f", "--filter", "label=x"]).succeeded();
    assert_eq!(total("Containers"), "1/0");
    host.caisson(&["image", "prune", "-af", "--filter", "label=no-such"]).succeeded();
    host.caisson(&["system", "prune", "-af"])
        .succeeded()
        .showed("Deleted Containers:")
        .showed("\n\nDeleted Images:\nuntagged: tools:latest\n")
        .showed("\n\nTotal reclaimed space: ");
    assert_eq!((total("Images"), total("Containers")), ("0/0".to_owned(), "0/0".to_owned()));
    host.nothing_left();
}

#[test]
fn limits_of_a_container_that_does_not_run_are_those_of_its_next_start() {
    let host = host!();
    host.caisson(&["create", "--name", "small", "-m", "64m", "--pids-limit", "5", "tools"])
        .succeeded();
    host.caisson(&["update", "-m", "128m", "--cpus", "1.5", "small"])
        .succeeded()
        .printed("small\n");
    let format = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}";
    host.caisson(&["inspect", "-f", format, "small"])
        .succeeded()
        .printed("134217728 1500000000 5\n");
    host.caisson(&["update", "small"]).exited_with(1).complained("one or more flags");
    host.caisson(&["update", "-m", "1k", "small"]).exited_with(1).complained("6MB");
    host.caisson(&["update", "-m", "64m", "nobody"]).exited_with(1).complained("No such container");
    host.caisson(&["rm", "small"]).succeeded();
    host.nothing_left();
}
