//! Any process may be killed at any time, any guest may crash, hang or fill what it has:
//! what happened is told, the rest works, and nothing is left.

use std::fs;

use caisson_tests::{
    Host, Leftovers, Outcome, host,
    killed::{
        Moment::{self, AfterMillis, Holds, Output, Stage},
        Victim::{self, Caller, Shim, Vmm},
        kill,
    },
};

/// The command ended with one of these codes, and said this.
#[track_caller]
fn expect(outcome: &Outcome, codes: &[i32], words: &[&str]) {
    assert!(codes.contains(&outcome.code), "not {codes:?}: {outcome:#?}");
    let told = words.is_empty() || words.iter().any(|words| outcome.stderr.contains(words));
    assert!(told, "none of {words:?}: {outcome:#?}");
}

const RUN: &str = "run --rm --name victim busybox sleep 1000";

const GONE: &[&str] = &["went away"];
const KILLED: &[&str] = &["SIGKILL"];
const QUIET: &[&str] = &[];

#[test]
fn every_process_may_be_killed_while_a_container_is_made() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let cases: [(Victim, Moment, &[i32], &[&str]); 10] = [
        (Shim, Stage("create"), &[125], GONE),
        (Caller, Stage("create"), &[137], QUIET),
        (Shim, Stage("vmm_spawned"), &[125], GONE),
        (Vmm, Stage("vmm_spawned"), &[125], KILLED),
        (Caller, Stage("vmm_spawned"), &[137], QUIET),
        // Between the creation and the start: either call may be the one that fails.
        (Vmm, Stage("agent_ready"), &[125, 137], KILLED),
        (Caller, Stage("container_created"), &[137], QUIET),
        (Shim, Stage("started_process"), &[137], GONE),
        (Vmm, Stage("started_process"), &[137], KILLED),
        (Caller, Stage("started_process"), &[137], QUIET),
    ];
    for (victim, moment, codes, words) in cases {
        expect(&kill(host, victim, moment, RUN), codes, words);
        // The next command tidies up, or the first already has.
        if host.caisson(["ps", "-a"]).succeeded().stdout.contains("victim") {
            host.caisson(["rm", "-f", "victim"]).succeeded();
        }
    }
    leftovers.none(host);
}

fn start(host: &Host, script: &str) {
    host.caisson(["run", "-d", "--name", "victim", "busybox", "sh", "-c", script]).succeeded();
}

#[test]
fn every_process_may_be_killed_during_an_exec() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let exec = "exec victim sh -c 'echo up; sleep 1000'";
    start(host, "sleep 1000");
    expect(&kill(host, Caller, Output("up"), exec), &[137], QUIET);
    host.caisson(["exec", "victim", "echo", "still there"]).succeeded().printed("still there\n");
    let failed = kill(host, Vmm, Output("up"), exec);
    assert!(failed.code != 0 && failed.code != 99, "{failed:#?}");
    host.caisson(["wait", "victim"]).succeeded().printed("137\n");
    host.caisson(["start", "victim"]).succeeded();
    let failed = kill(host, Shim, Output("up"), exec);
    expect(&failed, &[1, 125, 126, 137], GONE);
    host.caisson(["rm", "-f", "victim"]).succeeded();
    leftovers.none(host);
}

#[test]
fn every_process_may_be_killed_during_a_stop() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let deaf = "trap 'echo caught' TERM; while :; do sleep 0.1; done";
    let caught = Holds("$C logs victim | grep -q caught");
    for (victim, codes) in [(Vmm, &[0][..]), (Shim, &[0, 1][..]), (Caller, &[137][..])] {
        start(host, deaf);
        expect(&kill(host, victim, caught, "stop -t 100 victim"), codes, QUIET);
        if victim == Caller {
            host.caisson(["exec", "victim", "true"]).succeeded();
        } else {
            host.caisson(["wait", "victim"]).succeeded().printed("137\n");
        }
        host.caisson(["rm", "-f", "victim"]).succeeded();
    }
    leftovers.none(host);
}

#[test]
fn every_process_may_be_killed_during_a_removal() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    for (victim, after) in [(Vmm, 10), (Shim, 30), (Caller, 60), (Caller, 250)] {
        start(host, "sleep 1000");
        let removed = kill(host, victim, AfterMillis(after), "rm -f victim");
        // A caller may be quicker than its killer.
        expect(&removed, if victim == Caller { &[0, 137] } else { &[0] }, QUIET);
        host.caisson(["ps", "-a"]).succeeded();
        host.caisson(["rm", "-f", "victim"]);
    }
    leftovers.none(host);
}

