//! Mounts: kernel filesystems as they are; what is the host's is in [`super::binds`].

use std::path::Path;

use caisson_agent_protocol::plan::{FilePlan, MountPlan};
use oci_spec::runtime::{Mount, Spec};

use super::{
    PlanError,
    binds::{self, Bind, Shares},
    check_container_path, invalid, unsupported,
};
use crate::sandbox::Share;

/// The longest string that mount(2) takes, without its NUL.
const MAX_WORD: usize = 4095;

/// All mounts of a container.
pub(super) struct Mounts {
    pub(super) mounts: Vec<MountPlan>,
    pub(super) files: Vec<FilePlan>,
    pub(super) shares: Vec<Share>,
}

pub(super) fn translate(spec: &Spec) -> Result<Mounts, PlanError> {
    let (mut mounts, mut files) = (Vec::new(), Vec::new());
    let mut shares = Shares::default();
    let mut bytes = 0;
    for mount in spec.mounts().iter().flatten() {
        match Entry::of(mount, &mut shares)? {
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
    Ok(Mounts { mounts, files, shares: shares.into_list() })
}

/// What one mount becomes.
pub(super) enum Entry {
    Mount(MountPlan),
    File(FilePlan),
}

impl Entry {
    fn of(mount: &Mount, shares: &mut Shares) -> Result<Self, PlanError> {
        let destination = normal(mount.destination())?;
        let field = format!("the mount on {destination:?}");
        let options = Options::parse(&field, mount.options().as_deref().unwrap_or_default())?;
        let fstype = match mount.typ().as_deref() {
            _ if options.bind.is_some() => "bind",
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
            let source = mount.source().as_ref();
            let source = source.ok_or_else(|| invalid(&field, "a bind has no source"))?;
            let recursive = options.bind.unwrap_or(mount.typ().as_deref() == Some("rbind"));
            let (flags, copy_up) = (options.flags, options.copy_up);
            let bind = Bind { field, source, destination, flags, recursive, copy_up };
            return binds::translate(bind, shares);
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

/// fstab-style options, sorted out.
#[derive(Default)]
struct Options {
    /// A bind mount, and whether with what is mounted below its source.
    bind: Option<bool>,
    /// Our own: what is empty gets the image's content.
    copy_up: bool,
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
                "bind" => parsed.bind = parsed.bind.or(Some(false)),
                "rbind" => parsed.bind = Some(true),
                "copyup" => parsed.copy_up = true,
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
