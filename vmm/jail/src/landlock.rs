//! Landlock: the kernel's own refusal of names, whatever the other steps have left.
//!
//! The rules are none, so everything that the kernel's ABI can forbid is forbidden
//! (Linux `Documentation/userspace-api/landlock.rst`).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
};

use super::{JailError, check};

/// `struct landlock_ruleset_attr`; older kernels take it whose later fields are zero.
#[repr(C)]
#[derive(Debug, PartialEq, Eq)]
struct Handled {
    fs: u64,
    net: u64,
    scoped: u64,
}

impl Handled {
    /// All that this ABI knows of. The constants are counts of bits from 0 on.
    fn of_abi(abi: u32) -> Self {
        let fs = match abi {
            1 => 13,
            // Renaming between directories.
            2 => 14,
            // Truncating.
            3 | 4 => 15,
            // `ioctl` on devices that are opened from now on.
            _ => 16,
        };
        // Binding and connecting TCP ports.
        let net = if abi >= 4 { 2 } else { 0 };
        // Abstract Unix sockets of others, signals to others.
        let scoped = if abi >= 6 { 2 } else { 0 };
        let bits = |count: u32| (1 << count) - 1;
        Self { fs: bits(fs), net: bits(net), scoped: bits(scoped) }
    }
}

/// Forbids the thread, and those it makes, to reach files by name, TCP ports, and sockets
/// and processes outside, as far as the kernel can. What is open stays usable.
///
/// Needs `no_new_privs`. Returns the kernel's ABI; 0 where it has no Landlock.
pub fn forbid_all() -> Result<u32, JailError> {
    let abi = abi()?;
    if abi == 0 {
        return Ok(0);
    }
    let ruleset = ruleset(&Handled::of_abi(abi))?;
    // SAFETY: takes numbers only.
    let restricted =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    check("restrict itself by Landlock", restricted)?;
    Ok(abi)
}

fn abi() -> Result<u32, JailError> {
    const VERSION: u32 = 1;
    // SAFETY: asks for a number; the pointer may be null then.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<Handled>(), 0, VERSION)
    };
    if abi < 0 {
        let source = io::Error::last_os_error();
        // Not built in, or not chosen at boot.
        if matches!(source.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP)) {
            return Ok(0);
        }
        return Err(JailError { step: "ask for Landlock's ABI", source });
    }
    Ok(u32::try_from(abi).unwrap_or(u32::MAX))
}

fn ruleset(handled: &Handled) -> Result<OwnedFd, JailError> {
    // SAFETY: `handled` outlives the call and is as large as said.
    let fd = unsafe {
        let size = size_of::<Handled>();
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::from_ref(handled), size, 0)
    };
    check("make a Landlock ruleset", fd)?;
    // SAFETY: the kernel has just made this descriptor for us; it sets close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_abi_forbids_what_the_one_before_does_and_more() {
        assert_eq!(Handled::of_abi(1), Handled { fs: 0x1fff, net: 0, scoped: 0 });
        assert_eq!(Handled::of_abi(4), Handled { fs: 0x7fff, net: 3, scoped: 0 });
        let newest = Handled { fs: 0xffff, net: 3, scoped: 3 };
        assert_eq!((Handled::of_abi(6), Handled::of_abi(99)), (Handled::of_abi(7), newest));
        for abi in 1..8 {
            let (old, new) = (Handled::of_abi(abi), Handled::of_abi(abi + 1));
            assert_eq!(old.fs & new.fs, old.fs);
            assert_eq!(old.net & new.net, old.net);
            assert_eq!(old.scoped & new.scoped, old.scoped);
        }
    }
}
