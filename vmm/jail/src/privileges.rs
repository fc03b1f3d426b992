//! Becomes a user without rights.

use std::ptr;

use super::{JailError, check};

/// `CAP_DAC_READ_SEARCH` of `linux/capability.h`.
pub const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_SETPCAP`
pub const CAP_SETPCAP: u32 = 8;
/// `CAP_SYS_ADMIN`
pub const CAP_SYS_ADMIN: u32 = 21;

/// Becomes `uid` and `gid`, in no other group. Of root's capabilities those in `kept` stay,
/// which are of the first 32.
pub fn take_user(uid: u32, gid: u32, kept: &[u32]) -> Result<(), JailError> {
    control("keep capabilities", libc::PR_SET_KEEPCAPS, 1)?;
    // SAFETY: changes the credentials of this thread, the only one.
    unsafe {
        check("leave all groups", libc::setgroups(0, ptr::null()))?;
        check("take the group", libc::setresgid(gid, gid, gid))?;
        check("take the user", libc::setresuid(uid, uid, uid))?;
    }
    control("keep capabilities no longer", libc::PR_SET_KEEPCAPS, 0)?;
    set_capabilities("drop the other capabilities", kept.iter().map(|kept| 1 << kept).sum())
}

/// Drops every capability, can win none by a program's file, and is traced by nobody.
pub fn drop_rights() -> Result<(), JailError> {
    // With the inheritable set the ambient one is empty.
    set_capabilities("drop all capabilities", 0)?;
    forbid_new_rights()
}

/// Can win no capability by a program's file, and is traced by nobody.
pub fn forbid_new_rights() -> Result<(), JailError> {
    control("forbid new privileges", libc::PR_SET_NO_NEW_PRIVS, 1)?;
    // After the changes of user, which reset it.
    set_dumpable(false)
}

/// Whether others of its user may trace the process and read its memory; root always may.
pub(super) fn set_dumpable(dumpable: bool) -> Result<(), JailError> {
    control("forbid tracing", libc::PR_SET_DUMPABLE, dumpable.into())
}

/// Lets the kernel kill this process when its parent's thread ends.
///
/// Not for a parent with a control socket: there the end of the parent is the end of the
/// socket, and does not depend on which of the parent's threads made the process.
pub fn die_with_parent() -> Result<(), JailError> {
    control("die with the parent", libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
}

/// Takes every capability but `kept` out of the bounding set, as far as the kernel knows
/// them.
pub fn drop_bounding_set(kept: &[u32]) -> Result<(), JailError> {
    for capability in (0..64).filter(|capability| !kept.contains(capability)) {
        let dropped =
            control("drop the capability bounding set", libc::PR_CAPBSET_DROP, capability.into());
        match dropped {
            // Beyond the last capability of this kernel.
            Err(error) if error.source.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        }
    }
    Ok(())
}

/// Makes `capabilities` (of the first 32) the permitted and the effective set, and empties
/// the inheritable one.
fn set_capabilities(step: &'static str, capabilities: u32) -> Result<(), JailError> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    /// Effective, permitted and inheritable, each as two words of 32 bits: first all the
    /// low words, then all the high ones.
    type Data = [u32; 6];
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let data: Data = [capabilities, capabilities, 0, 0, 0, 0];
    // SAFETY: header and data have the layout of version 3 (capset(2)) and outlive the
    // call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const data) };
    check(step, result)
}

fn control(step: &'static str, option: i32, value: libc::c_ulong) -> Result<(), JailError> {
    // SAFETY: the options used here take a number and no pointer.
    check(step, unsafe { libc::prctl(option, value, 0, 0, 0) })
}
