//! The session's working directory, and what else the command shall change on the host,
//! shared writable.
//!
//! The session gets a mount namespace of its own in which the host's directories are bound
//! over the same paths. Everything else stays shared with the other sessions: a mount that
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

    /// Binds the host's `cwd` and what else is `shared` over the same paths for this process
    /// and its children, and enters the first.
    pub(super) fn enter<'a>(
        &self,
        cwd: &'a Path,
        shared: impl Iterator<Item = &'a Path>,
    ) -> Result<(), WorkdirError> {
        let wanted = std::iter::once(cwd).chain(shared);
        let wanted = outermost(wanted.filter(|path| self.is_shareable(path)));
        if !wanted.is_empty() {
            self.bind(&wanted)?;
        }
        chdir(cwd).map_err(|source| WorkdirError::Enter { path: cwd.into(), source })
    }

    fn is_shareable(&self, cwd: &Path) -> bool {
        cwd.is_absolute()
            && cwd != Path::new("/")
            && !KERNEL_TREES.iter().any(|tree| cwd.starts_with(tree))
            && !self.own.iter().any(|own| cwd.starts_with(own))
    }

    fn bind(&self, paths: &[&Path]) -> Result<(), WorkdirError> {
        let mounts = read_mount_points()?;
        // A mount can be cloned only within its namespace, so before leaving it.
        let shares = paths.iter().map(|path| Ok((*path, self.clone_host(path)?)));
        let shares = shares.collect::<Result<Vec<_>, WorkdirError>>()?;
        unshare(CloneFlags::CLONE_NEWNS).map_err(WorkdirError::Unshare)?;
        shares.iter().try_for_each(|(path, share)| cover(path, share, &mounts))
    }

    /// The host's `path`, and a place for it.
    fn clone_host(&self, path: &Path) -> Result<OwnedFd, WorkdirError> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let share = open_tree(self.root.as_raw_fd(), inside, false)
            .map_err(|source| WorkdirError::OpenHost { path: path.into(), source })?;
        if !path.exists() {
            fs::create_dir_all(path)
                .map_err(|source| WorkdirError::MakeDirectory { path: path.into(), source })?;
        }
        Ok(share)
    }
}

/// Mounts `share` over `path`, in this namespace alone. What the machine has mounted below it
/// stays visible.
fn cover(path: &Path, share: &OwnedFd, mounts: &[PathBuf]) -> Result<(), WorkdirError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| WorkdirError::Mount { path, source }
    };
    let beneath = topmost_beneath(path, mounts);
    let covered: Vec<_> = beneath
        .iter()
        .map(|path| Ok((path, open_tree(libc::AT_FDCWD, path, true).map_err(failed(path))?)))
        .collect::<Result<_, WorkdirError>>()?;
    let parent = parent_mount(path, mounts);
    let without_peers = Unshared::new(parent).map_err(failed(parent))?;
    attach(share, path).map_err(failed(path))?;
    without_peers.rejoin().map_err(failed(parent))?;
    for (path, tree) in covered {
        attach(&tree, path).map_err(failed(path))?;
    }
    Ok(())
}

/// Those of `paths` that lie below no other of them, each once.
fn outermost<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<&'a Path> {
    let mut sorted: Vec<_> = paths.collect();
    sorted.sort_unstable();
    let mut outermost: Vec<&Path> = Vec::new();
    for path in sorted {
        if !outermost.last().is_some_and(|above| path.starts_with(above)) {
            outermost.push(path);
        }
    }
    outermost
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
    fn what_lies_in_another_shared_directory_is_not_shared_again() {
        let paths = ["/b/c", "/a", "/b", "/a", "/ab", "/b/c/d"].map(Path::new);
        assert_eq!(outermost(paths.into_iter()), ["/a", "/ab", "/b"].map(Path::new));
        assert!(outermost(std::iter::empty()).is_empty());
    }

    #[test]
    fn only_the_topmost_mounts_below_a_directory_are_moved() {
        let mounts = paths(&["/", "/tmp/a/state", "/tmp/a", "/tmp/a/state/deep", "/tmp/ab"]);
        let beneath = topmost_beneath(Path::new("/tmp/a"), &mounts);
        assert_eq!(beneath, paths(&["/tmp/a/state"]));
        assert_eq!(topmost_beneath(Path::new("/tmp"), &mounts), paths(&["/tmp/a", "/tmp/ab"]));
    }
}
