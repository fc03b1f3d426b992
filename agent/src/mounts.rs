//! The plan's mounts, in the plan's order, each resolved beneath the container's root.
//!
//! No process of the container runs yet, so nothing changes between looking and mounting;
//! but the image may have placed symbolic links anywhere.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use caisson_agent_protocol::{
    ErrorKind,
    plan::{COPY_UP, MountPlan},
};
use nix::{
    fcntl::OFlag,
    sys::stat::{SFlag, fstat},
};

use crate::{
    copy_up::copy_up,
    error::{At, Kind, OsError},
    path::{PathError, Root, by_descriptor, clean},
    shares::{ShareError, Shares},
    sys,
};

const KINDS: [&str; 9] =
    ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "bind", "virtiofs"];

const PROPAGATION: u64 = libc::MS_SHARED | libc::MS_PRIVATE | libc::MS_SLAVE | libc::MS_UNBINDABLE;
const ALLOWED: u64 = libc::MS_RDONLY
    | libc::MS_NOSUID
    | libc::MS_NODEV
    | libc::MS_NOEXEC
    | libc::MS_SYNCHRONOUS
    | libc::MS_DIRSYNC
    | libc::MS_MANDLOCK
    | libc::MS_NOATIME
    | libc::MS_NODIRATIME
    | libc::MS_RELATIME
    | libc::MS_STRICTATIME
    | libc::MS_SILENT
    | libc::MS_BIND
    | libc::MS_REC
    | MS_NOSYMFOLLOW
    | PROPAGATION;
const MS_NOSYMFOLLOW: u64 = 0x100;

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("cannot mount a {fstype:?} on {destination:?}; known are {}", KINDS.join(", "))]
    UnknownKind { fstype: String, destination: String },
    #[error("mount flags {flags:#x} of {destination:?} are not supported")]
    Flags { flags: u64, destination: String },
    #[error("cannot mount on the container's root")]
    OnRoot,
    #[error("cannot mount a {fstype} on {destination:?}: it lies inside /proc")]
    InsideProc { fstype: String, destination: String },
    #[error("cannot mount a {fstype} on {destination:?}: a part of that path is a symbolic link")]
    ThroughLink { fstype: String, destination: String },
    #[error("mount a {fstype} on {destination:?}")]
    Path {
        fstype: String,
        destination: String,
        #[source]
        source: PathError,
    },
    #[error(
        "cannot mount a {source_kind} on the {target_kind} {destination:?}: are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
    )]
    KindsDiffer { source_kind: &'static str, target_kind: &'static str, destination: String },
    #[error("options {data:?} of {destination:?} are not known")]
    ShareOptions { data: String, destination: String },
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Os(#[from] OsError),
}

