//! A short soak; `cargo xtask soak` is the long one.

use std::time::Duration;

use caisson_tests::{Leftovers, host};

/// Four times what it takes on an idle host.
const LIMIT: Duration = Duration::from_secs(420);

#[test]
fn a_minute_of_containers_and_faults_leaves_everything_flat() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let directory = host.root().parent().expect("the root lies in a directory").to_owned();
    let options = [
        format!("--caisson={}", host.program().display()),
        format!("--busybox={}", host.busybox.display()),
        format!("--directory={}", directory.display()),
    ];
    let mut soak = vec![env!("CARGO_BIN_EXE_soak"), "--inside"];
    soak.extend(options.iter().map(String::as_str));
    soak.extend(["--rounds", "200", "--seconds", "45", "--seed", "1", "--every", "10"]);
    println!("{}", host.inside_within(&soak, LIMIT).succeeded().stdout);
    leftovers.none(host);
}
