//! Which file a process executes: the lookup in `PATH`, and what it means when there is
//! none. The words are those that Docker's users know.

use std::{
    ffi::CString,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use caisson_agent_protocol::ErrorKind;

use crate::{error::Kind, sys};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotInPath { name: String },
    #[error("exec: {name:?}: stat {name}: no such file or directory")]
    NotFound { name: String },
    #[error("exec: {name:?}: is a directory: permission denied")]
    Directory { name: String },
    #[error("exec: {name:?}: permission denied")]
    Permission { name: String },
    #[error("exec: {name:?}")]
    Stat { name: String, source: io::Error },
    /// The file was found and the kernel refused it; a script whose interpreter is
    /// missing is `ENOENT` here.
    #[error("exec {path}")]
    Exec { path: String, source: io::Error },
}

impl Kind for CommandError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotInPath { .. } | Self::NotFound { .. } => ErrorKind::CommandNotFound,
            Self::Stat { source, .. } | Self::Exec { source, .. } => match source.raw_os_error() {
                Some(libc::ENOENT) => ErrorKind::CommandNotFound,
                _ => ErrorKind::CommandNotExecutable,
            },
            _ => ErrorKind::CommandNotExecutable,
        }
    }
}

/// The file that `name` stands for, with `env` giving `PATH`; looked up below the current
/// root and directory, by the current user.
pub fn find(name: &str, env: &[String]) -> Result<String, CommandError> {
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) => Err(refusal(name, error)),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        // A relative entry would run whatever lies in the working directory.
        .filter(|dir| dir.starts_with('/'))
        .map(|dir| format!("{}/{name}", dir.trim_end_matches('/')))
        .find(|candidate| !name.is_empty() && executable(candidate).is_ok())
        .ok_or_else(|| CommandError::NotInPath { name: name.to_owned() })
}

/// Whether `path` is a file that the current user may execute.
fn executable(path: &str) -> io::Result<()> {
    let metadata = Path::new(path).metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    // Root passes access(2) for any file with some execute bit; the bits alone tell that
    // there is one.
    if metadata.permissions().mode() & 0o111 == 0 || metadata.mode() & libc::S_IFMT == libc::S_IFIFO
    {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    accessible(&sys::c_string(path)?)
}

fn accessible(path: &CString) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated and outlives the call.
    let result =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    sys::check(result).map(drop)
}

fn refusal(name: &str, error: io::Error) -> CommandError {
    let name = name.to_owned();
    match error.raw_os_error() {
        Some(libc::ENOENT) => CommandError::NotFound { name },
        Some(libc::EISDIR) => CommandError::Directory { name },
        Some(libc::EACCES) => CommandError::Permission { name },
        _ => CommandError::Stat { name, source: error },
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn program(dir: &Path, name: &str, mode: u32) -> String {
        let path = dir.join(name);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn path_env(dirs: &[&Path]) -> Vec<String> {
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
        vec!["HOME=/".into(), format!("PATH={}", dirs.join(":"))]
    }

    #[test]
    fn the_first_executable_in_path_wins() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        program(a.path(), "tool", 0o644);
        let good = program(b.path(), "tool", 0o755);
        assert_eq!(find("tool", &path_env(&[a.path(), b.path()])).unwrap(), good);
    }

    #[test]
    fn what_is_missing_is_127() {
        let dir = tempfile::tempdir().unwrap();
        let error = find("foo", &path_env(&[dir.path()])).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"foo\": executable file not found in $PATH");
        assert_eq!(error.kind(), ErrorKind::CommandNotFound);
        let error = find("/nope", &[]).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"/nope\": stat /nope: no such file or directory");
        assert_eq!(error.kind(), ErrorKind::CommandNotFound);
        assert_eq!(find("", &[]).unwrap_err().kind(), ErrorKind::CommandNotFound);
    }

    #[test]
    fn what_cannot_be_executed_is_126() {
        let dir = tempfile::tempdir().unwrap();
        let error = find("/", &[]).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"/\": is a directory: permission denied");
        assert_eq!(error.kind(), ErrorKind::CommandNotExecutable);
        let plain = program(dir.path(), "plain", 0o644);
        let error = find(&plain, &[]).unwrap_err();
        assert_eq!(error.to_string(), format!("exec: {plain:?}: permission denied"));
        assert_eq!(error.kind(), ErrorKind::CommandNotExecutable);
    }

    #[test]
    fn relative_entries_of_path_are_skipped() {
        assert_eq!(
            find("sh", &["PATH=:.:bin".into()]).unwrap_err().kind(),
            ErrorKind::CommandNotFound
        );
    }

    #[test]
    fn without_path_the_usual_directories_are_searched() {
        assert!(find("sh", &[]).unwrap().ends_with("/sh"));
    }
}
