//! What a first user runs into.

use crate::host::host;

#[test]
fn an_unknown_image_says_how_to_load_one() {
    let host = host!();
    // Nothing listens on port 1.
    host.caisson(&["run", "--rm", "localhost:1/toolz", "true"])
        .exited_with(125)
        .complained("Unable to find image 'localhost:1/toolz:latest' locally")
        .complained("cannot reach localhost:1: nothing listens there");
    host.caisson(&["run", "--rm", "--pull", "never", "toolz", "true"])
        .exited_with(125)
        .complained("No such image: toolz:latest")
        .complained("caisson load")
        .complained("did you mean tools")
        .complained("Run 'caisson run --help' for more information");
    host.nothing_left();
}

#[test]
fn a_name_in_use_is_a_conflict() {
    let host = host!();
    host.caisson(&["create", "--name", "web", "tools"]).succeeded();
    host.caisson(&["run", "--name", "web", "tools"])
        .exited_with(125)
        .complained("The container name \"/web\" is already in use by container");
    host.caisson(&["create", "--name", "../x", "tools"])
        .exited_with(125)
        .complained("invalid container name");
}

#[test]
fn what_cannot_be_done_is_refused_in_words() {
    let host = host!();
    for (args, words) in [
        (&["run", "-p", "80", "tools"][..], "name the host's port and the container's: 8080:80"),
        (&["run", "-v", "/a:b", "tools"], "mount path must be absolute"),
        (&["run", "--mount", "type=bind,src=/no/such,dst=/b", "tools"], "does not exist: /no/such"),
        (&["run", "--network", "host", "tools"], "network cannot be a microVM's"),
        (&["run", "--pull", "sometimes", "tools"], "must be one of"),
        (&["run", "-m", "1m", "tools"], "minimum memory limit"),
        (&["run", "-e", "", "tools"], "invalid environment variable"),
        (&["run", "-it", "tools"], "the input device is not a TTY"),
        (&["run", "--no-such-flag", "tools"], "unknown flag: --no-such-flag"),
        (&["run", "--entrypoint", "", "tools"], "no command specified"),
    ] {
        host.caisson(args).exited_with(125).complained(words);
    }
    host.nothing_left();
}

#[test]
fn commands_that_are_missing_or_no_programs() {
    let host = host!();
    host.caisson(&["run", "--rm", "tools", "no-such"]).exited_with(127).complained("no-such");
    host.caisson(&["run", "--rm", "tools", "/etc/passwd"])
        .exited_with(126)
        .complained("/etc/passwd");
    host.nothing_left();
    // Without --rm it stays, with the reason.
    host.caisson(&["run", "--name", "bad", "tools", "no-such"]).exited_with(127);
    host.caisson(&[
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}",
        "bad",
    ])
    .succeeded()
    .showed("created 127 exec: \"no-such\"");
    host.caisson(&["rm", "bad"]).succeeded();
    host.nothing_left();
}

#[test]
fn missing_parts_are_named_before_anything_is_made() {
    let host = host!();
    std::fs::remove_file(host.path("lib/caisson/vmlinux")).unwrap();
    host.caisson(&["run", "--rm", "tools"]).exited_with(125).complained("cargo xtask build");
    host.nothing_left();
}

#[test]
fn escape_sequences_are_inert_in_errors_and_listings() {
    let host = host!();
    let outcome = host.caisson(&["run", "bad\x1b[31mname"]).exited_with(125);
    assert!(!outcome.stderr.contains('\x1b'), "{outcome:?}");
    host.caisson(&["create", "-l", "x=\x1b[2J", "tools", "echo", "\x1b[31m"]).succeeded();
    for args in [
        &["ps", "-a"][..],
        &["ps", "-a", "--format", "{{.Labels}}"],
        &["inspect", "-f", "{{.Args}}", "tools"],
    ] {
        let outcome = host.caisson(args);
        assert!(!outcome.stdout.contains('\x1b'), "{outcome:?}");
    }
    let outcome = host.caisson(&["rm", "\x1b]0;x\x07"]).exited_with(1);
    assert!(!outcome.stderr.contains('\x1b'), "{outcome:?}");
}
