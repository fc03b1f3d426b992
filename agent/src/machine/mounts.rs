//! The machine's file tree: the host's, with the machine's own kernel filesystems, its
//! disk, and memory for what it writes elsewhere.
//!
//! ```text
//!   /            overlay: the host's root over 9p, read-only, under a tmpfs
//!   /proc /sys /dev /run /sys/fs/cgroup      the machine's own
//!   --root       a directory of the machine's disk
//!   --state      a tmpfs
//!   /var/lib/containerd, …                   directories of the machine's disk
//! ```
//!
//! The writable export of the host's root stays below the initramfs, where no session
//! reaches; [`super::workdir`] binds the working directory from it.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
};

use caisson_agent_protocol::machine::BootArguments;
use nix::{
    fcntl::{OFlag, open},
    mount::{MsFlags, mount},
    sys::{
        stat::{Mode, SFlag, makedev, mknod},
        utsname::uname,
    },
    unistd::{chdir, chroot},
};

/// Paths in the initramfs that are hidden once the root is in place.
const HOST_READ_ONLY: &str = "/lower";
const HOST_WRITABLE: &str = "/host";
const MEMORY: &str = "/upper";
const DISK: &str = "/disk";
const NEW_ROOT: &str = "/machine";

/// 9p with large messages: each one costs the same exits.
const NINE_P: &str = "trans=virtio,version=9p2000.L,msize=512000";

/// Engines keep overlays here, and no overlay takes another one as its upper layer.
const ENGINE_DIRECTORIES: [&str; 3] =
    ["/var/lib/containerd", "/var/lib/docker", "/var/lib/containers"];

