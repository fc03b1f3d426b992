//! `caisson-runtime` as a runtime of Debian's Docker, beside runc in the same run.

use caisson_tests::{Host, Leftovers, Outcome, host};

/// Runs `script` with a dockerd of its own, which knows the runtime `caisson` and the image
/// `busybox`; the networks are dockerd's, without rules for packets.
fn with_docker(host: &Host, script: &str) -> Outcome {
    let programs = host.program().parent().expect("programs have a directory");
    let leftovers = Leftovers::watch(host);
    let outcome = host.inside(&format!(
        r#"
        D=/run/caisson-test-docker S=/var/lib/docker/caisson-test; mkdir -p $D $S
        export DOCKER_HOST=unix://$D/docker.sock
        dockerd --data-root $S --exec-root $D/exec --pidfile $D/pid --host $DOCKER_HOST --iptables=false \
            --ip6tables=false --add-runtime caisson={programs}/caisson-runtime > $D/log 2>&1 & daemon=$!
        tries=0
        until docker version > /dev/null 2>&1; do
            tries=$((tries + 1)); sleep 0.2
            [ $tries -lt 300 ] || {{ cat $D/log >&2; kill $daemon; exit 90; }}
        done
        docker load -q -i {image} > /dev/null || exit 91
        {script}
        code=$?
        docker ps -aq | xargs -r docker rm -f > /dev/null
        kill $daemon; wait $daemon
        # Nothing stays of any container.
        find $D -name state.json; pidof caisson-vmm containerd-shim-caisson-v2 caisson-runtime
        ip link del docker0; rm -rf $D $S
        exit $code
        "#,
        programs = programs.display(),
        image = host.busybox.display(),
    ));
    leftovers.none(host);
    outcome
}

#[test]
fn docker_run_gives_the_same_output_and_exit_codes_as_with_runc() {
    let host = host!();
    let run = r#"
        docker run --rm --runtime $runtime --network none busybox sh -c 'echo out; echo err >&2; exit 7'; echo code $?
        echo input | docker run --rm -i --runtime $runtime --network none busybox cat
        docker run --rm --runtime $runtime --network none busybox no-such-command 2> /dev/null; echo code $?
        docker run --rm -t --runtime $runtime --network none busybox tty
    "#;
    let expected = "out\ncode 7\ninput\ncode 127\n/dev/pts/0\r\n";
    let script = format!("for runtime in runc caisson; do {run} done");
    let outcome = with_docker(host, &script).succeeded();
    outcome.printed(&expected.repeat(2)).complained_about("err\nerr\n");
}