impl Kind for MountError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Path { source, .. } => source.kind(),
            Self::Share(error) => error.kind(),
            Self::Os(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// Mounts all of `mounts`. Those returned are still writable, so that later steps can
/// make files and directories in them; [`make_readonly`] ends that.
pub fn mount_all(root: &Root, mounts: &[MountPlan]) -> Result<Vec<OwnedFd>, MountError> {
    let mut still_writable = Vec::new();
    let is_share = |mount: &MountPlan| mount.fstype == "virtiofs";
    let shares = mounts.iter().any(is_share).then(Shares::mount).transpose()?;
    for mount in mounts {
        match shares.as_ref().filter(|_| is_share(mount)) {
            Some(shares) => mount_share(root, mount, shares)?,
            None => still_writable.extend(mount_one(root, mount)?),
        }
    }
    Ok(still_writable)
}

/// Makes what [`mount_all`] returned read-only.
pub fn make_readonly(mounts: &[OwnedFd]) -> Result<(), OsError> {
    for mount in mounts {
        sys::set_readonly(mount.as_fd(), false).at(|| "make a tmpfs read-only")?;
    }
    Ok(())
}

fn mount_one(root: &Root, plan: &MountPlan) -> Result<Option<OwnedFd>, MountError> {
    let destination = clean(&plan.destination);
    check(plan, &destination)?;
    let propagation = plan.flags & PROPAGATION;
    let flags = plan.flags & !PROPAGATION;
    let is_tmpfs = plan.fstype == "tmpfs";
    if plan.fstype == "bind" {
        bind(root, plan, &destination, flags)?;
    } else {
        let target = target_directory(root, plan, &destination)?;
        let (flags, data) = if is_tmpfs {
            (flags & !libc::MS_RDONLY, tmpfs_options(&plan.data, target.as_fd())?)
        } else {
            (flags, plan.data.clone())
        };
        let fstype = if plan.fstype == "cgroup" { "cgroup2" } else { &plan.fstype };
        sys::mount(&plan.source, &by_descriptor(&target), fstype, flags, &data)
            .at(|| format!("mount a {fstype} on {destination:?} with options {data:?}"))?;
    }
    if propagation != 0 {
        let mounted = reopen(root, &destination)?;
        let recursive = plan.flags & libc::MS_REC;
        sys::mount("", &by_descriptor(&mounted), "", propagation | recursive, "")
            .at(|| format!("set the propagation of {destination:?}"))?;
    }
    let late = is_tmpfs && plan.flags & libc::MS_RDONLY != 0;
    Ok(if late { Some(reopen(root, &destination)?) } else { None })
}

fn mount_share(root: &Root, plan: &MountPlan, shares: &Shares) -> Result<(), MountError> {
    let destination = clean(&plan.destination);
    check(plan, &destination)?;
    let source = shares.open(&plan.source)?;
    match plan.data.as_str() {
        COPY_UP => copy_up(root, &destination, &source)?,
        "" => {}
        _ => return Err(MountError::ShareOptions { data: plan.data.clone(), destination }),
    }
    // A node in it would mean a device of this kernel, not of the one that it was made for.
    bind_from(root, plan, source, &destination, plan.flags & !PROPAGATION | libc::MS_NODEV)
}

fn check(plan: &MountPlan, destination: &str) -> Result<(), MountError> {
    let destination_owned = || destination.to_owned();
    if !KINDS.contains(&plan.fstype.as_str()) {
        return Err(MountError::UnknownKind {
            fstype: plan.fstype.clone(),
            destination: destination_owned(),
        });
    }
    if plan.flags & !ALLOWED != 0 {
        return Err(MountError::Flags { flags: plan.flags, destination: destination_owned() });
    }
    if destination == "/" {
        return Err(MountError::OnRoot);
    }
    if destination == "/proc" && plan.fstype != "proc" {
        return Err(MountError::InsideProc {
            fstype: plan.fstype.clone(),
            destination: destination_owned(),
        });
    }
    Ok(())
}

/// The directory to mount on, made if missing.
fn target_directory(
    root: &Root,
    plan: &MountPlan,
    destination: &str,
) -> Result<OwnedFd, MountError> {
    let target = root.make_dir(destination).map_err(|source| path_error(plan, source))?;
    refuse_inside_proc(plan, destination, target.as_fd())?;
    if matches!(plan.fstype.as_str(), "proc" | "sysfs") {
        // Masked and read-only paths, and programs, find these by name: an image must not
        // have moved them with a link.
        root.open_no_links(destination, OFlag::O_PATH).map_err(|_| MountError::ThroughLink {
            fstype: plan.fstype.clone(),
            destination: destination.to_owned(),
        })?;
    }
    Ok(target)
}

fn refuse_inside_proc(
    plan: &MountPlan,
    destination: &str,
    target: BorrowedFd<'_>,
) -> Result<(), MountError> {
    let magic = sys::filesystem_magic(target).at(|| format!("examine {destination:?}"))?;
    if magic == libc::PROC_SUPER_MAGIC {
        return Err(MountError::InsideProc {
            fstype: plan.fstype.clone(),
            destination: destination.to_owned(),
        });
    }
    Ok(())
}

fn bind(root: &Root, plan: &MountPlan, destination: &str, flags: u64) -> Result<(), MountError> {
    let source = root
        .open(&plan.source, OFlag::O_PATH)
        .at(|| format!("open {:?} to bind it on {destination:?}", plan.source))?;
    bind_from(root, plan, source, destination, flags)
}

/// Binds what is open in `source`.
fn bind_from(
    root: &Root,
    plan: &MountPlan,
    source: OwnedFd,
    destination: &str,
    flags: u64,
) -> Result<(), MountError> {
    let is_dir = is_directory(&source).at(|| format!("examine {:?}", plan.source))?;
    let target = bind_target(root, plan, is_dir, destination)?;
    refuse_inside_proc(plan, destination, target.as_fd())?;
    let tree = sys::clone_tree(source.as_fd(), flags & libc::MS_REC != 0)
        .at(|| format!("copy the mount at {:?}", plan.source))?;
    sys::attach(tree.as_fd(), target.as_fd())
        .at(|| format!("bind {:?} on {destination:?}", plan.source))?;
    let options = flags & !(libc::MS_BIND | libc::MS_REC);
    if options != 0 {
        let remount = libc::MS_REMOUNT | libc::MS_BIND | options;
        sys::mount("", &by_descriptor(&reopen(root, destination)?), "", remount, "")
            .at(|| format!("set the options of {destination:?}"))?;
    }
    Ok(())
}

/// What to bind on, made if missing: a directory for a directory, a file for all else.
fn bind_target(
    root: &Root,
    plan: &MountPlan,
    is_dir: bool,
    destination: &str,
) -> Result<OwnedFd, MountError> {
    const NAMES: [&str; 2] = ["file", "directory"];
    let differ = |target_is_dir: bool| MountError::KindsDiffer {
        source_kind: NAMES[usize::from(is_dir)],
        target_kind: NAMES[usize::from(target_is_dir)],
        destination: destination.to_owned(),
    };
    let found = root.open(destination, OFlag::O_PATH).ok();
    let found = found.map(|found| is_directory(&found)).transpose();
    match found.at(|| format!("examine {destination:?}"))? {
        Some(target_is_dir) if target_is_dir != is_dir => return Err(differ(target_is_dir)),
        _ => {}
    }
    let made = if is_dir { root.make_dir(destination) } else { root.make_file(destination) };
    made.map_err(|source| path_error(plan, source))
}

fn is_directory(fd: &OwnedFd) -> nix::Result<bool> {
    let mode = fstat(fd)?.st_mode;
    Ok(SFlag::from_bits_truncate(mode & libc::S_IFMT) == SFlag::S_IFDIR)
}

/// What lies topmost at `destination` now.
fn reopen(root: &Root, destination: &str) -> Result<OwnedFd, OsError> {
    root.open(destination, OFlag::O_PATH).at(|| format!("open {destination:?}"))
}

/// A tmpfs over a directory of the image keeps its mode unless the options state one.
fn tmpfs_options(data: &str, target: BorrowedFd<'_>) -> Result<String, OsError> {
    if data.split(',').any(|option| option.starts_with("mode=")) {
        return Ok(data.to_owned());
    }
    let mode = fstat(target).at(|| "examine a mount point")?.st_mode & 0o7777;
    let comma = if data.is_empty() { "" } else { "," };
    Ok(format!("{data}{comma}mode={mode:04o}"))
}

fn path_error(plan: &MountPlan, source: PathError) -> MountError {
    MountError::Path { fstype: plan.fstype.clone(), destination: plan.destination.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    fn plan(fstype: &str, destination: &str, flags: u64) -> MountPlan {
        MountPlan {
            fstype: fstype.into(),
            source: "none".into(),
            destination: destination.into(),
            flags,
            data: String::new(),
        }
    }

    fn refused(plan: &MountPlan) -> MountError {
        check(plan, &clean(&plan.destination)).unwrap_err()
    }

    #[test]
    fn only_known_kinds_and_flags_are_mounted() {
        assert!(matches!(refused(&plan("ext4", "/x", 0)), MountError::UnknownKind { .. }));
        assert!(matches!(refused(&plan("overlay", "/x", 0)), MountError::UnknownKind { .. }));
        let remount = plan("tmpfs", "/x", libc::MS_REMOUNT);
        assert!(matches!(refused(&remount), MountError::Flags { .. }));
        let moved = plan("bind", "/x", libc::MS_MOVE);
        assert!(matches!(refused(&moved), MountError::Flags { .. }));
    }

    #[test]
    fn the_root_and_proc_are_not_mounted_over() {
        for path in ["/", "", "/a/..", "/.//"] {
            assert!(matches!(refused(&plan("tmpfs", path, 0)), MountError::OnRoot), "{path}");
        }
        for path in ["/proc", "/proc/", "/x/../proc", "//proc/."] {
            let error = refused(&plan("tmpfs", path, 0));
            assert!(matches!(error, MountError::InsideProc { .. }), "{path}");
        }
        check(&plan("proc", "/proc", 0), "/proc").unwrap();
    }

    #[test]
    fn a_destination_that_resolves_into_proc_is_refused() {
        let target = File::open("/proc/sys").unwrap();
        let error = refuse_inside_proc(&plan("tmpfs", "/x", 0), "/x", target.as_fd());
        assert!(matches!(error, Err(MountError::InsideProc { .. })));
    }

    #[test]
    fn proc_behind_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        symlink("elsewhere", dir.path().join("proc")).unwrap();
        let root = Root::new(File::open(dir.path()).unwrap().into());
        let error = target_directory(&root, &plan("proc", "/proc", 0), "/proc").unwrap_err();
        assert!(matches!(error, MountError::ThroughLink { .. }), "{error}");
    }

    #[test]
    fn a_tmpfs_keeps_the_mode_of_what_it_covers() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1700)).unwrap();
        let file = File::open(dir.path()).unwrap();
        assert_eq!(tmpfs_options("size=1m", file.as_fd()).unwrap(), "size=1m,mode=1700");
        assert_eq!(tmpfs_options("", file.as_fd()).unwrap(), "mode=1700");
        assert_eq!(tmpfs_options("mode=1777", file.as_fd()).unwrap(), "mode=1777");
    }
}
