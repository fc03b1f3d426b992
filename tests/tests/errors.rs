//! What a first user runs into, each with its message, and nothing left behind.

use std::{fs, process::Stdio};

use caisson_tests::{Leftovers, Outcome, eventually, host};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

#[test]
fn an_unknown_image_is_named_with_a_near_one() {
    let host = host!();
    host.caisson(["run", "--rm", "--pull", "never", "busybax", "true"])
        .exited_with(125)
        .complained_about("busybax")
        .complained_about("busybox");
}

#[test]
fn a_bad_flag_shows_where_the_help_is() {
    let host = host!();
    host.caisson(["run", "--no-such-flag", "busybox"])
        .exited_with(125)
        .complained_about("--no-such-flag");
}

#[test]
fn where_kvm_cannot_run_guests_kvm_alone_is_refused() {
    let host = host!();
    if !host.uses_machine() {
        eprintln!("skipped: KVM runs guests here");
        return;
    }
    host.caisson(["--accel", "kvm", "run", "--rm", "busybox", "true"])
        .exited_with(125)
        .complained_about("KVM")
        .complained_about("--accel");
}

#[test]
fn without_a_kernel_the_build_command_is_named() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let empty = host.scratch();
    let mut command = host.command(["run", "--rm", "busybox", "true"]);
    command.env("CAISSON_ASSETS", empty.path());
    let output = command.stdin(Stdio::null()).output().expect("start caisson");
    Outcome::of(&command, output).exited_with(125).complained_about("cargo xtask build");
    leftovers.none(host);
}

#[test]
fn a_kernel_that_does_not_boot_shows_the_stage_and_the_console() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let assets = host.scratch();
    let staged = host.program().parent().and_then(|bin| bin.parent()).expect("an installation");
    let staged = staged.join("lib/caisson");
    fs::copy(staged.join("vmlinux"), assets.path().join("vmlinux")).expect("copy the kernel");
    // No init in it: the kernel panics, says so, and resets.
    fs::write(assets.path().join("initramfs.cpio"), "").expect("write an empty initramfs");
    std::os::unix::fs::symlink(staged.join("machine"), assets.path().join("machine"))
        .expect("link the machine");
    let mut command = host.command(["run", "--rm", "busybox", "true"]);
    command.env("CAISSON_ASSETS", assets.path());
    let output = command.stdin(Stdio::null()).output().expect("start caisson");
    Outcome::of(&command, output)
        .exited_with(125)
        .complained_about("first_run")
        .complained_about("Kernel panic");
    leftovers.none(host);
}

#[test]
fn ctrl_c_during_the_boot_cleans_up() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let mut child = host.spawn(["run", "--rm", "busybox", "sleep", "1000"]);
    eventually("its vmm runs", 30, || {
        host.inside("pgrep -x caisson-vmm || ps | grep '[c]aisson-vmm'").code == 0
    });
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("interrupt caisson");
    let status = child.wait().expect("wait for caisson");
    assert!(!status.success(), "{status}");
    leftovers.none(host);
}

#[test]
fn a_killed_vmm_ends_its_container() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    host.caisson(["run", "-d", "--name", "victim", "busybox", "sleep", "1000"]).succeeded();
    host.inside("kill -9 $(pidof caisson-vmm)").succeeded();
    host.caisson(["wait", "victim"]).succeeded().printed("137\n");
    host.caisson(["rm", "victim"]).succeeded();
    leftovers.none(host);
}

#[test]
fn a_killed_shim_takes_its_vm_along_and_rm_cleans_up() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    host.caisson(["run", "-d", "--name", "orphan", "busybox", "sleep", "1000"]).succeeded();
    host.inside("kill -9 $(pidof containerd-shim-caisson-v2)").succeeded();
    eventually("it is listed as exited", 20, || {
        host.caisson(["ps", "-a"]).stdout.contains("Exited (")
    });
    host.caisson(["rm", "-f", "orphan"]).succeeded();
    leftovers.none(host);
}

#[test]
fn a_full_disk_is_named_and_leaves_the_store_whole() {
    let host = host!();
    let full = host.root().join("full");
    let archive = host.debian.display().to_string();
    let program = host.program().display().to_string();
    let full = full.display();
    let script = format!(
        "mkdir -p {full} && mount -t tmpfs -o size=24m none {full} || exit 99
         {program} --root {full} --state {full}/run load -i {archive}; code=$?
         {program} --root {full} --state {full}/run images -q; find {full} -name '*partial*'
         umount {full}; rmdir {full}; exit $code"
    );
    host.inside(&script).exited_with(1).printed("").complained_about("No space left");
}

#[test]
fn a_name_with_escape_sequences_is_shown_inert() {
    let host = host!();
    let outcome = host.caisson(["run", "--rm", "bad\u{1b}[31mname", "true"]).exited_with(125);
    assert!(!outcome.stderr.contains('\u{1b}'), "{outcome:?}");
}

#[test]
fn a_network_that_a_vm_cannot_have_is_refused_in_words() {
    let host = host!();
    host.caisson(["run", "--rm", "--network", "host", "busybox", "true"])
        .exited_with(125)
        .complained_about("the host's network cannot be a microVM's");
}
