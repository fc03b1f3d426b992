//! The shim under Debian's containerd, beside runc in the same run.

use caisson_tests::{containerd::with_containerd, host};

#[test]
fn ctr_run_gives_the_same_output_and_exit_code_as_runc() {
    let host = host!();
    let run = |runtime: &str| {
        format!(
            "ctr run --rm --runtime {runtime} $image c1 sh -c 'echo out; echo err >&2; exit 7'; \
             echo code $?; "
        )
    };
    let script =
        format!("{}{} true", run("io.containerd.runc.v2"), run("io.containerd.caisson.v2"));
    let outcome = with_containerd(host, &script).succeeded();
    outcome.printed("out\ncode 7\nout\ncode 7\n").complained_about("err\n");
}

#[test]
fn a_container_under_containerd_has_its_own_kernel() {
    let host = host!();
    with_containerd(host, "ctr run --rm --runtime io.containerd.caisson.v2 $image c2 uname -r")
        .succeeded()
        .printed_something_like("-caisson");
}

#[test]
fn a_bundles_bind_mounts_are_the_hosts_directories() {
    let host = host!();
    with_containerd(
        host,
        "mkdir /run/bound; echo in > /run/bound/file
         ctr run --rm --runtime io.containerd.caisson.v2 \
             --mount type=bind,src=/run/bound,dst=/rw,options=rbind:rw \
             --mount type=bind,src=/run/bound,dst=/ro,options=rbind:ro \
             $image c4 sh -c 'cat /ro/file; echo out > /rw/file; echo no > /ro/file'
         echo code $?; cat /run/bound/file; rm -r /run/bound",
    )
    .succeeded()
    .printed("in\ncode 1\nout\n");
}

#[test]
fn a_detached_task_takes_an_exec_and_a_kill() {
    let host = host!();
    with_containerd(
        host,
        "ctr run -d --runtime io.containerd.caisson.v2 $image c3 sleep 1000 &&
         ctr task exec --exec-id e1 c3 sh -c 'echo in $(cat /proc/1/comm); exit 3'; echo code $?
         ctr task ls | grep c3 | grep -o RUNNING
         ctr task kill -s KILL c3; sleep 2
         ctr task ls | grep c3 | grep -o STOPPED
         ctr task rm c3; ctr container rm c3",
    )
    .succeeded()
    .printed_something_like("in sleep\ncode 3\nRUNNING\nSTOPPED\n");
}
