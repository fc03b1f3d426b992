//! `caisson-runtime` under Debian's podman, beside runc in the same run.

use caisson_tests::{Host, Leftovers, Outcome, host};

/// Runs `script` with podman's state in a directory of its own; `$podman RUNTIME …` is podman
/// with one of the runtimes, and `busybox` an image it knows.
fn with_podman(host: &Host, script: &str) -> Outcome {
    let programs = host.program().parent().expect("programs have a directory");
    let leftovers = Leftovers::watch(host);
    let outcome = host.inside(&format!(
        r#"
        D=/var/lib/containers/caisson-test; mkdir -p $D
        podman() {{
            runtime=$1; shift
            command podman --root $D/root --runroot /run/caisson-test-podman --events-backend none \
                --cgroup-manager cgroupfs --runtime $runtime "$@"
        }}
        caisson={programs}/caisson-runtime
        podman runc load -q -i {image} > /dev/null || exit 90
        {script}
        code=$?
        podman runc rm -fa > /dev/null; rm -rf $D /run/caisson-test-podman
        # Nothing stays of any container.
        ls -A /run/caisson-runtime 2> /dev/null; pidof caisson-vmm containerd-shim-caisson-v2 caisson-runtime
        exit $code
        "#,
        programs = programs.display(),
        image = host.busybox.display(),
    ));
    leftovers.none(host);
    outcome
}

#[test]
fn podman_run_gives_the_same_output_and_exit_codes_as_with_runc() {
    let host = host!();
    let run = r#"
        podman $runtime run --rm --network none busybox sh -c 'echo out; echo err >&2; exit 7'; echo code $?
        echo input | podman $runtime run --rm -i --network none busybox cat
        podman $runtime run --rm -t --network none busybox tty
    "#;
    let expected = "out\ncode 7\ninput\n/dev/pts/0\r\n";
    let script = format!("for runtime in runc $caisson; do {run} done");
    let outcome = with_podman(host, &script).succeeded();
    outcome.printed(&expected.repeat(2)).complained_about("err\nerr\n");
}

#[test]
fn a_container_of_podman_takes_an_exec_a_pause_and_a_stop() {
    let host = host!();
    with_podman(
        host,
        r#"
        podman $caisson run -d --name c1 --network none busybox sh -c 'trap "exit 5" TERM; while :; do sleep 0.1; done' > $D/id
        podman $caisson exec c1 sh -c 'cat /proc/1/comm; exit 3'; echo code $?
        podman $caisson exec c1 uname -r | grep -o caisson
        podman $caisson pause c1 > /dev/null; podman $caisson inspect -f '{{.State.Status}}' c1
        podman $caisson unpause c1 > /dev/null
        podman $caisson stop c1 > /dev/null; podman $caisson wait c1
        podman $caisson rm c1 > /dev/null
        "#,
    )
    .succeeded()
    .printed_something_like("sh\ncode 3\ncaisson\npaused\n5\n");
}