/// What was synced is there after the VM's death, and the disk mounts again.
#[test]
fn a_killed_vm_leaves_its_disk_whole() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let script = "if cat /kept 2>/dev/null; then exit 5; fi
        echo kept > /kept; sync; echo synced; while :; do echo more >> /more; done";
    let run = format!("run --name victim busybox sh -c '{script}'");
    expect(&kill(host, Vmm, Output("synced"), &run), &[137], KILLED);
    host.caisson(["start", "-a", "victim"]).exited_with(5).printed("kept\n");
    host.caisson(["rm", "victim"]).succeeded();
    leftovers.none(host);
}

#[test]
fn a_guest_that_panics_ends_with_its_last_words() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let panic = "echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero";
    host.caisson(["run", "--rm", "--privileged", "-m", "64m", "busybox", "sh", "-c", panic])
        .exited_with(137)
        .complained_about("Kernel panic")
        .complained_about("panic_on_oom");
    leftovers.none(host);
}

#[test]
fn a_container_out_of_memory_is_told_apart_from_a_killed_one() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let flag = |name| host.caisson(["inspect", "-f", "{{.State.OOMKilled}}", name]).succeeded();
    host.caisson(["run", "--name", "hog", "-m", "64m", "busybox", "tail", "/dev/zero"])
        .exited_with(137);
    flag("hog").printed("true\n");
    host.caisson(["rm", "hog"]).succeeded();
    start(host, "sleep 1000");
    host.caisson(["kill", "victim"]).succeeded();
    host.caisson(["wait", "victim"]).succeeded().printed("137\n");
    flag("victim").printed("false\n");
    host.caisson(["rm", "victim"]).succeeded();
    leftovers.none(host);
}

#[test]
fn a_fork_bomb_and_a_full_disk_stay_within_their_container() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let bomb = "b() { b | b & }; b; sleep 1000";
    host.caisson([
        "run",
        "-d",
        "--name",
        "victim",
        "--pids-limit",
        "64",
        "--storage-opt",
        "size=32m",
        "busybox",
        "sh",
        "-c",
        bomb,
    ])
    .succeeded();
    host.caisson(["run", "--rm", "busybox", "echo", "neighbour"])
        .succeeded()
        .printed("neighbour\n");
    host.caisson(["kill", "victim"]).succeeded();
    host.caisson(["rm", "-f", "victim"]).succeeded();
    let fill =
        "dd if=/dev/zero of=/filler bs=64k 2>&1 | grep -c 'No space left'; rm /filler; echo on";
    host.caisson(["run", "--rm", "--storage-opt", "size=32m", "busybox", "sh", "-c", fill])
        .succeeded()
        .printed("1\non\n");
    leftovers.none(host);
}

/// A guest that makes no progress, as a stopped vmm looks to the shim.
#[test]
fn a_guest_that_hangs_can_be_removed() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    start(host, "sleep 1000");
    host.inside("kill -STOP $(pidof caisson-vmm)").succeeded();
    host.caisson(["ps"]).succeeded().printed_something_like("victim");
    host.caisson(["rm", "-f", "victim"]).succeeded();
    leftovers.none(host);
}

/// Runs `caisson` after a shell command in a mount namespace of its own.
fn with_changed_host(host: &Host, change: &str, words: &str) -> Outcome {
    host.inside(&format!(
        "{}; export C; unshare -m sh -c '{change}; exec $C {words}'",
        host.shell_variable()
    ))
}

#[test]
fn without_a_usable_kvm_the_error_says_so() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let missing = "mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9";
    // Root may open anything but a device on a file system that is not to have any.
    let forbidden = "mount -t tmpfs -o nodev none /mnt && mknod /mnt/kvm c 10 232
        mount --bind /mnt/kvm /dev/kvm";
    let another_device = "mount --bind /dev/null /dev/kvm";
    for change in [missing, forbidden, another_device] {
        let outcome = with_changed_host(host, change, "--accel kvm run --rm busybox true");
        expect(&outcome, &[125], &["kvm", "KVM"]);
    }
    leftovers.none(host);
}

