//! Unix sockets at paths of any length.
//!
//! `sun_path` holds 107 bytes and a containerd bundle's path alone has more. The
//! socket's directory is opened, and the kernel resolves the short
//! `/proc/self/fd/<directory>/<name>` instead.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

/// Binds and listens at `path`, for this user alone. A socket file that nobody listens on
/// any more is replaced; one that is in use is `AddrInUse`.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let (_directory, short) = shorten(path)?;
    let listener = match UnixListener::bind(&short) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(&short) => {
            fs::remove_file(&short)?;
            UnixListener::bind(&short)?
        }
        other => other?,
    };
    fs::set_permissions(&short, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Connects to the socket at `path`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_directory, short) = shorten(path)?;
    UnixStream::connect(short)
}

fn is_dead(path: &Path) -> bool {
    // Connecting to a plain file is refused too.
    let socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// `path` in a form that fits, for as long as the directory is held open.
pub fn shorten(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_PATH)
        .open(parent)?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long_directory(base: &Path) -> PathBuf {
        let directory = base.join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn a_path_beyond_the_limit_works() {
        let base = tempfile::tempdir().unwrap();
        let path = long_directory(base.path()).join("a.sock");
        let listener = bind(&path).unwrap();
        let _client = connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a.sock");
        drop(bind(&path).unwrap());
        let _live = bind(&path).unwrap();
        assert_eq!(bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_name_that_is_no_socket_is_not_removed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        fs::write(&path, "precious").unwrap();
        bind(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
