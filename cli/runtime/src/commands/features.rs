//! `features`: what this runtime can do (runtime-spec, features.md).

use serde_json::json;

pub(super) fn json() -> String {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": ["prestart", "createRuntime", "poststart", "poststop"],
        "mountOptions": ["bind", "dev", "exec", "nodev", "noexec", "nosuid", "rbind", "ro", "rw", "suid"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": { "v1": false, "v2": true, "systemd": false, "systemdUser": false },
            "seccomp": { "enabled": true, "archs": ["SCMP_ARCH_X86_64"] },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
        },
    });
    format!("{features:#}")
}
