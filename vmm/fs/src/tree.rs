//! The server's root: a read-only tmpfs that holds the shares, and `/proc`.
//!
//! ```text
//! /shares/0, /shares/1, ...   directories or files of the host, mounted here
//! /proc                       of the server alone; extended attributes are named through it
//! ```

use std::{
    ffi::{CStr, CString},
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use caisson_jail::namespaces;

use crate::{FsError, check, config::Share};

/// What the guest sees as the root.
pub(crate) const SHARES: &str = "/shares";

/// A copy of the mounts at each share that nothing names yet, read-only where it must be and
/// without devices. In the namespace that the sources are mounted in.
pub(crate) fn clone_shares(shares: &[Share]) -> Result<Vec<OwnedFd>, FsError> {
    shares.iter().map(clone_share).collect()
}

fn clone_share(share: &Share) -> Result<OwnedFd, FsError> {
    let recursive = if share.recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_EMPTY_PATH | recursive) as libc::c_uint;
    // SAFETY: the string is a constant; the result is owned by nobody else.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, share.source, c"".as_ptr(), flags) };
    check("copy the mounts at a share", tree)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
    let readonly = if share.readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::mount_attr {
        attr_set: readonly | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: `attributes` outlives the call and is as large as said.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    check("restrict the mounts of a share", set)?;
    Ok(tree)
}

/// Makes a tree that holds `trees` the root and all that is mounted.
pub(crate) fn become_root(trees: Vec<OwnedFd>) -> Result<(), FsError> {
    namespaces::take_root(|place| {
        mount(c"tmpfs", place, 0, c"mode=0755,size=1m")?;
        let root = Path::new(place.to_str().expect("the place is a constant"));
        let directory = root.join(&SHARES[1..]);
        make(fs::create_dir(&directory))?;
        for (index, tree) in trees.iter().enumerate() {
            let target = directory.join(index.to_string());
            if is_directory(tree)? {
                make(fs::create_dir(&target))?;
            } else {
                make(File::create_new(&target).map(drop))?;
            }
            attach(tree, &c_string(&target))?;
        }
        let proc = root.join("proc");
        make(fs::create_dir(&proc))?;
        let nothing = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        mount(c"proc", &c_string(&proc), nothing, c"hidepid=invisible,subset=pid")?;
        mount(c"tmpfs", place, nothing | libc::MS_REMOUNT | libc::MS_BIND, c"")
    })
}

fn is_directory(tree: &OwnedFd) -> Result<bool, FsError> {
    // SAFETY: all-zero bytes are a valid stat, which is plain numbers.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `found` is a valid place to write to.
    check("examine a share", unsafe { libc::fstat(tree.as_raw_fd(), &mut found) })?;
    Ok(found.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

fn make(made: io::Result<()>) -> Result<(), FsError> {
    made.map_err(|source| FsError::Step { step: "make a place for a share", source })
}

fn attach(tree: &OwnedFd, target: &CStr) -> Result<(), FsError> {
    // SAFETY: the descriptor is open, the strings end in NUL.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    check("mount a share", moved)
}

fn mount(
    fstype: &'static CStr,
    target: &CStr,
    flags: libc::c_ulong,
    options: &CStr,
) -> Result<(), FsError> {
    let (name, options) = (fstype.as_ptr(), options.as_ptr().cast());
    // SAFETY: all strings end in NUL and outlive the call.
    check("mount the server's root", unsafe {
        libc::mount(name, target.as_ptr(), name, flags, options)
    })
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("the path is made of constants")
}
