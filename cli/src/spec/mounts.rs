//! `mounts`: the kernel's filesystems, generated files, and what the user mounts.

use serde_json::{Value, json};

use super::Context;
use crate::{
    config::{ContainerConfig, Mount, MountSource, Tmpfs},
    volumes,
};

/// Docker's size of `/dev/shm`.
const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// Files of the bundle that are bound over those of the image.
pub(crate) const GENERATED_FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")];

pub(super) fn build(config: &ContainerConfig, context: &Context<'_>) -> Vec<Value> {
    let privileged = config.security.privileged;
    let shm_bytes = config.limits.shm_bytes.unwrap_or(DEFAULT_SHM_BYTES);
    let shm_size = format!("size={shm_bytes}");
    let sys_mode = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys_mode]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", sys_mode],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm_size]),
    ];
    let mode = if config.read_only { "ro" } else { "rw" };
    mounts.extend(GENERATED_FILES.iter().map(|(name, destination)| {
        let source = context.bundle.join(name);
        mount(destination, "bind", &source.to_string_lossy(), &["rbind", "rprivate", mode])
    }));
    let mut users: Vec<Value> = config
        .tmpfs
        .iter()
        .map(tmpfs)
        .chain(config.mounts.iter().map(|m| bind(m, context)))
        .collect();
    // What lies in another mount comes after it.
    users.sort_by_key(|mount| destination(mount).matches('/').count());
    // In the place of one of ours it replaces that.
    mounts.retain(|ours| users.iter().all(|mount| destination(mount) != destination(ours)));
    mounts.extend(users);
    mounts
}

fn mount(destination: &str, fstype: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": fstype, "source": source, "options": options })
}

fn destination(mount: &Value) -> &str {
    mount["destination"].as_str().unwrap_or_default().trim_end_matches('/')
}

fn bind(bind: &Mount, context: &Context<'_>) -> Value {
    let mode = if bind.readonly { "ro" } else { "rw" };
    match &bind.source {
        MountSource::Bind { path, recursive, .. } => {
            let kind = if *recursive { "rbind" } else { "bind" };
            mount(&bind.target, "bind", path, &[kind, "rprivate", mode])
        }
        MountSource::Volume { name, copy, .. } => {
            let path = volumes::data(context.volumes, name);
            let mut options = vec!["rbind", "rprivate", mode];
            if *copy && context.first_start && !bind.readonly {
                options.push("copyup");
            }
            mount(&bind.target, "bind", &path.to_string_lossy(), &options)
        }
    }
}

/// Docker's defaults hold where the flag does not say otherwise.
fn tmpfs(tmpfs: &Tmpfs) -> Value {
    const DEFAULTS: [(&str, &str); 3] = [("nosuid", "suid"), ("nodev", "dev"), ("noexec", "exec")];
    let given = |word: &str| tmpfs.options.iter().any(|option| option == word);
    let mut options: Vec<&str> =
        DEFAULTS.iter().filter(|(_, not)| !given(not)).map(|&(word, _)| word).collect();
    options.extend(
        tmpfs
            .options
            .iter()
            .map(String::as_str)
            .filter(|word| !options.contains(word))
            .collect::<Vec<_>>(),
    );
    mount(&tmpfs.path, "tmpfs", "tmpfs", &options)
}
