//! The checks, in the order in which they are listed.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use caisson_shim::assets::{AssetError, Assets};
use nix::{
    libc::rlim_t,
    sys::{
        resource::{RLIM_INFINITY, Resource, getrlimit},
        statvfs::statvfs,
    },
    unistd::{AccessFlags, Uid, access},
};

use super::{Check, Way, kvm};
use crate::{
    commands::info::memory_bytes,
    format::units::{human_size, human_size_binary},
    globals::Globals,
};

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const QEMU: &str = "qemu-system-x86_64";

pub(super) fn all(globals: &Globals) -> Vec<Check> {
    let mut checks = vec![user(), kvm::virtualization(), kvm::modules(), kvm::device()];
    checks.extend(kvm::interface());
    checks.push(cgroups());
    checks.extend(installation());
    checks.extend([qemu(), mke2fs()]);
    checks.extend(directories(globals));
    checks.push(memory());
    checks.extend(limits());
    checks
}

fn user() -> Check {
    let (name, uid) = ("user", Uid::effective());
    match uid.is_root() {
        true => Check::ok(name, Way::Both, "root"),
        false => Check::fail(name, Way::Both, format!("uid {uid}"), "run caisson as root"),
    }
}

fn cgroups() -> Check {
    let name = "cgroups";
    let has = |path: &str| Path::new(path).exists();
    if has("/sys/fs/cgroup/cgroup.controllers") {
        return Check::ok(name, Way::Both, "version 2");
    }
    let found = match has("/sys/fs/cgroup/memory") {
        true if has("/sys/fs/cgroup/unified") => "versions 1 and 2 (hybrid)",
        true => "version 1",
        false => "none",
    };
    let advice =
        "containers run without; their limits hold in the guest, not for the VM's own processes";
    Check::warn(name, Way::Both, found, advice)
}

type Find = fn(&Assets) -> Result<PathBuf, AssetError>;

fn installation() -> Vec<Check> {
    let parts: [(&'static str, Way, Find); 5] = [
        ("shim", Way::Both, Assets::shim),
        ("vmm", Way::Both, Assets::vmm),
        ("guest kernel", Way::Both, Assets::kernel),
        ("guest initramfs", Way::Both, Assets::initramfs),
        ("machine's files", Way::Machine, Assets::machine),
    ];
    let assets = Assets::locate();
    let advice = "`cargo xtask build` makes it";
    let check = |(name, way, find): (&'static str, Way, Find)| match assets.as_ref().map(find) {
        Ok(Ok(path)) => match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
                Check::fail(name, way, format!("{} is empty", path.display()), advice)
            }
            Ok(metadata) if metadata.is_file() => {
                Check::ok(name, way, format!("{} ({})", path.display(), human_size(metadata.len())))
            }
            _ => Check::ok(name, way, path.display().to_string()),
        },
        Ok(Err(error)) => Check::fail(name, way, error.to_string(), advice),
        Err(error) => Check::fail(name, way, error.to_string(), advice),
    };
    parts.into_iter().map(check).collect()
}

fn qemu() -> Check {
    let name = "qemu";
    let advice = "install qemu-system-x86 (`apt-get install qemu-system-x86`)";
    let Some(path) = in_path(QEMU) else {
        return Check::fail(name, Way::Machine, format!("no {QEMU} in PATH"), advice);
    };
    let version = Command::new(&path).arg("--version").output();
    match version {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().next().unwrap_or_default().to_owned();
            Check::ok(name, Way::Machine, line)
        }
        _ => Check::fail(name, Way::Machine, format!("{} does not run", path.display()), advice),
    }
}

fn mke2fs() -> Check {
    let name = "mke2fs";
    match in_path("mke2fs") {
        Some(path) => Check::ok(name, Way::Both, path.display().to_string()),
        None => Check::fail(
            name,
            Way::Both,
            "not in PATH",
            "install e2fsprogs (`apt-get install e2fsprogs`); writable disks are formatted with it",
        ),
    }
}

/// In `PATH`, or where administrators' programs are.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let is_executable = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    directories.map(|directory| directory.join(program)).find(is_executable)
}

fn directories(globals: &Globals) -> Vec<Check> {
    let mut checks = Vec::new();
    for (name, directory) in
        [("root directory", &globals.root), ("state directory", &globals.state)]
    {
        let existing = nearest(directory);
        checks.push(match access(existing, AccessFlags::W_OK) {
            Ok(()) if existing == directory => {
                Check::ok(name, Way::Both, directory.display().to_string())
            }
            Ok(()) => Check::ok(name, Way::Both, format!("{} (not made yet)", directory.display())),
            Err(error) => Check::fail(
                name,
                Way::Both,
                format!("{}: {}", existing.display(), error.desc()),
                "name another with --root or --state",
            ),
        });
    }
    checks.push(disk(nearest(&globals.root)));
    checks
}

fn disk(directory: &Path) -> Check {
    let name = "free disk space";
    let advice = "free some space, or name another directory with --root";
    match statvfs(directory) {
        Ok(stat) => {
            let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
            let found = format!("{} at {}", human_size(bytes), directory.display());
            match bytes {
                bytes if bytes < 128 * MIB => Check::fail(name, Way::Both, found, advice),
                bytes if bytes < 2 * GIB => Check::warn(name, Way::Both, found, advice),
                _ => Check::ok(name, Way::Both, found),
            }
        }
        Err(error) => Check::warn(name, Way::Both, error.desc(), advice),
    }
}

fn nearest(directory: &Path) -> &Path {
    directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn memory() -> Check {
    let name = "memory";
    let available = memory_bytes("MemAvailable");
    let found = format!(
        "{} available of {}",
        human_size_binary(available),
        human_size_binary(memory_bytes("MemTotal"))
    );
    let advice = "end something; a container's VM takes what its workload uses";
    match available {
        bytes if bytes < 256 * MIB => Check::fail(name, Way::Both, found, advice),
        bytes if bytes < GIB => Check::warn(name, Way::Both, found, advice),
        _ => Check::ok(name, Way::Both, found),
    }
}

fn limits() -> Vec<Check> {
    let limits = [
        ("limit of open files", Resource::RLIMIT_NOFILE, 1024),
        ("limit of processes", Resource::RLIMIT_NPROC, 1024),
        ("limit of locked memory", Resource::RLIMIT_MEMLOCK, 64 << 10),
    ];
    limits.map(|(name, resource, least)| limit(name, resource, least)).to_vec()
}

fn limit(name: &'static str, resource: Resource, least: rlim_t) -> Check {
    let shown = |value: rlim_t| match value {
        RLIM_INFINITY => "unlimited".to_owned(),
        value => value.to_string(),
    };
    match getrlimit(resource) {
        Ok((soft, hard)) => {
            let found = format!("{} (hard: {})", shown(soft), shown(hard));
            match soft < least {
                true => Check::warn(
                    name,
                    Way::Both,
                    found,
                    &format!("raise it with ulimit, to {least} or more"),
                ),
                false => Check::ok(name, Way::Both, found),
            }
        }
        Err(error) => Check::warn(name, Way::Both, error.desc(), "look at `ulimit -a`"),
    }
}
