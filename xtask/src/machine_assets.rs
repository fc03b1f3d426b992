//! What the machine boots: Debian's kernel and modules, and an initramfs with our init.
//!
//! ```text
//!   apt-get download ─► dpkg-deb -x ─► cache ─┬─► kernel          (vmlinuz, decompressed)
//!                                             ├─► modules/        (what a host of containers loads)
//!   caisson-machine-init ─────────────────────┴─► initramfs.cpio  (init, modules of the boot)
//! ```
//!
//! The package is unpacked, not installed: the host boots nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use crate::{cpio, process, workspace};

/// Increased when the output changes for the same inputs.
const FORMAT: u32 = 3;

/// The package that depends on Debian's present kernel. The cloud flavour has no 9p.
const META_PACKAGE: &str = "linux-image-amd64";

/// Loaded by the machine's init before it mounts anything: the groups side by side, the
/// modules of each in this order, each after what it depends on.
const BOOT_MODULES: [&[&str]; 2] = [
    &["virtio_pci", "virtio_console", "virtio_blk", "9pnet_virtio", "9p", "overlay"],
    &["kvm_amd", "crc32c_generic", "crc32c_intel", "ext4", "virtio_rng"],
];

/// Directories of modules that `modprobe` finds in the machine. The rest drives hardware
/// that the machine does not have.
const KEPT_TREES: [&str; 14] = [
    "arch/",
    "block/",
    "crypto/",
    "fs/",
    "lib/",
    "net/",
    "security/",
    "virt/",
    "drivers/block/",
    "drivers/char/hw_random/virtio",
    "drivers/md/",
    "drivers/vhost/",
    "drivers/virtio/",
    "drivers/net/vxlan/",
];

/// Fills `out` with `kernel`, `initramfs.cpio` and `modules/lib/modules/<release>/`.
/// Does nothing when they are made of the same inputs already.
pub(crate) fn build(out: &Path, init: &Path) -> anyhow::Result<()> {
    let tree = unpacked_kernel()?;
    let init = fs::read(init).with_context(|| format!("read {}", init.display()))?;
    let stamp_file = out.join("stamp");
    let stamp = format!("{FORMAT} {} {}\n", tree.package, hex(&Sha256::digest(&init)));
    if fs::read_to_string(&stamp_file).is_ok_and(|present| present == stamp) {
        return Ok(());
    }
    fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    remove_if_present(&stamp_file)?;
    write_atomically(&out.join("kernel"), &decompressed_kernel(&tree.vmlinuz())?)?;
    let dependencies = Dependencies::read(&tree.modules())?;
    copy_modules(&tree, &dependencies, &out.join("modules"))?;
    write_atomically(&out.join("initramfs.cpio"), &initramfs(&tree, &dependencies, &init)?)?;
    write_atomically(&stamp_file, stamp.as_bytes())
}

/// Debian's kernel package as it lies unpacked in the cache.
struct KernelTree {
    /// Package and version, for the stamp.
    package: String,
    root: PathBuf,
    /// `uname -r`.
    release: String,
}

impl KernelTree {
    fn open(root: PathBuf) -> anyhow::Result<Self> {
        let modules = root.join("lib/modules");
        let release = only_entry(&modules)?;
        let package = root.file_name().context("a cache entry has a name")?;
        Ok(Self { package: package.to_string_lossy().into(), release, root })
    }

    fn vmlinuz(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

/// The tree of the present package, from the cache or from the distribution's server.
fn unpacked_kernel() -> anyhow::Result<KernelTree> {
    let cache = workspace::cache().join("machine");
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let (package, version) = match present_package() {
        Ok(found) => found,
        // Without package lists an earlier download serves as well.
        Err(error) => return newest_cached(&cache)?.ok_or(error),
    };
    let root = cache.join(format!("{package}_{}", version.replace(':', "%3a")));
    if !root.exists() {
        let partial = cache.join(format!("partial-{}", std::process::id()));
        fs::create_dir_all(&partial).with_context(|| format!("make {}", partial.display()))?;
        let result = download(&package, &version, &partial)
            .and_then(|()| fs::rename(partial.join("root"), &root).context("keep the download"));
        let _ = fs::remove_dir_all(&partial);
        // Another build may have been quicker; its tree is the same.
        if !root.exists() {
            result?;
        }
    }
    KernelTree::open(root)
}

/// The package that carries the kernel, and its version.
fn present_package() -> anyhow::Result<(String, String)> {
    let advice = "the machine's kernel is Debian's: on Debian run `apt-get update`";
    let depends = process::output(Command::new("apt-cache").args(["depends", META_PACKAGE]))
        .context(advice)?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .with_context(|| format!("no kernel behind {META_PACKAGE}; {advice}"))?;
    let policy = process::output(Command::new("apt-cache").args(["policy", package]))?;
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .with_context(|| format!("no version of {package} can be had; {advice}"))?;
    Ok((package.into(), version.into()))
}

fn newest_cached(cache: &Path) -> anyhow::Result<Option<KernelTree>> {
    let mut trees: Vec<_> = fs::read_dir(cache)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("lib/modules").is_dir())
        .collect();
    trees.sort_by_key(|path| fs::metadata(path).and_then(|data| data.modified()).ok());
    trees.pop().map(KernelTree::open).transpose()
}

/// Downloads the package, whose signature apt checks, and unpacks it to `into/root`.
fn download(package: &str, version: &str, into: &Path) -> anyhow::Result<()> {
    eprintln!("downloading {package} {version} (about 70 MB)");
    let mut apt = Command::new("apt-get");
    apt.args(["-q", "-o", "APT::Sandbox::User=root", "download"])
        .arg(format!("{package}={version}"))
        .current_dir(into)
        .stdout(Stdio::null());
    process::run(&mut apt).with_context(|| format!("download {package}; is the network up?"))?;
    let archive = into.join(only_entry(into)?);
    let root = into.join("root");
    process::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root))?;
    let release = only_entry(&root.join("lib/modules"))?;
    plain_modules(&root.join("lib/modules").join(&release))?;
    depmod(&root, &release)
}

