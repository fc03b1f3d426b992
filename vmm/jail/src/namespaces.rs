//! Leaves the host's namespaces and its directory tree.

use std::{ffi::CStr, ptr};

use super::{JailError, check};

/// New mount, network (without an interface but a loopback that is down), IPC, UTS and
/// cgroup namespaces.
pub fn leave() -> Result<(), JailError> {
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // SAFETY: changes the namespaces of this thread, the only one.
    check("leave the host's namespaces", unsafe { libc::unshare(namespaces) })
}

/// Makes an empty, read-only tmpfs the root directory and the only mount.
pub fn take_empty_root() -> Result<(), JailError> {
    take_root(|place| {
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        mount("mount an empty root", c"none", place, Some(c"tmpfs"), flags)
    })
}

/// Makes what `mount` mounts at the place that it is given the root directory, and the only
/// mount with those below it.
pub fn take_root<E: From<JailError>>(
    mount_at: impl FnOnce(&CStr) -> Result<(), E>,
) -> Result<(), E> {
    // What is mounted from now on stays in this namespace.
    mount("make mounts private", c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    // Any directory serves as a place to mount; this one every host has.
    let place = c"/dev";
    mount_at(place)?;
    Ok(pivot_into(place)?)
}

fn pivot_into(place: &CStr) -> Result<(), JailError> {
    // SAFETY: calls with strings that end in NUL, which change this process's root and working
    // directory, and its own mount namespace. The old root is stacked on the new one
    // (pivot_root(2), `pivot_root(".", ".")`), then detached.
    unsafe {
        check("enter the root to be", libc::chdir(place.as_ptr()))?;
        let here = c".".as_ptr();
        check("make it the root", libc::syscall(libc::SYS_pivot_root, here, here))?;
        check("detach the host's root", libc::umount2(here, libc::MNT_DETACH))?;
        check("enter the new root", libc::chdir(c"/".as_ptr()))
    }
}

fn mount(
    step: &'static str,
    source: &CStr,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: libc::c_ulong,
) -> Result<(), JailError> {
    let fstype = fstype.map_or(ptr::null(), CStr::as_ptr);
    // One inode: the root directory.
    let options =
        if fstype.is_null() { ptr::null() } else { c"mode=0,nr_inodes=1,size=4k".as_ptr() };
    // SAFETY: all strings end in NUL and outlive the call; null means none.
    let result =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), fstype, flags, options.cast()) };
    check(step, result)
}
