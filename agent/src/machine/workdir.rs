//! The session's working directory, shared writable with the host.
//!
//! The session gets a mount namespace of its own in which the host's directory is bound
//! over the same path. Everything else stays shared with the other sessions: a mount that
//! one of them makes under `/run` or `/mnt` is seen by all, as on any host.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::chdir,
};

/// Kernel filesystems: the machine's own, whatever the host has there.
const KERNEL_TREES: [&str; 3] = ["/proc", "/sys", "/dev"];

#[derive(Debug, thiserror::Error)]
pub(super) enum WorkdirError {
    #[error("read the mounts of the machine")]
    ReadMounts(#[source] io::Error),
    #[error("open the host's {path}")]
    OpenHost { path: PathBuf, source: io::Error },
    #[error("make a mount namespace")]
    Unshare(#[source] nix::Error),
    #[error("make {path} in the machine")]
    MakeDirectory { path: PathBuf, source: io::Error },
    #[error("mount {path}")]
    Mount { path: PathBuf, source: io::Error },
    #[error("enter the working directory {path}")]
    Enter { path: PathBuf, source: nix::Error },
}

/// What sessions take working directories from.
pub(super) struct HostShare {
    /// The root of the writable export.
    root: OwnedFd,
    /// Directories of the machine's own, where the host's would be wrong.
    own: Vec<PathBuf>,
}

impl HostShare {
    pub(super) fn new(root: OwnedFd, own: Vec<PathBuf>) -> Self {
        Self { root, own }
    }

    /// Binds the host's `cwd` over the same path for this process and its children, and
    /// enters it.
    pub(super) fn enter(&self, cwd: &Path) -> Result<(), WorkdirError> {
        if self.is_shareable(cwd) {
            self.bind(cwd)?;
        }
        chdir(cwd).map_err(|source| WorkdirError::Enter { path: cwd.into(), source })
    }

    fn is_shareable(&self, cwd: &Path) -> bool {
        cwd.is_absolute()
            && cwd != Path::new("/")
            && !KERNEL_TREES.iter().any(|tree| cwd.starts_with(tree))
            && !self.own.iter().any(|own| cwd.starts_with(own))
    }

    fn bind(&self, cwd: &Path) -> Result<(), WorkdirError> {
        let mounts = read_mount_points()?;
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| WorkdirError::Mount { path, source }
        };
        // A mount can be cloned only within its namespace, so before leaving it.
        let inside = cwd.strip_prefix("/").unwrap_or(cwd);
        let share = open_tree(self.root.as_raw_fd(), inside, false)
            .map_err(|source| WorkdirError::OpenHost { path: cwd.into(), source })?;
        fs::create_dir_all(cwd)
            .map_err(|source| WorkdirError::MakeDirectory { path: cwd.into(), source })?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(WorkdirError::Unshare)?;
        let beneath = topmost_beneath(cwd, &mounts);
        let covered: Vec<_> = beneath
            .iter()
            .map(|path| Ok((path, open_tree(libc::AT_FDCWD, path, true).map_err(failed(path))?)))
            .collect::<Result<_, WorkdirError>>()?;
        let parent = parent_mount(cwd, &mounts);
        let without_peers = Unshared::new(parent).map_err(failed(parent))?;
        attach(&share, cwd).map_err(failed(cwd))?;
        without_peers.rejoin().map_err(failed(parent))?;
        // What the machine has mounted below the directory stays visible in it.
        for (path, tree) in covered {
            attach(&tree, path).map_err(failed(path))?;
        }
        Ok(())
    }
}

/// A mount point that has left its peer group, so that a mount in it does not spread.
struct Unshared<'a> {
    path: &'a Path,
    /// The same mount, still in the group.
    peer: OwnedFd,
}

impl<'a> Unshared<'a> {
    fn new(path: &'a Path) -> io::Result<Self> {
        // A clone is a peer of its original.
        let peer = open_tree(libc::AT_FDCWD, path, false)?;
        let none = None::<&str>;
        mount(none, path, none, MsFlags::MS_PRIVATE, none)?;
        Ok(Self { path, peer })
    }

