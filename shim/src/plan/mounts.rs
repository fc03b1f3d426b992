//! Mounts: kernel filesystems as they are, small files by their content.
//!
//! A bind mount names a file of the host, and the guest has none of those. The files that
//! engines generate (`hosts`, `hostname`, `resolv.conf`) are small and travel in the plan;
//! directories and sockets wait for virtio-fs and are refused by name until then.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use caisson_agent_protocol::plan::{FilePlan, MountPlan};
use oci_spec::runtime::{Mount, Spec};

use super::{PlanError, check_container_path, invalid, unsupported};

/// The largest file that travels in the plan.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The longest string that mount(2) takes, without its NUL.
const MAX_WORD: usize = 4095;

const SHM: &str = "/dev/shm";

pub(super) fn translate(spec: &Spec) -> Result<(Vec<MountPlan>, Vec<FilePlan>), PlanError> {
    let (mut mounts, mut files) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for mount in spec.mounts().iter().flatten() {
        match Entry::of(mount)? {
            Entry::Mount(mount) => mounts.push(mount),
            Entry::File(file) => {
                // A short spec can name the same large file over and over.
                bytes += file.content.len();
                if bytes > super::MAX_PLAN_BYTES {
                    return Err(PlanError::PlanTooLarge { bytes });
                }
                files.push(file);
            }
        }
    }
    Ok((mounts, files))
}

enum Entry {
    Mount(MountPlan),
    File(FilePlan),
}

impl Entry {
    fn of(mount: &Mount) -> Result<Self, PlanError> {
        let destination = normal(mount.destination())?;
        let field = format!("the mount on {destination:?}");
        let options = Options::parse(&field, mount.options().as_deref().unwrap_or_default())?;
        let fstype = match mount.typ().as_deref() {
            _ if options.bind => "bind",
            None | Some("" | "none") => {
                return Err(invalid(field, "has no type"));
            }
            Some("bind" | "rbind") => "bind",
            // The guest has v2 only, and containers see what their kernel has.
            Some("cgroup" | "cgroup2") => "cgroup2",
            Some(known @ ("proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue")) => known,
            Some(other) => {
                let known = "proc, sysfs, tmpfs, devpts, mqueue, cgroup and bind are known";
                return Err(unsupported(field, format!("unknown type {other:?}; {known}")));
            }
        };
        check_place(&field, &destination, fstype)?;
        if fstype == "bind" {
            return bind(field, destination, mount, &options);
        }
        // A v1 hierarchy's options (`name=systemd`) mean nothing to cgroup2.
        let data = if fstype == "cgroup2" { String::new() } else { options.data.join(",") };
        let source = mount.source().as_ref().map(|source| source.to_string_lossy().into_owned());
        if source.as_ref().is_some_and(|source| source.contains('\0') || source.len() > MAX_WORD) {
            return Err(invalid(field, format!("its source holds a NUL or over {MAX_WORD} bytes")));
        }
        // mount(2) takes a page.
        if data.len() > MAX_WORD {
            return Err(invalid(field, format!("its options take over {MAX_WORD} bytes")));
        }
        Ok(Self::Mount(MountPlan {
            fstype: fstype.to_owned(),
            source: source.filter(|source| !source.is_empty()).unwrap_or(fstype.to_owned()),
            destination,
            flags: options.flags,
            data,
        }))
    }
}

/// The path without empty, `.` and `..` components: the agent resolves it beneath the
/// root, and what it is compared with here is what it means there.
fn normal(path: &Path) -> Result<String, PlanError> {
    let text = path.to_string_lossy();
    check_container_path("mounts, destination", &text)?;
    let mut components = Vec::new();
    for component in text.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop();
            }
            name => components.push(name),
        }
    }
    Ok(format!("/{}", components.join("/")))
}

/// Mounts that would take away what isolates or describes the container.
fn check_place(field: &str, destination: &str, fstype: &str) -> Result<(), PlanError> {
    /// What lxcfs and its like put there.
    const FILES_IN_PROC: [&str; 8] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/slabinfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
    ];
    if destination == "/" {
        return Err(invalid(field, "the root filesystem cannot be mounted over"));
    }
    let in_proc = destination == "/proc" || destination.starts_with("/proc/");
    let allowed = match destination {
        "/proc" => fstype == "proc",
        place => fstype == "bind" && FILES_IN_PROC.contains(&place),
    };
    if in_proc && !allowed {
        return Err(invalid(field, format!("a {fstype} mount inside /proc is not allowed")));
    }
    Ok(())
}

fn bind(
    field: String,
    destination: String,
    mount: &Mount,
    options: &Options,
) -> Result<Entry, PlanError> {
    let source = mount.source().as_ref().ok_or_else(|| invalid(&field, "a bind has no source"))?;
    if !source.is_absolute() {
        return Err(invalid(field, format!("its source {} is not absolute", source.display())));
    }
    let failed = |source_error| PlanError::Read { path: source.clone(), source: source_error };
    // Non-blocking, so that a FIFO is looked at and not waited for; a socket cannot be
    // opened at all.
    let opened =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(source);
    let file = match opened {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
            return Err(needs_virtio_fs(field, "socket", source));
        }
        other => other.map_err(failed)?,
    };
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() && destination == SHM {
        return Ok(Entry::Mount(shm_like(&file, destination)));
    }
    if metadata.is_dir() {
        return Err(needs_virtio_fs(field, "directory", source));
    }
    if !metadata.is_file() {
        let problem = format!("{} is neither a file nor a directory", source.display());
        return Err(unsupported(field, problem));
    }
    let content = content(&field, source, file)?;
    Ok(Entry::File(FilePlan {
        path: destination,
        mode: metadata.mode() & 0o7777,
        content,
        readonly: options.flags & libc::MS_RDONLY != 0,
    }))
}

