//! Loads the kernel modules that the initramfs lists.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::PathBuf,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum ModuleError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("load the module {path}")]
    Load { path: PathBuf, source: io::Error },
}

/// Loads each file that `/modules.order` names, in that order, and frees its memory. A
/// module for a device that this CPU does not have is left out.
pub(super) fn load_all() -> Result<(), ModuleError> {
    let list = PathBuf::from("/modules.order");
    let order =
        fs::read_to_string(&list).map_err(|source| ModuleError::Read { path: list, source })?;
    for path in order.lines().map(PathBuf::from) {
        let file =
            File::open(&path).map_err(|source| ModuleError::Read { path: path.clone(), source })?;
        match load(&file) {
            Err(error) if !is_absent_or_present(&error) => {
                return Err(ModuleError::Load { path, source: error });
            }
            _ => {}
        }
        // The initramfs is memory; what stays of it is the init.
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

fn is_absent_or_present(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENODEV | libc::EOPNOTSUPP))
}

fn load(file: &File) -> io::Result<()> {
    // SAFETY: finit_module takes a descriptor, a NUL-terminated string and flags; the
    // descriptor is open and the string is static.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
