//! The programs and the files that a VM boots, staged as they are installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::{cpio, kernel, machine_assets, process, workspace};

/// All are linked statically: the agent and the machine's init because nothing else is
/// there, the others because a static program starts sooner and shares no loader pages.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGES: [&str; 7] = [
    "caisson",
    "caisson-agent",
    "caisson-fs",
    "caisson-rootfs",
    "caisson-runtime",
    "caisson-shim",
    "caisson-vmm",
];
const PROGRAMS: [&str; 6] = [
    "caisson",
    "caisson-fs",
    "caisson-runtime",
    "caisson-unpack",
    "caisson-vmm",
    "containerd-shim-caisson-v2",
];

/// How the programs are compiled: a profile of `Cargo.toml`.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// As they are shipped and measured.
    Release,
    /// For trying a change: compiled in a fraction of the time, and slower.
    Quick,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Quick => "quick",
        }
    }
}

/// Builds everything into [`workspace::stage`].
pub(crate) fn build_all() -> anyhow::Result<()> {
    build_all_as(Profile::Release)
}

/// As [`build_all`], by another profile.
pub(crate) fn build_all_as(profile: Profile) -> anyhow::Result<()> {
    step("guest kernel");
    let vmlinux = kernel::build()?;
    step("programs");
    let built = build_programs(&PACKAGES, profile)?;
    step("installation");
    stage(&built, &vmlinux)?;
    step("machine");
    machine_assets::build(&stage_files().join("machine"), &built.join("caisson-machine-init"))?;
    eprintln!("built: {}", stage_programs().join("caisson").display());
    Ok(())
}

/// The staged `caisson`.
pub(crate) fn caisson() -> PathBuf {
    stage_programs().join("caisson")
}

pub(crate) fn stage_programs() -> PathBuf {
    workspace::stage().join("bin")
}

fn stage_files() -> PathBuf {
    workspace::stage().join("lib/caisson")
}

fn step(what: &str) {
    eprintln!("== {what}");
}

/// Builds the programs of these packages and returns the directory that holds them.
pub(crate) fn build_programs(packages: &[&str], profile: Profile) -> anyhow::Result<PathBuf> {
    let flags = format!("target.{TARGET}.rustflags=[\"-Ctarget-feature=+crt-static\"]");
    let mut build = process::cargo(["build", "--bins", "--target", TARGET, "--config", &flags]);
    build.args(["--profile", profile.name()]);
    for package in packages {
        build.args(["--package", package]);
    }
    if std::env::var_os("CI").is_some() {
        build.arg("--locked");
    }
    // A flag from outside would replace the one above.
    process::run(build.env_remove("RUSTFLAGS")).context("build the programs")?;
    Ok(workspace::target().join(TARGET).join(profile.name()))
}

fn stage(built: &Path, vmlinux: &Path) -> anyhow::Result<()> {
    for program in PROGRAMS {
        process::copy_atomically(&built.join(program), &stage_programs().join(program))?;
    }
    process::copy_atomically(vmlinux, &stage_files().join("vmlinux"))?;
    let agent = built.join("caisson-agent");
    let agent = fs::read(&agent).with_context(|| format!("read {}", agent.display()))?;
    let archive = stage_files().join("initramfs.cpio");
    fs::write(archive.with_extension("partial"), initramfs(&agent)?)
        .and_then(|()| fs::rename(archive.with_extension("partial"), &archive))
        .with_context(|| format!("write {}", archive.display()))
}

/// The agent as `/init`, and the console that the kernel opens for it.
fn initramfs(agent: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = cpio::Archive::new(Vec::with_capacity(agent.len() + 1024));
    archive.directory("dev")?;
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, agent)?;
    Ok(archive.finish()?)
}

/// Copies what is staged below `prefix`.
pub(crate) fn install(prefix: &Path) -> anyhow::Result<()> {
    if !caisson().exists() {
        bail!("nothing is built yet: run `cargo xtask build` first");
    }
    copy_tree(&workspace::stage(), prefix)?;
    eprintln!("installed {}", prefix.join("bin/caisson").display());
    Ok(())
}

fn copy_tree(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let destination = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &destination)?;
        } else {
            process::copy_atomically(&entry.path(), &destination)?;
        }
    }
    Ok(())
}
