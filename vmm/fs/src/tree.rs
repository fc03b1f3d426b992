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
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use caisson_jail::{namespaces, trees};

use crate::{FsError, check, config::Share};

/// What the guest sees as the root.
pub(crate) const SHARES: &str = "/shares";

/// A copy of the mounts at each share that nothing names yet, read-only where it must be and
/// without devices. In the namespace that the sources are mounted in.
pub(crate) fn clone_shares(shares: &[Share]) -> Result<Vec<OwnedFd>, FsError> {
    shares.iter().map(clone_share).collect()
}

fn clone_share(share: &Share) -> Result<OwnedFd, FsError> {
    let tree = trees::copy(share.source, share.recursive)?;
    let readonly = if share.readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    trees::restrict(&tree, readonly | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID)?;
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
            trees::attach(tree, &c_string(&target))?;
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
