//! A container under containerd has the network that stands in its namespace: as under runc,
//! and nothing of it is left.

use caisson_tests::{Host, Leftovers, Outcome, containerd::with_containerd, host};

const CAISSON: &str = "--runtime io.containerd.caisson.v2";

/// Makes a network namespace `$ns` as CNI engines do, with `eth0` on a bridge of the host's
/// (10.88.7.1, fd07:88::1), runs `script` with it, and removes both.
fn with_network(host: &Host, script: &str) -> Outcome {
    with_containerd(
        host,
        &format!(
            r#"
            ns=caisson-test
            cat > $D/network.json <<'END'
            {{ "cniVersion": "0.4.0", "name": "caisson-test", "type": "bridge", "bridge": "caisson-test0",
               "isGateway": true, "mtu": 1450,
               "ipam": {{ "type": "host-local", "dataDir": "/run/caisson-test-cni",
                          "ranges": [[{{ "subnet": "10.88.7.0/24" }}], [{{ "subnet": "fd07:88::/64" }}]],
                          "routes": [{{ "dst": "0.0.0.0/0" }}, {{ "dst": "::/0" }}] }} }}
END
            cni() {{
                CNI_COMMAND=$1 CNI_CONTAINERID=caisson-test CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni \
                    CNI_NETNS=/run/netns/$ns /usr/lib/cni/bridge < $D/network.json > $D/cni.out ||
                    {{ cat $D/cni.out >&2; exit 91; }}
            }}
            # What a VM may leave in the namespace.
            left() {{ ip netns exec $ns sh -c 'ip -o link | grep vmtap; tc qdisc | grep clsact'; }}
            ip netns add $ns && cni ADD || exit 93
            run="ctr run --with-ns network:/run/netns/$ns"
            {script}
            code=$?
            left && code=92
            cni DEL; ip netns del $ns; ip link del caisson-test0; rm -rf /run/caisson-test-cni
            (exit $code)
            "#
        ),
    )
}

#[test]
fn a_guest_has_the_interfaces_of_its_namespace_as_under_runc() {
    let host = host!();
    // Without what differs for a reason: counters, flags of addresses, queues.
    let show = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
        ip addr show dev eth0 | awk '/inet/ { print $1, $2 }'
        ip route; ip -6 route; ls /sys/class/net";
    let script = format!(
        r#"
        $run --rm $image r1 sh -c "{show}" > $D/runc || exit 1
        $run --rm {CAISSON} $image c1 sh -c "{show}" > $D/caisson || exit 2
        diff $D/runc $D/caisson && grep -c fd07:88:: $D/caisson > /dev/null || exit 3
        ip netns add caisson-test-lo
        ctr run --rm --with-ns network:/run/netns/caisson-test-lo {CAISSON} $image c2 ls /sys/class/net
        ip netns del caisson-test-lo
        "#,
        show = show.replace('$', r"\$"),
    );
    with_network(host, &script).succeeded().printed("lo\n");
}

