//! The machine's disk: a sparse file with an ext4 filesystem, kept between starts.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

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
}

/// Makes the disk if there is none, else repairs what an unclean end has left.
pub(super) fn prepare(path: &Path, size_bytes: u64) -> Result<(), DiskError> {
    if path.exists() { check(path) } else { make(path, size_bytes) }
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

    #[test]
    fn a_disk_is_made_once_and_then_checked() {
        if !Path::new("/sbin/mke2fs").exists() {
            eprintln!("skipped: no mke2fs here");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.img");
        prepare(&path, 64 << 20).unwrap();
        let made = fs::metadata(&path).unwrap().ino();
        prepare(&path, 128 << 20).unwrap();
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
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.img");
        fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
        let message = prepare(&path, 64 << 20).unwrap_err().to_string();
        assert!(message.contains("machine rm"), "{message}");
    }
}