#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    #[error("mount {what} at {target}")]
    Mount { what: &'static str, target: PathBuf, source: nix::Error },
    #[error("make {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("enter the new root")]
    Enter(#[source] nix::Error),
    #[error("make the link {path}")]
    Link { path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// Mounts what the kernel offers, for the initramfs itself.
pub(super) fn early() -> Result<(), MountError> {
    let nothing = MsFlags::empty();
    for path in ["/dev", "/proc", "/sys"] {
        directory(Path::new(path))?;
    }
    attach("devtmpfs", "/dev", Some("mode=755"), MsFlags::MS_NOSUID)?;
    attach("proc", "/proc", None, nothing)?;
    attach("sysfs", "/sys", None, nothing)
}

/// Builds the tree and makes it this process's root. Returns the root of the host's
/// writable export, which has no path any more.
pub(super) fn enter_root(arguments: &BootArguments) -> Result<OwnedFd, MountError> {
    host_root()?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let host = open(HOST_WRITABLE, flags, Mode::empty()).map_err(MountError::Enter)?;
    disk()?;
    let root = Path::new(NEW_ROOT);
    for inner in ["proc", "sys", "dev"] {
        let target = root.join(inner);
        directory(&target)?;
        move_mount(&Path::new("/").join(inner), &target)?;
    }
    kernel_filesystems(root)?;
    keep_on_disk("root", &beneath(root, &arguments.root))?;
    for engine in ENGINE_DIRECTORIES {
        keep_on_disk(engine.trim_start_matches('/'), &beneath(root, Path::new(engine)))?;
    }
    state(&beneath(root, &arguments.state))?;
    modules(root, &arguments.modules)?;
    chdir(root).map_err(MountError::Enter)?;
    move_mount(Path::new("."), Path::new("/"))?;
    chroot(".").and_then(|()| chdir("/")).map_err(MountError::Enter)?;
    // As on a host with systemd: a mount made in one session is seen by the others.
    let shared = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount_any(None, Path::new("/"), None, shared, None, "shared propagation")?;
    Ok(host)
}

/// The host's root twice: under an overlay for all, and writable for working directories.
fn host_root() -> Result<(), MountError> {
    for path in [HOST_READ_ONLY, HOST_WRITABLE, MEMORY, DISK, NEW_ROOT] {
        directory(Path::new(path))?;
    }
    // Loose: the host's files are cached. Each session start drops what could be stale.
    let cached = format!("{NINE_P},cache=loose");
    nine_p("root", HOST_READ_ONLY, &cached, MsFlags::MS_RDONLY)?;
    // Nothing but shared mappings is cached, so both sides see each other's writes.
    let coherent = format!("{NINE_P},cache=mmap");
    nine_p("host", HOST_WRITABLE, &coherent, MsFlags::empty())?;
    attach("tmpfs", MEMORY, Some("mode=755"), MsFlags::empty())?;
    for part in ["data", "work"] {
        directory(&Path::new(MEMORY).join(part))?;
    }
    let layers = format!(
        "lowerdir={HOST_READ_ONLY},upperdir={MEMORY}/data,workdir={MEMORY}/work,\
         redirect_dir=on,index=off,metacopy=off"
    );
    attach("overlay", NEW_ROOT, Some(&layers), MsFlags::empty())
}

fn disk() -> Result<(), MountError> {
    let options = Some("noinit_itable");
    let device = Some(Path::new("/dev/vda"));
    mount_any(device, Path::new(DISK), Some("ext4"), MsFlags::MS_NOATIME, options, "the disk")
}

fn kernel_filesystems(root: &Path) -> Result<(), MountError> {
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let at = |path: &str| root.join(path);
    for made in ["dev/pts", "dev/shm", "dev/mqueue", "run"] {
        directory(&at(made))?;
    }
    let pts = Some("gid=5,mode=620,ptmxmode=666");
    attach("devpts", at("dev/pts"), pts, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    attach("tmpfs", at("dev/shm"), Some("mode=1777"), safe)?;
    attach("mqueue", at("dev/mqueue"), None, safe | MsFlags::MS_NOEXEC)?;
    attach("tmpfs", at("run"), Some("mode=755"), safe)?;
    attach("cgroup2", at("sys/fs/cgroup"), Some("nsdelegate"), safe | MsFlags::MS_NOEXEC)?;
    attach("bpf", at("sys/fs/bpf"), Some("mode=700"), safe | MsFlags::MS_NOEXEC)?;
    let controllers = at("sys/fs/cgroup/cgroup.subtree_control");
    fs::write(&controllers, "+cpuset +cpu +io +memory +pids")
        .map_err(|source| MountError::Write { path: controllers, source })?;
    let links =
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, target) in links {
        let path = at("dev").join(name);
        symlink(target, &path).map_err(|source| MountError::Link { path, source })?;
    }
    directory(&at("run/lock"))?;
    // By this a caisson knows that it is in the machine.
    let mark = at("run/caisson-machine");
    fs::write(&mark, "").map_err(|source| MountError::Write { path: mark, source })
}

/// Binds the disk's directory `name` at `target`.
fn keep_on_disk(name: &str, target: &Path) -> Result<(), MountError> {
    let source = Path::new(DISK).join(name);
    directory(&source)?;
    directory(target)?;
    bind(&source, target, "a directory of the disk")
}

fn state(target: &Path) -> Result<(), MountError> {
    directory(target)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    attach("tmpfs", target, Some("mode=711"), safe)
}

/// Puts the modules where `modprobe` looks for them.
fn modules(root: &Path, modules: &Path) -> Result<(), MountError> {
    let release = uname().map_err(MountError::Enter)?.release().to_owned();
    let source = beneath(root, modules).join(&release);
    let target = root.join("lib/modules").join(&release);
    directory(&target)?;
    bind(&source, &target, "the kernel's modules")?;
    device_nodes(root, &target.join("modules.devname"))
}

/// Makes the device nodes at whose first opening the kernel loads their module:
/// `/dev/loop-control`, `/dev/net/tun`, `/dev/fuse` and the like.
fn device_nodes(root: &Path, list: &Path) -> Result<(), MountError> {
    let text = fs::read_to_string(list)
        .map_err(|source| MountError::Read { path: list.into(), source })?;
    for (name, kind, device) in text.lines().filter_map(device_node) {
        let path = root.join("dev").join(name);
        if let Some(parent) = path.parent() {
            directory(parent)?;
        }
        let mode = Mode::from_bits_truncate(0o600);
        match mknod(&path, kind, mode, device) {
            Ok(()) | Err(nix::Error::EEXIST) => {}
            Err(error) => return Err(MountError::Make { path, source: error.into() }),
        }
    }
    Ok(())
}

/// A line of `modules.devname`: module, node, and `c` or `b` with major and minor number.
fn device_node(line: &str) -> Option<(&str, SFlag, libc::dev_t)> {
    let mut words = line.split_whitespace();
    let (_module, name, device) = (words.next()?, words.next()?, words.next()?);
    if line.starts_with('#') || name.split('/').any(|part| part == "..") {
        return None;
    }
    let kind = if device.starts_with('b') { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
    let (major, minor) = device.get(1..)?.split_once(':')?;
    Some((name, kind, makedev(major.parse().ok()?, minor.parse().ok()?)))
}

fn beneath(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn directory(path: &Path) -> Result<(), MountError> {
    fs::create_dir_all(path).map_err(|source| MountError::Make { path: path.to_path_buf(), source })
}

fn nine_p(
    tag: &'static str,
    target: &str,
    options: &str,
    flags: MsFlags,
) -> Result<(), MountError> {
    let source = Some(Path::new(tag));
    mount_any(source, Path::new(target), Some("9p"), flags, Some(options), "the host's root")
}

fn attach(
    fstype: &'static str,
    target: impl AsRef<Path>,
    options: Option<&str>,
    flags: MsFlags,
) -> Result<(), MountError> {
    let source = Some(Path::new(fstype));
    mount_any(source, target.as_ref(), Some(fstype), flags, options, fstype)
}

fn bind(source: &Path, target: &Path, what: &'static str) -> Result<(), MountError> {
    mount_any(Some(source), target, None, MsFlags::MS_BIND, None, what)
}

fn move_mount(source: &Path, target: &Path) -> Result<(), MountError> {
    mount_any(Some(source), target, None, MsFlags::MS_MOVE, None, "a moved mount")
}

fn mount_any(
    source: Option<&Path>,
    target: &Path,
    fstype: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
    what: &'static str,
) -> Result<(), MountError> {
    mount(source, target, fstype, flags, options).map_err(|source| MountError::Mount {
        what,
        target: target.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_devname_is_a_node() {
        let character = device_node("fuse fuse c10:229");
        assert_eq!(character, Some(("fuse", SFlag::S_IFCHR, makedev(10, 229))));
        let block = device_node("loop loop0 b7:0");
        assert_eq!(block, Some(("loop0", SFlag::S_IFBLK, makedev(7, 0))));
        for line in ["# Device nodes to trigger on-demand loading", "", "x ../y c1:2", "x y c1"] {
            assert_eq!(device_node(line), None, "{line}");
        }
    }
}
