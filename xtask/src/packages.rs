//! The Debian packages that building and testing need, and their installation.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::{emulator, process::run};

/// A package, a file that shows that it is there, and what it is for.
type Needed = (&'static str, &'static str, &'static str);

const NEEDED: &[Needed] = &[
    // Building
    ("gcc", "/usr/bin/gcc", "links the programs"),
    ("make", "/usr/bin/make", "builds the guest kernel"),
    ("flex", "/usr/bin/flex", "builds the guest kernel"),
    ("bison", "/usr/bin/bison", "builds the guest kernel"),
    ("bc", "/usr/bin/bc", "builds the guest kernel"),
    ("cpio", "/usr/bin/cpio", "builds the guest kernel"),
    ("libelf-dev", "/usr/include/libelf.h", "builds the guest kernel"),
    ("xz-utils", "/usr/bin/xz", "unpacks the kernel's source"),
    ("kmod", "/sbin/depmod", "orders the machine's modules"),
    ("linux-source-6.12", "/usr/src/linux-source-6.12.tar.xz", "the guest kernel's source"),
    // Running
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64", "emulates a host where KVM has none"),
    ("e2fsprogs", "/sbin/mke2fs", "makes writable disks"),
    // Test images and checks
    ("busybox-static", "/usr/bin/busybox", "the busybox image"),
    ("debootstrap", "/usr/sbin/debootstrap", "the debian image"),
    ("erofs-utils", "/usr/bin/fsck.erofs", "checks the layers that rootfs writes"),
    ("containerd", "/usr/bin/containerd", "runs the shim as an engine does"),
    ("podman", "/usr/bin/podman", "runs caisson-runtime as an engine does"),
    ("docker.io", "/usr/sbin/dockerd", "runs caisson-runtime as an engine does"),
    ("libcap2-bin", "/sbin/setcap", "file capabilities in an image"),
    ("attr", "/usr/bin/setfattr", "extended attributes in an image"),
    ("docker-registry", "/usr/bin/docker-registry", "a registry to push to and pull from"),
    ("skopeo", "/usr/bin/skopeo", "a second opinion on what was pushed"),
    ("runc", "/usr/sbin/runc", "containerd's own runtime, to compare with"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge", "a network as engines make it"),
    ("iproute2", "/sbin/tc", "looks at that network from outside"),
];

/// Installs the packages whose file is missing, and a newer QEMU for an old one; does
/// nothing, quickly, when all is there.
pub(crate) fn install_missing() -> anyhow::Result<()> {
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, file, _)| !std::path::Path::new(file).exists()).collect();
    if !missing.is_empty() {
        install(&missing)?;
    }
    emulator::replace_old()
}

fn install(missing: &[&Needed]) -> anyhow::Result<()> {
    eprintln!("Debian packages to install:");
    for (package, _, purpose) in missing {
        eprintln!("  {package:<20} {purpose}");
    }
    if !is_debian() {
        bail!("this is no Debian: install what stands above by your package manager");
    }
    run(&mut apt(&["update"])).context("update the package lists")?;
    let mut install = apt(&["install", "-y", "--no-install-recommends"]);
    install.args(missing.iter().map(|(package, _, _)| package));
    run(&mut install).context("install packages")
}

fn is_debian() -> bool {
    std::path::Path::new("/usr/bin/apt-get").exists()
}

/// `apt-get`, by sudo for a user who is not root.
pub(crate) fn apt(arguments: &[&str]) -> Command {
    let root = is_root();
    let mut command = Command::new(if root { "apt-get" } else { "sudo" });
    if !root {
        command.arg("apt-get");
    }
    command.arg("-q").args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null());
    command
}

/// Whether this process may do what root may.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0)
}
