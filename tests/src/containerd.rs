//! Debian's containerd, for the length of a script.

use crate::{Host, Outcome};

/// Starts containerd with its state below `$ROOT`, runs `script` with the busybox image as
/// `$image`, and ends it.
pub fn with_containerd(host: &Host, script: &str) -> Outcome {
    let bin = host.program().parent().expect("a program lies in a directory").display();
    host.inside(&format!(
        r#"
        export PATH={bin}:/usr/sbin:/sbin:$PATH
        D={root}/containerd-test; mkdir -p $D
        printf 'version = 2\nroot = "%s/root"\nstate = "/run/containerd-test"\n[grpc]\naddress = "/run/containerd-test.sock"\n' $D > $D/config.toml
        containerd --config $D/config.toml > $D/log 2>&1 &
        containerd=$!
        export CONTAINERD_ADDRESS=/run/containerd-test.sock
        for i in $(seq 300); do ctr version > /dev/null 2>&1 && break; sleep 0.2; done
        ctr version > /dev/null || {{ cat $D/log >&2; exit 99; }}
        ctr image import --all-platforms {busybox} > /dev/null || exit 98
        image=$(ctr image ls -q | grep busybox | head -n 1)
        {script}
        code=$?
        ctr task ls -q | grep . && code=97
        kill $containerd; wait $containerd 2> /dev/null
        pidof containerd-shim-caisson-v2 > /dev/null && {{ echo a shim is left >&2; code=96; }}
        pidof caisson-vmm > /dev/null && {{ echo a vmm is left >&2; code=95; }}
        pidof caisson-fs > /dev/null && {{ echo a file server is left >&2; code=94; }}
        rm -rf $D/root /run/containerd-test
        exit $code
        "#,
        root = host.root().display(),
        busybox = host.busybox.display(),
    ))
}
