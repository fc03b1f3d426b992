//! Device nodes and links below `/dev` (runtime-spec, "Default Devices" and "Dev symbolic
//! links"), and the plan's further nodes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use caisson_agent_protocol::plan::{DeviceKind, DevicePlan, MountPlan};
use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{Mode, SFlag, makedev, mknodat},
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat},
};

use crate::{
    error::{At, OsError},
    path::{PathError, Root, clean},
};

const DEFAULT: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Makes the nodes and links; the file mode mask must be 0. A `/dev` that the plan binds
/// from elsewhere is left as it is.
pub fn make_all(root: &Root, mounts: &[MountPlan], extra: &[DevicePlan]) -> Result<(), PathError> {
    let bound = |mount: &MountPlan| mount.fstype == "bind" && clean(&mount.destination) == "/dev";
    if !mounts.iter().any(bound) {
        for (path, major, minor) in DEFAULT {
            let (parent, name) = root.make_parent(path)?;
            make_node(parent.as_fd(), name, SFlag::S_IFCHR, 0o666, (major, minor))
                .at(|| format!("make device {path}"))?;
        }
        for (path, target) in LINKS {
            let (parent, name) = root.make_parent(path)?;
            replace(parent.as_fd(), name, || symlinkat(target, &parent, name))
                .at(|| format!("make link {path}"))?;
        }
    }
    extra.iter().try_for_each(|device| make_extra(root, device))
}

fn make_extra(root: &Root, device: &DevicePlan) -> Result<(), PathError> {
    let kind = match device.kind {
        DeviceKind::Char => SFlag::S_IFCHR,
        DeviceKind::Block => SFlag::S_IFBLK,
        DeviceKind::Fifo => SFlag::S_IFIFO,
    };
    let (parent, name) = root.make_parent(&device.path)?;
    let number = (u64::from(device.major), u64::from(device.minor));
    let make = || -> Result<(), Errno> {
        make_node(parent.as_fd(), name, kind, device.mode & 0o7777, number)?;
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        fchownat(&parent, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
    };
    Ok(make().at(|| format!("make device {:?}", device.path))?)
}

fn make_node(
    parent: BorrowedFd<'_>,
    name: &str,
    kind: SFlag,
    mode: u32,
    (major, minor): (u64, u64),
) -> nix::Result<()> {
    let mode = Mode::from_bits_truncate(mode);
    replace(parent, name, || mknodat(parent, name, kind, mode, makedev(major, minor)))
}

/// Makes `name`, in place of what the image has there.
fn replace(
    parent: BorrowedFd<'_>,
    name: &str,
    make: impl Fn() -> nix::Result<()>,
) -> nix::Result<()> {
    match make() {
        Err(Errno::EEXIST) => {
            unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?;
            make()
        }
        made => made,
    }
}

/// Whether `fd` is the character device `major`:`minor`.
pub fn is_device(fd: &(impl AsFd + AsRawFd), major: u64, minor: u64) -> Result<bool, OsError> {
    let stat = nix::sys::stat::fstat(fd).at(|| "examine a device")?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & libc::S_IFMT);
    Ok(kind == SFlag::S_IFCHR && stat.st_rdev == makedev(major, minor))
}
