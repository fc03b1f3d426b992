//! Paths beneath a container's root. The image is hostile: a symbolic link in it may
//! point anywhere, and what it names is always looked up inside the root.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use caisson_agent_protocol::ErrorKind;
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::{Mode, mkdirat},
};

use crate::{
    error::{At, Kind, OsError},
    sys::{self, resolve},
};

/// The kernel's PATH_MAX, its NUL included.
const MAX_PATH_BYTES: usize = 4095;
/// As the kernel counts when it follows links.
const MAX_LINKS: u32 = 40;

#[derive(Debug, thiserror::Error)]
pub enum PathError {
    #[error("path {path:?} is longer than {MAX_PATH_BYTES} bytes")]
    TooLong { path: String },
    #[error("path {path:?} goes through more than {MAX_LINKS} symbolic links")]
    TooManyLinks { path: String },
    #[error("path {path:?} names the root itself")]
    IsRoot { path: String },
    #[error(transparent)]
    Os(#[from] OsError),
}

impl Kind for PathError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Os(error) => error.kind(),
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// A directory that paths are resolved in and never leave.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// `dir` must be a directory; `O_PATH` is enough.
    pub fn new(dir: OwnedFd) -> Self {
        Self(dir)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens what `path` names in the root.
    pub fn open(&self, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
        self.open_with(path, flags, resolve::IN_ROOT | resolve::NO_MAGICLINKS)
    }

    /// Opens `path` if no part of it is a symbolic link (`ELOOP` otherwise).
    pub fn open_no_links(&self, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
        self.open_with(path, flags, resolve::IN_ROOT | resolve::NO_SYMLINKS)
    }

    fn open_with(&self, path: &str, flags: OFlag, how: u64) -> io::Result<OwnedFd> {
        let path = if path.is_empty() { c".".to_owned() } else { sys::c_string(path)? };
        loop {
            match sys::openat2(self.fd(), &path, flags.bits(), 0, how) {
                // A rename or mount elsewhere raced with the walk.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                other => return other,
            }
        }
    }

    /// The directory at `path`, made with its parents (mode 0755) as far as missing.
    pub fn make_dir(&self, path: &str) -> Result<OwnedFd, PathError> {
        self.make_dir_following(path, MAX_LINKS)
    }

    fn make_dir_following(&self, path: &str, links: u32) -> Result<OwnedFd, PathError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => return Ok(other.at(|| format!("open directory {path:?}"))?),
        }
        let mut walked = String::new();
        for part in parts(path)? {
            let parent = self.open(&walked, flags).at(|| format!("open directory {walked:?}"))?;
            walked.push('/');
            walked.push_str(part);
            match self.open(&walked, flags) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => {
                    other.at(|| format!("open directory {walked:?}"))?;
                    continue;
                }
            }
            match mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
                Err(Errno::EEXIST) => {
                    let target = self.dangling(&parent, part, &walked, links)?;
                    self.make_dir_following(&target, links - 1)?;
                }
                made => made.at(|| format!("make directory {walked:?}"))?,
            }
        }
        Ok(self.open(path, flags).at(|| format!("open directory {path:?}"))?)
    }

    /// What is at `path`, which is made as an empty file (mode 0644) if nothing is.
    pub fn make_file(&self, path: &str) -> Result<OwnedFd, PathError> {
        self.make_file_following(path, MAX_LINKS)
    }

    fn make_file_following(&self, path: &str, links: u32) -> Result<OwnedFd, PathError> {
        match self.open(path, OFlag::O_PATH) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => return Ok(other.at(|| format!("open {path:?}"))?),
        }
        let (parent, name) = self.make_parent(path)?;
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        match openat(&parent, name, flags, Mode::from_bits_truncate(0o644)) {
            Err(Errno::EEXIST) => {
                let target = self.dangling(&parent, name, path, links)?;
                self.make_file_following(&target, links - 1)
            }
            made => {
                made.at(|| format!("make file {path:?}"))?;
                Ok(self.open(path, OFlag::O_PATH).at(|| format!("open {path:?}"))?)
            }
        }
    }

    /// The directory that `path` lies in, made if missing, and the last part of `path`.
    pub fn make_parent<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str), PathError> {
        let parts = parts(path)?;
        match parts.split_last() {
            Some((&name, dirs)) if name != ".." => Ok((self.make_dir(&dirs.join("/"))?, name)),
            _ => Err(PathError::IsRoot { path: path.to_owned() }),
        }
    }

    /// Where the dangling link `name` in `parent` points, as a path from the root.
    fn dangling(
        &self,
        parent: &OwnedFd,
        name: &str,
        path: &str,
        links: u32,
    ) -> Result<String, PathError> {
        if links == 0 {
            return Err(PathError::TooManyLinks { path: path.to_owned() });
        }
        let target = readlinkat(parent, name).at(|| format!("read link {path:?}"))?;
        let target = target.to_string_lossy();
        if target.starts_with('/') {
            return Ok(target.into_owned());
        }
        let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
        Ok(format!("{dir}/{target}"))
    }
}