/// Decompresses modules that a later Debian ships as `.ko.xz`: the init loads plain ones.
fn plain_modules(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            plain_modules(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "xz") {
            process::run(Command::new("xz").arg("-d").arg(&path))?;
        }
    }
    Ok(())
}

fn depmod(root: &Path, release: &str) -> anyhow::Result<()> {
    let program = if Path::new("/sbin/depmod").exists() { "/sbin/depmod" } else { "depmod" };
    process::run(Command::new(program).arg("-b").arg(root).arg(release))
        .context("list the modules' dependencies (Debian package kmod)")
}

/// What `modules.dep` says: each module's file, and the files it needs first.
struct Dependencies(BTreeMap<String, Vec<String>>);

impl Dependencies {
    fn read(modules: &Path) -> anyhow::Result<Self> {
        let file = modules.join("modules.dep");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("parse {}", file.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let (module, needs) =
                line.split_once(':').with_context(|| format!("no colon in {line:?}"))?;
            all.insert(module.into(), needs.split_whitespace().map(String::from).collect());
        }
        Ok(Self(all))
    }

    /// The file of the module with this name; `-` and `_` are the same in names.
    fn file(&self, name: &str) -> anyhow::Result<&str> {
        let wanted = name.replace('-', "_");
        self.0
            .keys()
            .find(|file| module_name(file) == wanted)
            .map(String::as_str)
            .with_context(|| format!("the kernel package has no module {name}"))
    }

    /// `names` and all that they need, in an order in which they can be loaded.
    fn load_order(&self, names: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut order = Vec::new();
        for name in names {
            self.visit(self.file(name)?, &mut order, 0)?;
        }
        Ok(order)
    }

    fn visit(&self, file: &str, order: &mut Vec<String>, depth: usize) -> anyhow::Result<()> {
        ensure!(depth < 64, "the module {file} needs itself");
        if order.iter().any(|present| present == file) {
            return Ok(());
        }
        for needed in self.needed_by(file)? {
            self.visit(needed, order, depth + 1)?;
        }
        order.push(file.into());
        Ok(())
    }

    fn needed_by(&self, file: &str) -> anyhow::Result<&[String]> {
        self.0.get(file).map(Vec::as_slice).with_context(|| format!("modules.dep lacks {file}"))
    }

    /// The modules of [`KEPT_TREES`] and of the boot, closed under "needs".
    fn kept(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut kept: BTreeSet<String> =
            self.load_order(&BOOT_MODULES.concat())?.into_iter().collect();
        for (file, needs) in &self.0 {
            if is_kept(file) {
                kept.insert(file.clone());
                kept.extend(needs.iter().cloned());
            }
        }
        Ok(kept)
    }
}

fn is_kept(file: &str) -> bool {
    let Some(path) = file.strip_prefix("kernel/") else { return false };
    // Directly in drivers/net: tun, veth, dummy, macvlan and the like; below it: hardware.
    let virtual_network = path.strip_prefix("drivers/net/").is_some_and(|rest| !rest.contains('/'));
    virtual_network || KEPT_TREES.iter().any(|tree| path.starts_with(tree))
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.trim_end_matches(".ko").replace('-', "_")
}

fn copy_modules(tree: &KernelTree, all: &Dependencies, out: &Path) -> anyhow::Result<()> {
    let partial = out.with_extension("partial");
    remove_tree_if_present(&partial)?;
    let destination = partial.join("lib/modules").join(&tree.release);
    let listings = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];
    let files = all.kept()?;
    for file in files.iter().map(String::as_str).chain(listings) {
        let (from, to) = (tree.modules().join(file), destination.join(file));
        let parent = to.parent().context("a module lies in a directory")?;
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        fs::hard_link(&from, &to)
            .or_else(|_| fs::copy(&from, &to).map(drop))
            .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    }
    depmod(&partial, &tree.release)?;
    remove_tree_if_present(out)?;
    fs::rename(&partial, out).with_context(|| format!("rename to {}", out.display()))
}

