//! What a VM takes of the host's memory: what its guest uses, for as long as it uses it.

use caisson_tests::{Host, Leftovers, eventually, host};

const MIB: u64 = 1 << 20;

/// Private memory of the process, in bytes.
fn private_bytes(host: &Host, pid: &str) -> u64 {
    let script =
        format!("awk '/^Private_/ {{ sum += $2 }} END {{ print sum }}' /proc/{pid}/smaps_rollup");
    let kib: u64 = host.inside(&script).succeeded().stdout.trim().parse().expect("a number of KiB");
    kib << 10
}

#[test]
fn memory_that_a_guest_has_freed_goes_back_to_the_host() {
    let host = host!();
    let before = Leftovers::watch(host);
    let name = "memory-given-back";
    host.caisson([
        "run", "-d", "--name", name, "-m", "384m", "--tmpfs", "/big", "busybox", "sleep", "600",
    ])
    .succeeded();
    let pid = host.caisson(["inspect", "-f", "{{.State.Pid}}", name]).succeeded();
    let pid = pid.stdout.trim();
    let idle = private_bytes(host, pid);

    let fill = "dd if=/dev/zero of=/big/file bs=1M count=200 2>/dev/null && wc -c < /big/file";
    host.caisson(["exec", name, "sh", "-c", fill]).succeeded().printed("209715200\n");
    let full = private_bytes(host, pid);
    assert!(full > idle + 190 * MIB, "{} MiB, then {} MiB", idle / MIB, full / MIB);

    host.caisson(["exec", name, "rm", "/big/file"]).succeeded();
    eventually("the host has the memory again", 60, || private_bytes(host, pid) < idle + 50 * MIB);
    host.caisson(["rm", "-f", name]).succeeded();
    before.none(host);
}