fn needs_virtio_fs(field: String, what: &str, source: &Path) -> PlanError {
    let problem = format!(
        "a bind mount of the host {what} {} needs virtio-fs, which this version lacks",
        source.display()
    );
    unsupported(field, problem)
}

fn content(field: &str, source: &Path, file: File) -> Result<String, PlanError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| PlanError::Read { path: source.to_owned(), source: error })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let problem = format!(
            "a bind mount of the host file {}, which has over {MAX_FILE_BYTES} bytes, needs virtio-fs, which this version lacks",
            source.display()
        );
        return Err(unsupported(field, problem));
    }
    String::from_utf8(bytes).map_err(|_| {
        let problem = format!(
            "a bind mount of the host file {}, which is not text, needs virtio-fs, which this version lacks",
            source.display()
        );
        unsupported(field, problem)
    })
}

/// Docker and CRI hand the container's shared memory over as a tmpfs on the host. What
/// shares it is in this VM, so the guest gets a tmpfs of that size.
fn shm_like(directory: &File, destination: String) -> MountPlan {
    use std::os::fd::AsRawFd;
    const DEFAULT_BYTES: u64 = 64 << 20;
    // SAFETY: all-zero bytes are a valid statfs, which is plain numbers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `found` is a valid place to write to.
    let status = unsafe { libc::fstatfs(directory.as_raw_fd(), &mut found) };
    let bytes = match found.f_blocks.checked_mul(found.f_bsize.unsigned_abs()) {
        Some(bytes) if status == 0 && found.f_type == libc::TMPFS_MAGIC && bytes > 0 => bytes,
        _ => DEFAULT_BYTES,
    };
    MountPlan {
        fstype: "tmpfs".to_owned(),
        source: "shm".to_owned(),
        destination,
        flags: libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        data: format!("mode=1777,size={bytes}"),
    }
}

/// fstab-style options, sorted out.
#[derive(Default)]
struct Options {
    bind: bool,
    flags: u64,
    data: Vec<String>,
}

impl Options {
    fn parse(field: &str, options: &[String]) -> Result<Self, PlanError> {
        let mut parsed = Self::default();
        for option in options {
            if option.contains('\0') {
                return Err(invalid(field, "an option holds a NUL"));
            }
            match option.as_str() {
                "bind" | "rbind" => parsed.bind = true,
                "defaults" | "" => {}
                // No mount of the guest propagates to or from anywhere.
                "private" | "rprivate" | "shared" | "rshared" | "slave" | "rslave"
                | "unbindable" | "runbindable" => {}
                "tmpcopyup" => {
                    log::info!("{field}: tmpcopyup is not supported; the tmpfs begins empty");
                }
                "remount" | "idmap" | "ridmap" => {
                    return Err(unsupported(field, format!("option {option:?} is not supported")));
                }
                other => match flag(other) {
                    Some((set, bit)) if set => parsed.flags |= bit,
                    Some((_, bit)) => parsed.flags &= !bit,
                    None => parsed.data.push(other.to_owned()),
                },
            }
        }
        Ok(parsed)
    }
}

/// The mount flag that an option sets (`true`) or clears.
fn flag(option: &str) -> Option<(bool, u64)> {
    // The recursive variants (`rro`) differ for trees of mounts only.
    let name = match option {
        "relatime" | "remount" => option,
        _ => option
            .strip_prefix('r')
            .filter(|rest| {
                ["ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec"].contains(rest)
            })
            .unwrap_or(option),
    };
    Some(match name {
        "ro" => (true, libc::MS_RDONLY),
        "rw" => (false, libc::MS_RDONLY),
        "nosuid" => (true, libc::MS_NOSUID),
        "suid" => (false, libc::MS_NOSUID),
        "nodev" => (true, libc::MS_NODEV),
        "dev" => (false, libc::MS_NODEV),
        "noexec" => (true, libc::MS_NOEXEC),
        "exec" => (false, libc::MS_NOEXEC),
        "sync" => (true, libc::MS_SYNCHRONOUS),
        "async" => (false, libc::MS_SYNCHRONOUS),
        "dirsync" => (true, libc::MS_DIRSYNC),
        "mand" => (true, libc::MS_MANDLOCK),
        "nomand" => (false, libc::MS_MANDLOCK),
        "noatime" => (true, libc::MS_NOATIME),
        "atime" => (false, libc::MS_NOATIME),
        "nodiratime" => (true, libc::MS_NODIRATIME),
        "diratime" => (false, libc::MS_NODIRATIME),
        "relatime" => (true, libc::MS_RELATIME),
        "norelatime" => (false, libc::MS_RELATIME),
        "strictatime" => (true, libc::MS_STRICTATIME),
        "nostrictatime" => (false, libc::MS_STRICTATIME),
        _ => return None,
    })
}