/// The parts of `path` between slashes, without empty ones and ".".
fn parts(path: &str) -> Result<Vec<&str>, PathError> {
    if path.len() > MAX_PATH_BYTES {
        let path = path.chars().take(64).collect();
        return Err(PathError::TooLong { path });
    }
    Ok(path.split('/').filter(|part| !part.is_empty() && *part != ".").collect())
}

/// `path` without empty parts, "." and "..", as it reads when nothing is a link.
pub fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

/// A name for `fd` that system calls taking paths accept, through the `/proc` of the
/// current mount namespace.
pub fn by_descriptor(fd: &impl AsRawFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// As [`by_descriptor`], NUL-terminated.
pub fn c_by_descriptor(fd: &impl AsRawFd) -> CString {
    CString::new(by_descriptor(fd)).expect("digits hold no NUL")
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::symlink,
        path::Path,
    };

    use super::*;

    fn root_in(dir: &Path) -> Root {
        Root::new(File::open(dir).unwrap().into())
    }

    /// A directory `outside` beside the root `inside`.
    fn trap() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("inside")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        let root = root_in(&dir.path().join("inside"));
        (dir, root)
    }

    #[test]
    fn directories_are_made_with_their_parents() {
        let (dir, root) = trap();
        root.make_dir("/a/b/../c//d/.").unwrap();
        assert!(dir.path().join("inside/a/c/d").is_dir());
    }

    #[test]
    fn dot_dot_stays_inside() {
        let (dir, root) = trap();
        root.make_dir("/../../outside/x").unwrap();
        assert!(dir.path().join("inside/outside/x").is_dir());
        assert!(!dir.path().join("outside/x").exists());
    }

    #[test]
    fn an_absolute_link_leads_to_the_root_not_the_host() {
        let (dir, root) = trap();
        symlink(dir.path().join("outside"), dir.path().join("inside/link")).unwrap();
        root.make_file("/link/file").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn a_relative_link_out_of_the_root_is_confined() {
        let (dir, root) = trap();
        symlink("../outside", dir.path().join("inside/link")).unwrap();
        root.make_dir("/link/x").unwrap();
        assert!(dir.path().join("inside/outside/x").is_dir());
        assert_eq!(fs::read_dir(dir.path().join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn a_dangling_link_is_made_where_it_points() {
        let (dir, root) = trap();
        fs::create_dir(dir.path().join("inside/var")).unwrap();
        symlink("/run", dir.path().join("inside/var/run")).unwrap();
        root.make_dir("/var/run/app").unwrap();
        assert!(dir.path().join("inside/run/app").is_dir());
    }

    #[test]
    fn link_loops_end() {
        let (dir, root) = trap();
        symlink("b", dir.path().join("inside/a")).unwrap();
        symlink("a", dir.path().join("inside/b")).unwrap();
        root.make_dir("/a/x").unwrap_err();
        root.make_file("/a").unwrap_err();
    }

    #[test]
    fn a_growing_chain_of_dangling_links_ends() {
        let (dir, root) = trap();
        for n in 0..60 {
            symlink(format!("/l{}", n + 1), dir.path().join(format!("inside/l{n}"))).unwrap();
        }
        root.make_dir("/l0").unwrap_err();
    }

    #[test]
    fn the_root_is_no_file() {
        let (_dir, root) = trap();
        for path in ["/", "", "/a/..", "//."] {
            assert!(root.make_parent(path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn cleaning_is_lexical() {
        assert_eq!(clean("/proc/../proc//sys/."), "/proc/sys");
        assert_eq!(clean("../.."), "/");
        assert_eq!(clean("a"), "/a");
    }
}
