//! The machine's disk: a sparse file with an ext4 filesystem, kept between starts.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use super::directory::{DirectoryError, MachineDirectory, open_private};

#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    #[error("make the machine's disk {path}")]
    Make { path: PathBuf, source: io::Error },
    #[error("run {program} (Debian package e2fsprogs)")]
    Run { program: &'static str, source: io::Error },
    #[error(
        "{program} on the machine's disk {path} failed: {output}; `caisson machine rm` removes the disk and what is on it"
    )]
    Failed { program: &'static str, path: PathBuf, output: String },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(
        "the disk {path} is in use by another machine, one with another --state; stop that one \
         or use another --root"
    )]
    InUse { path: PathBuf },
    #[error("lock the disk {path}")]
    Lock { path: PathBuf, source: io::Error },
}

/// The right to use the disk. It goes with the open file, which QEMU inherits, so it ends
/// with the last process that has it.
pub(super) struct DiskLock(pub(super) File);

/// Takes the disk, of which two machines with the same `--root` would make a ruin.
pub(super) fn lock(directory: &MachineDirectory) -> Result<DiskLock, DiskError> {
    let file = open_private(&directory.disk_lock())?;
    // SAFETY: flock takes an open descriptor and a number.
    let result = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    let error = io::Error::last_os_error();
    let path = directory.disk();
    match result {
        0 => Ok(DiskLock(file)),
        _ if error.kind() == io::ErrorKind::WouldBlock => Err(DiskError::InUse { path }),
        _ => Err(DiskError::Lock { path, source: error }),
    }
}

/// Makes the disk if there is none, else repairs what an unclean end has left.
pub(super) fn prepare(_lock: &DiskLock, path: &Path, size_bytes: u64) -> Result<(), DiskError> {
    if path.exists() {
        return check(path);
    }
    let made = make(path, size_bytes);
    if made.is_err() {
        let _ = fs::remove_file(path.with_extension("partial"));
    }
    made
}

fn make(path: &Path, size_bytes: u64) -> Result<(), DiskError> {
    let partial = path.with_extension("partial");
    let failed = |source| DiskError::Make { path: path.into(), source };
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)
        .and_then(|file| file.set_len(size_bytes))
        .map_err(failed)?;
    let program = "mke2fs";
    // A new sparse file reads as zeros, so the inode tables need not be written.
    let output = tool(
        program,
        &["-q", "-F", "-t", "ext4", "-m", "0", "-i", "65536", "-E", "assume_storage_prezeroed=1"],
        &partial,
    )?;
    if !output.status.success() {
        return Err(failure(program, path, &output));
    }
    fs::rename(&partial, path).map_err(failed)
}

fn check(path: &Path) -> Result<(), DiskError> {
    let program = "e2fsck";
    let output = tool(program, &["-p"], path)?;
    // 1: errors were corrected. 2: as well, and a mounted root would want a reboot.
    match output.status.code() {
        Some(0..=2) => Ok(()),
        _ => Err(failure(program, path, &output)),
    }
}

fn tool(program: &'static str, arguments: &[&str], path: &Path) -> Result<Output, DiskError> {
    let sbin = Path::new("/sbin").join(program);
    let found = if sbin.exists() { sbin } else { program.into() };
    Command::new(found)
        .args(arguments)
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| DiskError::Run { program, source })
}

fn failure(program: &'static str, path: &Path, output: &Output) -> DiskError {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let output = if text.is_empty() { output.status.to_string() } else { text };
    DiskError::Failed { program, path: path.into(), output }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn directory(path: &Path) -> MachineDirectory {
        let directory = MachineDirectory { run: path.join("run"), keep: path.join("keep") };
        directory.create().unwrap();
        directory
    }

    #[test]
    fn a_disk_is_made_once_and_then_checked() {
        if !Path::new("/sbin/mke2fs").exists() {
            eprintln!("skipped: no mke2fs here");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let (lock, path) = (lock(&directory).unwrap(), directory.disk());
        prepare(&lock, &path, 64 << 20).unwrap();
        let made = fs::metadata(&path).unwrap().ino();
        prepare(&lock, &path, 128 << 20).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.len(), metadata.ino()), (64 << 20, made));
        assert!(metadata.blocks() * 512 < 16 << 20, "{} blocks", metadata.blocks());
    }

    #[test]
    fn a_damaged_disk_is_an_error_that_names_the_way_out() {
        if !Path::new("/sbin/e2fsck").exists() {
            eprintln!("skipped: no e2fsck here");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let lock = lock(&directory).unwrap();
        fs::write(directory.disk(), vec![0x5a; 1 << 20]).unwrap();
        let message = prepare(&lock, &directory.disk(), 64 << 20).unwrap_err().to_string();
        assert!(message.contains("machine rm"), "{message}");
    }

    #[test]
    fn a_disk_that_cannot_be_made_leaves_nothing() {
        if !Path::new("/sbin/mke2fs").exists() {
            eprintln!("skipped: no mke2fs here");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let lock = lock(&directory).unwrap();
        // Too small for a filesystem.
        prepare(&lock, &directory.disk(), 4096).unwrap_err();
        let left: Vec<_> =
            fs::read_dir(&directory.keep).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["disk.lock"]);
    }

    #[test]
    fn a_disk_has_one_user_and_is_free_when_that_one_has_ended() {
        let temporary = tempfile::tempdir().unwrap();
        let directory = directory(temporary.path());
        let first = lock(&directory).unwrap();
        // As QEMU inherits it.
        let inherited = first.0.try_clone().unwrap();
        drop(first);
        assert!(matches!(lock(&directory), Err(DiskError::InUse { .. })));
        drop(inherited);
        assert!(lock(&directory).is_ok());
    }
}
