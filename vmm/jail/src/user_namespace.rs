//! A user namespace in which the process's own user and group are the only ones.
//!
//! Last of the namespaces, so that the others stay the host's: whatever rights the process
//! might win in its own, they are none over its mounts or its network.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use super::{JailError, check, privileges};

/// Where the maps of this process are written, opened while there still is a `/proc`.
pub struct Maps(io::Result<OwnedFd>);

impl Maps {
    /// Never fails; a host without `/proc` has no user namespaces to give.
    pub fn open() -> Self {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        // SAFETY: opens a directory by a constant path.
        Self(owned(unsafe { libc::open(c"/proc/self".as_ptr(), flags) }))
    }

    fn write(&self, name: &CStr, text: &str) -> io::Result<()> {
        let directory = self.0.as_ref().map_err(|error| io::Error::from(error.kind()))?;
        let flags = libc::O_WRONLY | libc::O_CLOEXEC;
        // SAFETY: the name ends in NUL, and the directory is open.
        let file = owned(unsafe { libc::openat(directory.as_raw_fd(), name.as_ptr(), flags) })?;
        // SAFETY: `text` outlives the call and is as long as said.
        let written = unsafe { libc::write(file.as_raw_fd(), text.as_ptr().cast(), text.len()) };
        if written == text.len() as isize { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Enters a new user namespace that maps `uid` and `gid`, whom the process must have
/// become, to themselves and nobody else.
///
/// A host that allows no user namespace is the inner error, and nothing has changed. The
/// process has all capabilities in the new namespace, which is for
/// [`privileges`] to end.
pub fn enter(maps: Maps, uid: u32, gid: u32) -> Result<Result<(), JailError>, JailError> {
    const UNSHARE: &str = "enter a user namespace";
    if let Err(source) = maps.0 {
        return Ok(Err(JailError { step: "open /proc/self for a user namespace", source }));
    }
    // SAFETY: changes the credentials of this thread, the only one.
    if let Err(refused) = check(UNSHARE, unsafe { libc::unshare(libc::CLONE_NEWUSER) }) {
        return Ok(Err(refused));
    }
    // The change of user made the files in /proc root's, who has no meaning here.
    privileges::set_dumpable(true)?;
    let map = |step, name, text: &str| {
        maps.write(name, text).map_err(|source| JailError { step, source })
    };
    // Without CAP_SETGID in the parent namespace a group is mapped by who forgoes groups.
    map("forbid groups in the user namespace", c"setgroups", "deny")?;
    map("map the user", c"uid_map", &format!("{uid} {uid} 1"))?;
    map("map the group", c"gid_map", &format!("{gid} {gid} 1"))?;
    privileges::set_dumpable(false)?;
    Ok(Ok(()))
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
