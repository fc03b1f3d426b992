//! Looking into containers, and copying files out of and into them.

use std::{fs, os::unix::fs::symlink};

use caisson_tests::{Leftovers, host};

#[test]
fn processes_files_and_differences_of_a_running_container_are_seen() {
    let host = host!();
    let before = Leftovers::watch(host);
    host.caisson(["run", "-d", "--name", "seen", "busybox", "sleep", "1000"]).succeeded();
    host.caisson(["exec", "seen", "sh", "-c", "echo made > /made"]).succeeded();
    let top = host.caisson(["top", "seen", "-o", "user,ppid,comm,args"]).succeeded();
    assert_eq!(top.lines().len(), 2, "{top:?}");
    let words: Vec<_> = top.lines()[1].split_whitespace().collect();
    assert_eq!(words[0], "root");
    assert_eq!(words[2..], ["sleep", "sleep", "1000"]);
    host.caisson(["diff", "seen"]).succeeded().printed_something_like("A /made\n");
    host.caisson(["update", "--pids-limit", "77", "seen"]).succeeded().printed("seen\n");
    host.caisson(["exec", "seen", "cat", "/sys/fs/cgroup/pids.max"]).succeeded().printed("77\n");
    host.caisson(["update", "-m", "100g", "seen"]).exited_with(1).complained_about("cannot grow");
    let scratch = host.scratch();
    let to = |name: &str| scratch.path().join(name).to_string_lossy().into_owned();
    // In another directory than this one, which the machine does not share writable.
    host.caisson(["cp", "seen:/made", &to("made")])
        .succeeded()
        .complained_about("Successfully copied");
    assert_eq!(fs::read_to_string(to("made")).unwrap(), "made\n");
    host.caisson(["export", "-o", &to("all.tar"), "seen"]).succeeded();
    let listed = host.inside(&format!("tar -tf {}", to("all.tar"))).succeeded();
    assert!(listed.lines().contains(&"made"), "{listed:?}");
    host.caisson(["cp", "seen:/no/such", &to("x")])
        .exited_with(1)
        .complained_about("Could not find the file /no/such in container seen");
    host.caisson(["rm", "-f", "seen"]).succeeded();
    before.none(host);
}

#[test]
fn files_go_into_a_stopped_container_and_come_back_out() {
    let host = host!();
    let before = Leftovers::watch(host);
    let scratch = host.scratch();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("deep")).unwrap();
    fs::write(tree.join("deep/file"), vec![7; 3_000_000]).unwrap();
    symlink("deep/file", tree.join("link")).unwrap();
    let tree = tree.to_string_lossy();
    let check = "cat /in/deep/file | wc -c; readlink /in/link; stat -c %u /in";
    host.caisson(["create", "--name", "still", "busybox", "sh", "-c", check]).succeeded();
    host.caisson(["cp", "-q", &tree, "still:/in"]).succeeded();
    host.caisson(["ps", "-aq", "-f", "status=created"]).succeeded().printed_something_like("\n");
    host.caisson(["start", "-a", "still"]).succeeded().printed("3000000\ndeep/file\n0\n");
    let back = scratch.path().join("back");
    host.caisson(["cp", "still:/in", &back.to_string_lossy()]).succeeded();
    assert_eq!(fs::read(back.join("deep/file")).unwrap(), vec![7; 3_000_000]);
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("deep/file"));
    host.caisson(["diff", "still"]).succeeded().printed_something_like("A /in/deep/file\n");
    host.caisson(["top", "still"]).exited_with(1).complained_about("is not running");
    host.caisson(["rm", "still"]).succeeded();
    before.none(host);
}