#[test]
fn a_guest_and_the_host_reach_each_other() {
    let host = host!();
    let script = format!(
        r#"
        $run -d {CAISSON} $image c3 sh -c 'mkdir /www; head -c 4000000 /dev/urandom > /www/big; httpd -f -h /www' || exit 1
        inside() {{ ctr task exec --exec-id e$((n = n + 1)) c3 "$@"; }}
        inside sh -c 'until wget -q -O /dev/null http://127.0.0.1/big; do sleep 0.2; done'
        inside ping -q -c 1 10.88.7.1 > /dev/null && inside ping -q -c 1 fd07:88::1 > /dev/null && echo pinged
        # Datagrams, and the answer that nobody listens.
        inside traceroute -n -q 1 -m 1 10.88.7.1 2> /dev/null | grep -o '1  10.88.7.1 '
        busybox traceroute -n -q 1 -m 1 10.88.7.2 2> /dev/null | grep -o '1  10.88.7.2 '
        mkdir -p $D/www; head -c 4000000 /dev/urandom > $D/www/big
        busybox httpd -f -p 10.88.7.1:8000 -h $D/www & server=$!
        sum() {{ cut -d ' ' -f 1; }}
        there=$(inside md5sum /www/big | sum) here=$(md5sum < $D/www/big | sum)
        for address in 10.88.7.2 '[fd07:88::2]'; do
            [ $(busybox wget -q -O - http://$address/big | md5sum | sum) = $there ] && echo out
        done
        [ $(inside wget -q -O - http://10.88.7.1:8000/big | md5sum | sum) = $here ] && echo in
        kill $server
        ctr task kill -s KILL c3
        until ctr task ls | grep -q STOPPED; do sleep 0.1; done
        left || echo nothing left
        ctr task rm c3 > /dev/null; ctr container rm c3
        "#
    );
    with_network(host, &script)
        .succeeded()
        .printed("pinged\n1  10.88.7.1 \n1  10.88.7.2 \nout\nout\nin\nnothing left\n");
}

#[test]
fn a_killed_vm_leaves_nothing_of_its_network() {
    let host = host!();
    let script = format!(
        r#"
        for victim in caisson-vmm containerd-shim-caisson-v2; do
            $run -d {CAISSON} $image c4 sleep 1000 || exit 1
            [ $(left | wc -l) = 3 ] && echo redirected
            # A second VM cannot have the interface as well.
            $run --rm {CAISSON} $image c5 true 2>&1 | grep -o 'eth0 has an ingress queue discipline'
            ctr container rm c5 2> /dev/null
            kill -9 $(pidof $victim)
            for i in $(seq 100); do left > /dev/null || break; sleep 0.1; done
            left || echo nothing left
            ctr task rm -f c4 > /dev/null 2>&1; ctr container rm c4
        done
        "#
    );
    let round = "redirected\neth0 has an ingress queue discipline\nnothing left\n";
    with_network(host, &script).succeeded().printed(&round.repeat(2));
}

#[test]
fn a_published_port_leads_into_a_container_which_reaches_the_world_and_its_neighbours() {
    let host = host!();
    let leftovers = Leftovers::watch(host);
    let script = format!(
        r#"{caisson}
        $C run -d --name web -p 127.0.0.1:8088:80 busybox \
            sh -c 'mkdir /www; echo hello > /www/x; httpd -f -h /www' > /dev/null || exit 1
        get() {{ for i in $(seq 50); do timeout 5 busybox wget -q -O - http://127.0.0.1:8088/x && break; sleep 0.2; done; }}
        get
        $C ps --format '{{{{.Ports}}}} {{{{.Networks}}}}'
        $C run --rm -p 127.0.0.1:8088:80 busybox true 2>&1 | grep -o 'publish 127.0.0.1:8088: the port is in use'
        # Beyond the host, and without a way back to the bridge's network.
        ip netns add caisson-world
        ip link add world0 type veth peer name eth0 netns caisson-world
        ip addr add 192.0.2.1/24 dev world0; ip link set world0 up
        ip -n caisson-world addr add 192.0.2.2/24 dev eth0; ip -n caisson-world link set eth0 up
        mkdir $D/world; echo world > $D/world/x
        ip netns exec caisson-world busybox httpd -f -p 192.0.2.2:80 -h $D/world & world=$!
        address=$($C exec web ip addr show dev eth0 | grep -o '10\.89\.[0-9]*\.[0-9]*' | head -n 1)
        $C run --rm --network bridge busybox sh -c \
            "timeout 20 wget -q -O - http://192.0.2.2/x; timeout 20 wget -q -O - http://$address/x"
        # From there, nobody comes in unasked.
        ip -n caisson-world route add 10.89.0.0/16 via 192.0.2.1
        ip netns exec caisson-world timeout 3 busybox wget -q -O - http://$address/x || echo kept out
        kill $world; ip netns del caisson-world; ip link del world0 2> /dev/null
        $C restart -t 1 web > /dev/null; get
        kill -9 $(pidof containerd-shim-caisson-v2); $C rm -f web > /dev/null
        for i in $(seq 100); do ip -o link | grep -q cveth || break; sleep 0.1; done
        ip -o link | grep cveth || echo nothing left
        timeout 5 busybox wget -q -O - http://127.0.0.1:8088/x 2> /dev/null || echo closed
        "#,
        caisson = host.shell_variable() + "; D=$(mktemp -d); trap 'rm -r $D' EXIT",
    );
    host.inside(&script).succeeded().printed(
        "hello\n127.0.0.1:8088->80/tcp bridge\npublish 127.0.0.1:8088: the port is in use\n\
         world\nhello\nkept out\nhello\nnothing left\nclosed\n",
    );
    leftovers.none(host);
}

#[test]
fn a_container_of_the_command_line_takes_a_network_namespace_of_the_host() {
    let host = host!();
    let script = format!(
        "{}
        ip netns add caisson-taken
        ip -n caisson-taken link add eth0 type veth peer name other0
        ip -n caisson-taken addr add 198.51.100.7/24 dev eth0
        ip -n caisson-taken link set eth0 up
        $C run --rm --network ns:/run/netns/caisson-taken busybox ip addr show dev eth0 | grep -o 198.51.100.7/24
        $C run --rm --network ns:/proc/1/ns/net busybox true 2>&1 | grep -o \"is the host's own network\"
        ip netns del caisson-taken",
        host.shell_variable()
    );
    host.inside(&script).succeeded().printed("198.51.100.7/24\nis the host's own network\n");
}