    fn rejoin(self) -> io::Result<()> {
        set_group(&self.peer, self.path)
    }
}

/// The mount points of this namespace, in the order of the kernel's list.
fn read_mount_points() -> Result<Vec<PathBuf>, WorkdirError> {
    let text = fs::read("/proc/self/mountinfo").map_err(WorkdirError::ReadMounts)?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount_point).collect())
}

/// The fifth field of a line of `mountinfo`, in which odd bytes are octal escapes.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = (byte == b'\\').then(|| after.split_first_chunk::<3>()).flatten();
        let value = escaped.and_then(|(digits, after)| {
            let digits = std::str::from_utf8(digits).ok()?;
            Some((u8::from_str_radix(digits, 8).ok()?, after))
        });
        let (byte, after) = value.unwrap_or((byte, after));
        path.push(byte);
        rest = after;
    }
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(&path)))
}

/// The mount point on which `path` lies.
fn parent_mount<'a>(path: &Path, mounts: &'a [PathBuf]) -> &'a Path {
    mounts
        .iter()
        .filter(|mount| path.starts_with(mount))
        .max_by_key(|mount| mount.components().count())
        .map_or(Path::new("/"), PathBuf::as_path)
}

/// The mount points below `path` that lie below no other of them.
fn topmost_beneath(path: &Path, mounts: &[PathBuf]) -> Vec<PathBuf> {
    let mut beneath: Vec<PathBuf> =
        mounts.iter().filter(|mount| mount.starts_with(path) && *mount != path).cloned().collect();
    beneath.sort();
    let mut topmost: Vec<PathBuf> = Vec::new();
    for mount in beneath {
        if !topmost.last().is_some_and(|above| mount.starts_with(above)) {
            topmost.push(mount);
        }
    }
    topmost
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A detached clone of the mount at `path`, and with `recursive` of those below it.
/// A relative path starts at the directory `at`.
fn open_tree(at: RawFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: open_tree takes a descriptor, a NUL-terminated path and flags; it writes no
    // memory. The path lives until after the call.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, at, path.as_ptr(), flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has returned a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn attach(tree: &OwnedFd, path: &Path) -> io::Result<()> {
    move_mount(tree, path, MOVE_MOUNT_F_EMPTY_PATH)
}

fn set_group(peer: &OwnedFd, path: &Path) -> io::Result<()> {
    move_mount(peer, path, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_SET_GROUP)
}

/// `linux/mount.h`
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_SET_GROUP: libc::c_uint = 0x100;

fn move_mount(from: &OwnedFd, to: &Path, flags: libc::c_uint) -> io::Result<()> {
    let to = c_path(to)?;
    let from = from.as_raw_fd();
    // SAFETY: move_mount takes descriptors, NUL-terminated paths and flags; it writes no
    // memory. Both strings live until after the call.
    let result = unsafe {
        libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(list: &[&str]) -> Vec<PathBuf> {
        list.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn the_mount_point_of_a_line_is_its_fifth_field_unescaped() {
        let line = b"36 35 98:0 /mnt1 /mnt\\040two/\\134x rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some("/mnt two/\\x".into()));
        assert_eq!(mount_point(b""), None);
    }

    #[test]
    fn the_deepest_mount_above_a_path_holds_it() {
        let mounts = paths(&["/", "/var", "/var/lib/x", "/v"]);
        assert_eq!(parent_mount(Path::new("/var/lib/y"), &mounts), Path::new("/var"));
        assert_eq!(parent_mount(Path::new("/home"), &mounts), Path::new("/"));
    }

    #[test]
    fn only_the_topmost_mounts_below_a_directory_are_moved() {
        let mounts = paths(&["/", "/tmp/a/state", "/tmp/a", "/tmp/a/state/deep", "/tmp/ab"]);
        let beneath = topmost_beneath(Path::new("/tmp/a"), &mounts);
        assert_eq!(beneath, paths(&["/tmp/a/state"]));
        assert_eq!(topmost_beneath(Path::new("/tmp"), &mounts), paths(&["/tmp/a", "/tmp/ab"]));
    }
}