/// `/init`, `/modules/<group>-<nn>-<file>`, and `/modules.order`, which lists them line by
/// line with an empty line between groups.
fn initramfs(tree: &KernelTree, all: &Dependencies, init: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut archive = cpio::Archive::new(Vec::new());
    archive.directory("dev")?;
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.directory("modules")?;
    let mut order = String::new();
    for (group, names) in BOOT_MODULES.iter().enumerate() {
        for (index, file) in all.load_order(names)?.iter().enumerate() {
            let base = file.rsplit('/').next().unwrap_or(file);
            let name = format!("modules/{group}-{index:02}-{base}");
            let path = tree.modules().join(file);
            let content = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            archive.file(&name, 0o644, &content)?;
            order.push_str(&format!("/{name}\n"));
        }
        order.push('\n');
    }
    archive.file("modules.order", 0o644, order.as_bytes())?;
    archive.file("init", 0o755, init)?;
    Ok(archive.finish()?)
}

/// The ELF image within a bzImage, so that the emulator need not decompress it at every
/// start; the file as it is when its compression is not known.
///
/// Offsets are those of the Linux boot protocol (x86, "The Real-Mode Kernel Header").
fn decompressed_kernel(vmlinuz: &Path) -> anyhow::Result<Vec<u8>> {
    let image = fs::read(vmlinuz).with_context(|| format!("read {}", vmlinuz.display()))?;
    let Some(payload) = payload(&image) else { return Ok(image) };
    let decompressor: &[&str] = match payload {
        [0xfd, b'7', b'z', b'X', b'Z', ..] => &["xz", "-dc", "--single-stream"],
        [0x28, 0xb5, 0x2f, 0xfd, ..] => &["zstd", "-dc"],
        _ => return Ok(image),
    };
    let elf = filter(decompressor, payload).context("decompress the machine's kernel")?;
    ensure!(elf.starts_with(b"\x7fELF"), "{} holds no ELF image", vmlinuz.display());
    Ok(elf)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| {
        let bytes = image.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the decompressed length, not part of the stream.
    image.get(start..start + word(0x24c)?.checked_sub(4)?)
}

/// The output of a program that is fed `input`.
fn filter(command: &[&str], input: &[u8]) -> anyhow::Result<Vec<u8>> {
    use std::io::Write;
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", command[0]))?;
    let mut stdin = child.stdin.take().expect("stdin was asked for");
    let output = std::thread::scope(|scope| {
        // Ends early only with the program, whose status then tells.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    if !output.status.success() {
        bail!("{}: {}", command.join(" "), output.status);
    }
    Ok(output.stdout)
}

fn only_entry(directory: &Path) -> anyhow::Result<String> {
    let mut names = fs::read_dir(directory)
        .with_context(|| format!("list {}", directory.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(names.len() == 1, "{} holds {names:?}, not one entry", directory.display());
    Ok(names.remove(0))
}

fn write_atomically(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    fs::write(&partial, content)
        .and_then(|()| fs::rename(&partial, path))
        .with_context(|| format!("write {}", path.display()))
}

fn remove_if_present(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_tree_if_present(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "kernel/fs/a.ko: kernel/lib/b.ko kernel/lib/c-d.ko\n\
        kernel/lib/b.ko: kernel/lib/c-d.ko\n\
        kernel/lib/c-d.ko:\n\
        kernel/drivers/net/veth.ko:\n\
        kernel/drivers/net/ethernet/card.ko:\n";

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let all = Dependencies::parse(LISTING).unwrap();
        let order = all.load_order(&["c_d", "a", "b"]).unwrap();
        assert_eq!(order, ["kernel/lib/c-d.ko", "kernel/lib/b.ko", "kernel/fs/a.ko"]);
    }

    #[test]
    fn a_missing_module_and_a_circle_are_errors() {
        let all = Dependencies::parse("kernel/x.ko: kernel/x.ko\n").unwrap();
        assert!(all.load_order(&["y"]).is_err());
        let circle = Dependencies::parse("x.ko: y.ko\ny.ko: x.ko\n").unwrap();
        assert!(circle.load_order(&["x"]).unwrap_err().to_string().contains("needs itself"));
    }

    #[test]
    fn virtual_network_devices_are_kept_and_cards_are_not() {
        assert!(is_kept("kernel/drivers/net/veth.ko"));
        assert!(!is_kept("kernel/drivers/net/ethernet/card.ko"));
        assert!(is_kept("kernel/fs/erofs/erofs.ko"));
        assert!(!is_kept("kernel/sound/core/snd.ko"));
    }

    #[test]
    fn the_payload_of_a_kernel_is_found_by_its_header() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&12_u32.to_le_bytes());
        image[1040..1048].copy_from_slice(b"payload!");
        assert_eq!(payload(&image), Some(b"payload!".as_slice()));
        assert_eq!(payload(&image[..1000]), None);
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(payload(&image), None);
    }
}
