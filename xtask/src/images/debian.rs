//! `debian:12`: debootstrap's base, python3 by apt, and a layer of changes that
//! exercises what a layer can say.

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use anyhow::Context;

use super::{archive, layer};
use crate::process::{command, run};

pub(crate) fn make(scratch: &Path, archive: &Path) -> anyhow::Result<()> {
    let base = scratch.join("base");
    let python = scratch.join("python");
    let changed = scratch.join("changed");
    bootstrap(&base)?;
    copy(&base, &python)?;
    install_python(&python)?;
    prepare_for_changes(&python)?;
    copy(&python, &changed)?;
    change(&changed)?;
    let layers = [
        layer::from_tree(&base, &scratch.join("1.tar"))?,
        layer::from_change(&base, &python, &scratch.join("2.tar"))?,
        layer::from_change(&python, &changed, &scratch.join("3.tar"))?,
    ];
    archive::write_oci_archive(archive, "debian:12", &["bash"], &layers)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    run(&mut command("cp", ["-a".as_ref(), from.as_os_str(), to.as_os_str()]))
}

fn bootstrap(root: &Path) -> anyhow::Result<()> {
    let mut debootstrap = command("debootstrap", ["--variant=minbase", "bookworm"]);
    run(debootstrap.arg(root)).context("debootstrap")?;
    clean(root)
}

/// What no image needs: packages and lists that apt fetches again.
fn clean(root: &Path) -> anyhow::Result<()> {
    for directory in ["var/cache/apt", "var/lib/apt/lists", "var/log"] {
        let directory = root.join(directory);
        fs::remove_dir_all(&directory)
            .and_then(|()| fs::create_dir(&directory))
            .with_context(|| format!("empty {}", directory.display()))?;
    }
    Ok(())
}

fn install_python(root: &Path) -> anyhow::Result<()> {
    let resolver = root.join("etc/resolv.conf");
    let old = fs::read(&resolver).ok();
    fs::copy("/etc/resolv.conf", &resolver).context("lend the resolver's configuration")?;
    for arguments in [
        &["apt-get", "-q", "update"][..],
        &["apt-get", "-q", "install", "-y", "--no-install-recommends", "python3"],
    ] {
        let mut chroot = command("chroot", [root]);
        chroot.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
        run(&mut chroot).context("install python3 in the image")?;
    }
    match old {
        Some(content) => fs::write(&resolver, content)?,
        None => fs::remove_file(&resolver)?,
    }
    clean(root)
}

/// Files that the last layer deletes, replaces or hides.
fn prepare_for_changes(root: &Path) -> anyhow::Result<()> {
    let opt = root.join("opt");
    for directory in ["opaque/old-directory", "deleted-directory"] {
        fs::create_dir_all(opt.join(directory))?;
    }
    for file in
        ["opaque/old", "opaque/old-directory/file", "deleted-directory/file", "deleted", "replaced"]
    {
        fs::write(opt.join(file), "from layer 2\n")?;
    }
    symlink("deleted", opt.join("becomes-a-directory"))?;
    Ok(())
}

fn change(root: &Path) -> anyhow::Result<()> {
    let opt = root.join("opt");
    fs::remove_file(opt.join("deleted"))?;
    fs::remove_dir_all(opt.join("deleted-directory"))?;
    fs::remove_file(opt.join("becomes-a-directory"))?;
    fs::create_dir(opt.join("becomes-a-directory"))?;
    fs::write(opt.join("becomes-a-directory/file"), "from layer 3\n")?;
    fs::write(opt.join("replaced"), "from layer 3, and longer\n")?;
    // The marker says it, as a builder that replaces a directory writes it.
    fs::remove_dir_all(opt.join("opaque"))?;
    fs::create_dir(opt.join("opaque"))?;
    fs::set_permissions(opt.join("opaque"), fs::Permissions::from_mode(0o750))?;
    fs::write(opt.join("opaque").join(layer::OPAQUE), "")?;
    fs::write(opt.join("opaque/new"), "from layer 3\n")?;
    special_files(&opt)
}

/// One of each thing that a tree can hold beside plain files.
fn special_files(opt: &Path) -> anyhow::Result<()> {
    fs::write(opt.join("linked-1"), "one file, two names\n")?;
    fs::hard_link(opt.join("linked-1"), opt.join("linked-2"))?;
    fs::copy("/bin/true", opt.join("setuid"))?;
    fs::set_permissions(opt.join("setuid"), fs::Permissions::from_mode(0o4755))?;
    let mut sparse = fs::File::create(opt.join("sparse"))?;
    sparse.seek(SeekFrom::Start(64 << 20))?;
    sparse.write_all(b"end\n")?;
    fs::write(opt.join("n".repeat(255)), "a name as long as can be\n")?;
    fs::write(opt.join("capable"), "#!/bin/true\n")?;
    run(command("setcap", ["cap_net_raw+ep"]).arg(opt.join("capable")))?;
    run(command("setfattr", ["-n", "user.note", "-v", "kept"]).arg(opt.join("linked-1")))?;
    run(command("mkfifo", [opt.join("fifo")]).arg("-m0640"))?;
    run(command("mknod", [opt.join("null")]).args(["c", "1", "3"]))?;
    run(command("touch", ["-d", "2001-02-03T04:05:06.789Z"]).arg(opt.join("replaced")))?;
    run(command("chown", ["12345:123456"]).arg(opt.join("replaced")))
}
