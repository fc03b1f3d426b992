//! The images of the tests and the quickstart, made from Debian's packages.
//!
//! `busybox` is a docker-archive of one layer; `debian:12` is an OCI layout of three:
//! the base system, python3 on top, and a layer of changes (deleted and replaced files,
//! an opaque directory, hard links, capabilities, a sparse file).

mod archive;
mod debian;
mod layer;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use crate::{packages, process, workspace};

/// An image ready for `caisson load`.
pub(crate) struct TestImage {
    /// How users name it.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
}

/// Changes with everything that determines what is made, so that the cache follows.
fn recipe() -> String {
    let mut hash = Sha256::new();
    for source in [
        include_str!("images.rs"),
        include_str!("images/archive.rs"),
        include_str!("images/debian.rs"),
        include_str!("images/layer.rs"),
    ] {
        hash.update(source);
    }
    hex(&hash.finalize())[..16].to_owned()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes what the cache lacks. Needs root: the trees have owners and devices.
pub(crate) fn make_all() -> anyhow::Result<[TestImage; 2]> {
    let cache = workspace::cache().join("images").join(recipe());
    let busybox = TestImage { name: "busybox", path: cache.join("busybox.tar") };
    let debian = TestImage { name: "debian:12", path: cache.join("debian-12.tar") };
    make(&busybox, make_busybox)?;
    make(&debian, debian::make)?;
    Ok([busybox, debian])
}

/// Makes one image in a scratch directory beside its place, unless it is there.
fn make(
    image: &TestImage,
    build: fn(scratch: &Path, archive: &Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if image.path.exists() {
        return Ok(());
    }
    if !packages::is_root() {
        bail!("the image {} is made of files with owners and devices: run as root", image.name);
    }
    eprintln!("== image {} (made once)", image.name);
    let scratch = image.path.with_extension(format!("scratch-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| format!("make {}", scratch.display()))?;
    let partial = scratch.join("image.tar");
    let result = build(&scratch, &partial)
        .and_then(|()| fs::rename(&partial, &image.path).context("put the image in its place"));
    let removed = fs::remove_dir_all(&scratch);
    result.with_context(|| format!("make the image {}", image.name))?;
    removed.with_context(|| format!("remove {}", scratch.display()))
}

/// Static busybox with a link for each of its commands.
fn make_busybox(scratch: &Path, archive: &Path) -> anyhow::Result<()> {
    let root = scratch.join("root");
    for directory in ["bin", "etc", "root", "home", "usr/bin", "var/log"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::create_dir(root.join("tmp"))?;
    process::run(&mut process::command("chmod", ["1777".as_ref(), root.join("tmp").as_os_str()]))?;
    fs::copy("/usr/bin/busybox", root.join("bin/busybox"))
        .or_else(|_| fs::copy("/bin/busybox", root.join("bin/busybox")))
        .context("copy busybox (Debian's package is busybox-static)")?;
    let commands = process::output(&mut process::command(root.join("bin/busybox"), ["--list"]))?;
    for command in commands.lines().filter(|command| *command != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(command))?;
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:web:/home:/bin/sh\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:33:\nextra:x:44:www\n")?;
    let layer = layer::from_tree(&root, &scratch.join("layer.tar"))?;
    archive::write_docker_archive(archive, "busybox:latest", &["sh"], &[layer])
}
