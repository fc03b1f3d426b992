//! Loads the kernel modules that the initramfs lists.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::PathBuf,
    thread,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum ModuleError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("load the module {path}")]
    Load { path: PathBuf, source: io::Error },
}

/// Loads the files that `/modules.order` names, and frees their memory. Empty lines divide
/// them into groups that do not depend on each other and are loaded side by side.
pub(super) fn load_all() -> Result<(), ModuleError> {
    let list = PathBuf::from("/modules.order");
    let order =
        fs::read_to_string(&list).map_err(|source| ModuleError::Read { path: list, source })?;
    thread::scope(|scope| {
        let groups = order.trim().split("\n\n");
        let loaders: Vec<_> = groups.map(|group| scope.spawn(move || load_group(group))).collect();
        // All end here: PID 1 forks later and must have one thread then.
        let results = loaders.into_iter().map(|loader| loader.join());
        results
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|result| result.expect("loading a module does not panic"))
    })
}

/// In order. A module for a device that this CPU does not have is left out.
fn load_group(group: &str) -> Result<(), ModuleError> {
    for path in group.lines().map(PathBuf::from) {
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
