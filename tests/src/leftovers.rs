//! What containers must not leave where they ran.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::Host;

/// Processes, mounts, cgroups, sockets and files, as one comparable text.
pub struct Leftovers {
    before: String,
}

/// Lists what a container has while it lives. Kernel threads and the listing itself
/// do not count.
const LIST: &str = r#"
    for exe in /proc/[0-9]*/exe; do readlink $exe; done |
        grep -E 'caisson-(vmm|fs|runtime)|containerd-shim-caisson' | sort | sed 's/^/process /'
    grep -E 'caisson|erofs' /proc/mounts | grep -v -e ' 9p ' -e /dev/vd | sort | sed 's/^/mount /'
    find /sys/fs/cgroup -type d -name '*caisson*' 2>/dev/null | sort | sed 's/^/cgroup /'
    find "$STATE" \( -path "$STATE/machine" -prune \) -o ! -type d -print 2>/dev/null |
        grep -v '\.lock$' | sort | sed 's/^/state /'
    find "$STATE/bundles" -mindepth 1 -maxdepth 1 2>/dev/null | sort | sed 's/^/bundle /'
    find "$ROOT/containers" -mindepth 1 2>/dev/null | sort | sed 's/^/container /'
    find "$ROOT" -name '*partial*' 2>/dev/null | sort | sed 's/^/partial /'
"#;

impl Leftovers {
    /// Notes what is there now.
    pub fn watch(host: &Host) -> Self {
        Self { before: list(host) }
    }

    /// Fails unless the same is there again, soon.
    #[track_caller]
    pub fn none(self, host: &Host) {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut now = list(host);
        while now != self.before && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(250));
            now = list(host);
        }
        assert_eq!(now, self.before, "left behind");
    }
}

fn list(host: &Host) -> String {
    let script = format!("STATE={} ROOT={}\n{LIST}", host.state().display(), host.root().display());
    host.inside(&script).stdout
}