/// As many processes as there may be, at each step of a start.
#[test]
fn too_few_processes_are_an_error_and_leave_nothing() {
    let host = host!();
    let controllers = host.inside("cat /sys/fs/cgroup/cgroup.controllers 2>/dev/null").stdout;
    if !controllers.contains("pids") {
        eprintln!("skipped: no unified cgroup hierarchy with the pids controller");
        return;
    }
    let leftovers = Leftovers::watch(host);
    for limit in [3, 9] {
        let script = format!(
            "{}; G=/sys/fs/cgroup/few; mkdir -p $G && echo {limit} > $G/pids.max || exit 99
             (echo 0 > $G/cgroup.procs; exec $C run --rm busybox true); code=$?
             for try in $(seq 100); do rmdir $G 2>/dev/null && break; sleep 0.1; done; exit $code",
            host.shell_variable()
        );
        let outcome = host.inside(&script);
        // 134: the ttrpc client aborts without its threads.
        assert!([0, 125, 134].contains(&outcome.code), "{limit}: {outcome:#?}");
        let told = outcome.code == 0 || outcome.stderr.contains("temporarily unavailable");
        assert!(told, "{limit}: {outcome:#?}");
        host.caisson(["ps", "-a"]).succeeded();
    }
    leftovers.none(host);
}

/// Deadlines are of the monotonic clock; only records tell the time.
#[test]
fn a_clock_that_jumps_changes_no_deadline() {
    let host = host!();
    if !host.uses_machine() {
        eprintln!("skipped: this host's clock is not the test's to set");
        return;
    }
    let leftovers = Leftovers::watch(host);
    start(host, "sleep 1000");
    for jump in ["+ 400 days", "- 800 days"] {
        let script = format!("date -s \"@$(date -d \"$(date) {jump}\" +%s)\" >/dev/null");
        host.inside(&script).succeeded();
        host.caisson(["exec", "victim", "echo", "on"]).succeeded().printed("on\n");
        host.caisson(["run", "--rm", "busybox", "true"]).succeeded();
        host.caisson(["ps"]).succeeded().printed_something_like("victim");
    }
    host.inside("date -s \"@$(date -d \"$(date) + 400 days\" +%s)\" >/dev/null").succeeded();
    host.caisson(["stop", "-t", "1", "victim"]).succeeded();
    host.caisson(["rm", "victim"]).succeeded();
    leftovers.none(host);
}

/// The host's kernel takes the vmm for want of memory: the run is lost and says why.
#[test]
fn a_vmm_that_the_host_kills_for_memory_is_told() {
    let host = host!();
    if host.inside("grep -q memory /sys/fs/cgroup/cgroup.controllers").code != 0 {
        eprintln!("skipped: no unified cgroup hierarchy with the memory controller");
        return;
    }
    let leftovers = Leftovers::watch(host);
    start(host, "sleep 1000");
    // The VM's own group, or one that is made for it.
    let script = "pid=$(pidof caisson-vmm)
        G=/sys/fs/cgroup$(cut -d: -f3 /proc/$pid/cgroup)
        if [ ! -e $G/memory.max ] || ! echo $G | grep -q caisson; then
            G=/sys/fs/cgroup/little; mkdir -p $G && echo $pid > $G/cgroup.procs || exit 99
        fi
        echo 0 > $G/memory.swap.max 2>/dev/null
        echo 24M > $G/memory.max";
    host.inside(script).succeeded();
    let touch = "dd if=/dev/zero of=/dev/shm/file bs=1M count=60";
    host.caisson(["exec", "victim", "sh", "-c", touch]);
    host.caisson(["wait", "victim"]).succeeded().printed("137\n");
    host.caisson(["inspect", "-f", "{{.State.Error}}", "victim"])
        .succeeded()
        .printed_something_like("memory");
    host.caisson(["rm", "victim"]).succeeded();
    let remove = "for i in $(seq 50); do [ -d /sys/fs/cgroup/little ] || exit 0
        rmdir /sys/fs/cgroup/little; sleep 0.1; done 2>/dev/null; exit 1";
    host.inside(remove).succeeded();
    leftovers.none(host);
}

#[test]
fn the_programs_have_no_fail_points() {
    let host = host!();
    let programs = host.program().parent().expect("programs lie in a directory");
    for name in ["caisson", "caisson-fs", "caisson-vmm", "containerd-shim-caisson-v2"] {
        let program = fs::read(programs.join(name)).expect("a staged program");
        let holds = |words: &[u8]| program.windows(words.len()).any(|window| window == words);
        assert!(holds(b"caisson"), "{name}: the search finds nothing at all");
        assert!(!holds(b"CAISSON_FAIL"), "{name} can be made to fail by its environment");
    }
}
