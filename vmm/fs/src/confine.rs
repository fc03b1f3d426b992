//! What the server gives up, and the few rights that it keeps.

use std::os::fd::{AsRawFd, OwnedFd};

use caisson_jail::{files, inherited, limits, namespaces, privileges};

use crate::FsError;

/// What acting for any user of the guest takes (`linux/capability.h`):
const KEPT: [u32; 7] = [
    0, // CAP_CHOWN: chown by the guest's root
    1, // CAP_DAC_OVERRIDE: root's access to files of others
    2, // CAP_DAC_READ_SEARCH: a hard link to a file that is known by descriptor; the filter
    //    refuses `open_by_handle_at`, which it would allow too
    3, // CAP_FOWNER: chmod and times by the guest's root
    4, // CAP_FSETID: the setgid bit stays where root sets it
    6, // CAP_SETGID: to act as the group and
    7, // CAP_SETUID: the user that makes a file
];

pub(crate) fn leave_host(streams: &[&OwnedFd], trees: &[OwnedFd]) -> Result<(), FsError> {
    let mut keep: Vec<_> = streams.iter().map(|stream| stream.as_raw_fd()).collect();
    keep.extend(trees.iter().map(AsRawFd::as_raw_fd));
    files::keep_only(&keep)?;
    inherited::reset_signals()?;
    Ok(namespaces::leave()?)
}

pub(crate) fn drop_rights(max_open_files: u64) -> Result<(), FsError> {
    limits::set(max_open_files)?;
    privileges::drop_bounding_set(&KEPT)?;
    privileges::take_user(0, 0, &KEPT)?;
    privileges::forbid_new_rights()?;
    inherited::clear_environment()?;
    // The guest has taken its own umask off each mode.
    // SAFETY: takes a number, and cannot fail.
    unsafe { libc::umask(0) };
    Ok(())
}
