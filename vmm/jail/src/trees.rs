//! Copies of mounts that nothing names yet (open_tree(2)).

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use super::{JailError, check};

/// Copies the mount at an open file or directory, with `recursive` those below it, too. In the
/// namespace that it is mounted in.
pub fn copy(place: RawFd, recursive: bool) -> Result<OwnedFd, JailError> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::OPEN_TREE_CLONE
        | libc::OPEN_TREE_CLOEXEC
        | (libc::AT_EMPTY_PATH | recursive) as libc::c_uint;
    // SAFETY: the string is a constant; a descriptor that is not open is an error.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, place, c"".as_ptr(), flags) };
    check("copy a mount", tree)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(tree as RawFd) })
}

/// Gives every mount of a copy these attributes (`MOUNT_ATTR_*`), and makes it private.
pub fn restrict(tree: &OwnedFd, attributes: u64) -> Result<(), JailError> {
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open, the string a constant, `attributes` outlives the call
    // and is as large as said.
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
    check("restrict a mount", set)
}

/// Mounts a copy at `target`.
pub fn attach(tree: &OwnedFd, target: &CStr) -> Result<(), JailError> {
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
    check("mount a copy", moved)
}
