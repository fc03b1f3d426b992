//! Where the programs and the files that a VM boots are found.

use std::{
    env, io,
    path::{Path, PathBuf},
};

/// The environment variable that names another directory than `<bin>/../lib/caisson`.
pub const VARIABLE: &str = "CAISSON_ASSETS";

/// The directories of one installation.
#[derive(Clone, Debug)]
pub struct Assets {
    programs: PathBuf,
    files: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    #[error("find the running program")]
    CurrentExe(#[source] io::Error),
    #[error(
        "{what} is missing: no {path}; `cargo xtask build` makes it, ${VARIABLE} names another place"
    )]
    Missing { what: &'static str, path: PathBuf },
}

impl Assets {
    /// Beside the running program, or where `CAISSON_ASSETS` says.
    pub fn locate() -> Result<Self, AssetError> {
        let exe = env::current_exe().map_err(AssetError::CurrentExe)?;
        let programs = exe.parent().unwrap_or(Path::new("/")).to_path_buf();
        let files = match env::var_os(VARIABLE) {
            Some(files) => PathBuf::from(files),
            None => programs.parent().unwrap_or(Path::new("/")).join("lib/caisson"),
        };
        Ok(Self { programs, files })
    }

    /// An installation at another place than this program's.
    pub fn at(programs: impl Into<PathBuf>, files: impl Into<PathBuf>) -> Self {
        Self { programs: programs.into(), files: files.into() }
    }

    pub fn vmm(&self) -> Result<PathBuf, AssetError> {
        present("the vmm", self.programs.join("caisson-vmm"))
    }

    pub fn file_server(&self) -> Result<PathBuf, AssetError> {
        present("the file server", self.programs.join("caisson-fs"))
    }

    pub fn shim(&self) -> Result<PathBuf, AssetError> {
        present("the shim", self.programs.join("containerd-shim-caisson-v2"))
    }

    pub fn kernel(&self) -> Result<PathBuf, AssetError> {
        present("the guest kernel", self.files.join("vmlinux"))
    }

    pub fn initramfs(&self) -> Result<PathBuf, AssetError> {
        present("the guest's initramfs", self.files.join("initramfs.cpio"))
    }

    /// The directory with the machine's `kernel`, `initramfs.cpio` and `modules/`.
    pub fn machine(&self) -> Result<PathBuf, AssetError> {
        present("the machine's kernel", self.files.join("machine"))
    }
}

fn present(what: &'static str, path: PathBuf) -> Result<PathBuf, AssetError> {
    if path.exists() { Ok(path) } else { Err(AssetError::Missing { what, path }) }
}
