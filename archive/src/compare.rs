//! What differs between two trees: a container's file system and the image's.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Stat},
    io::Errno,
};
use thiserror::Error;

use crate::{directory, name::display};

#[derive(Debug, Error)]
pub enum CompareError {
    #[error("{action} \"{}\"", display(.path))]
    Read { action: &'static str, path: Vec<u8>, source: io::Error },
    #[error("tell the difference")]
    Tell(#[source] io::Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    Added,
    Changed,
    Deleted,
}

/// Tells each difference of `new` from `old` once, a directory before what is in it, with the
/// path from the root. A directory in which something was added or deleted has changed; the
/// root itself is not told.
///
/// A file whose type, mode, owner, size and time of modification are the same counts as
/// unchanged, as for Docker. What is at a path that is `ignored` counts as in neither tree.
pub fn compare(
    old: BorrowedFd<'_>,
    new: BorrowedFd<'_>,
    ignored: Ignored<'_>,
    tell: &mut dyn FnMut(Difference, &[u8]) -> io::Result<()>,
) -> Result<(), CompareError> {
    let trees = &Trees { old, new, ignored };
    let mut pending = children(trees, &[], Side::Both)?;
    while let Some(node) = pending.pop() {
        if let Some(difference) = node.difference {
            tell(difference, &node.path).map_err(CompareError::Tell)?;
        }
        if let Some(side) = node.enter {
            pending.append(&mut children(trees, &node.path, side)?);
        }
    }
    Ok(())
}

/// Paths that are looked away from.
pub type Ignored<'a> = &'a dyn Fn(&[u8]) -> bool;

struct Trees<'a> {
    old: BorrowedFd<'a>,
    new: BorrowedFd<'a>,
    ignored: Ignored<'a>,
}

impl Trees<'_> {
    /// Whether something was added to a directory, or deleted from it.
    fn lists_differ(&self, path: &[u8]) -> Result<bool, CompareError> {
        let old = self.names(&open(self.old, path)?, path)?;
        Ok(old != self.names(&open(self.new, path)?, path)?)
    }

    fn names(
        &self,
        directory: &Option<OwnedFd>,
        path: &[u8],
    ) -> Result<Vec<Vec<u8>>, CompareError> {
        let Some(directory) = directory else { return Ok(Vec::new()) };
        let mut names = directory::names(directory).map_err(read_error("list", path))?;
        names.retain(|name| !(self.ignored)(&[path, b"/", name].concat()));
        Ok(names)
    }
}

/// One name of a directory.
struct Node {
    path: Vec<u8>,
    difference: Option<Difference>,
    /// In which trees it is a directory to be looked into.
    enter: Option<Side>,
}

/// What is in the directory `path`, the last name first.
fn children(trees: &Trees<'_>, path: &[u8], side: Side) -> Result<Vec<Node>, CompareError> {
    let before = match side {
        Side::Both => open(trees.old, path)?,
        Side::New => None,
    };
    let after = open(trees.new, path)?;
    let (old_names, new_names) = (trees.names(&before, path)?, trees.names(&after, path)?);
    let mut nodes = Vec::new();
    for name in merged(&old_names, &new_names).into_iter().rev() {
        let child = [path, b"/", name].concat();
        let (was, is) = (stat(&before, name, &child)?, stat(&after, name, &child)?);
        let enter = is.as_ref().is_some_and(is_directory).then(|| {
            match was.as_ref().is_some_and(is_directory) {
                true => Side::Both,
                false => Side::New,
            }
        });
        let difference = match (&was, &is) {
            (None, None) => continue, // Gone since it was listed.
            (None, Some(_)) => Some(Difference::Added),
            (Some(_), None) => Some(Difference::Deleted),
            (Some(was), Some(is)) if is_changed(was, is) => Some(Difference::Changed),
            _ if enter == Some(Side::Both) && trees.lists_differ(&child)? => {
                Some(Difference::Changed)
            }
            _ => None,
        };
        nodes.push(Node { path: child, difference, enter });
    }
    Ok(nodes)
}

/// In which trees a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Both,
    New,
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn is_changed(was: &Stat, is: &Stat) -> bool {
    let identity = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let content = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    identity(was) != identity(is) || (!is_directory(is) && content(was) != content(is))
}

/// Sorted names of either list, each once.
fn merged<'a>(old: &'a [Vec<u8>], new: &'a [Vec<u8>]) -> Vec<&'a [u8]> {
    let mut all: Vec<&[u8]> = old.iter().chain(new).map(Vec::as_slice).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// `path` begins with a slash, or is empty for the root.
fn open(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<OwnedFd>, CompareError> {
    let below = path.strip_prefix(b"/").unwrap_or(path);
    directory::open(root, below).map_err(read_error("open the directory", path))
}

fn stat(
    directory: &Option<OwnedFd>,
    name: &[u8],
    path: &[u8],
) -> Result<Option<Stat>, CompareError> {
    let Some(directory) = directory else { return Ok(None) };
    match rustix::fs::statat(directory.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        other => other.map(Some).map_err(read_error("look at", path)),
    }
}

fn read_error(action: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> CompareError + use<> {
    let path = path.to_vec();
    move |error| CompareError::Read { action, path, source: error.into() }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, FileTimes},
        os::unix::fs::symlink,
        path::Path,
        time::{Duration, SystemTime},
    };

    use super::*;

    fn write(path: &Path, content: &str, seconds: u64) {
        fs::write(path, content).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let file = File::options().write(true).open(path).unwrap();
        file.set_times(FileTimes::new().set_modified(time)).unwrap();
    }

    fn differences(old: &Path, new: &Path) -> Vec<String> {
        let (old, new) = (File::open(old).unwrap(), File::open(new).unwrap());
        let mut told = Vec::new();
        compare(old.as_fd(), new.as_fd(), &|path| path == b"/ignored", &mut |difference, path| {
            told.push(format!("{difference:?} {}", String::from_utf8_lossy(path)));
            Ok(())
        })
        .unwrap();
        told
    }

    #[test]
    fn what_was_added_changed_and_deleted_is_told_once() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (old, new) = (old.path(), new.path());
        for root in [old, new] {
            fs::create_dir_all(root.join("same/deep")).unwrap();
            fs::create_dir_all(root.join("d")).unwrap();
            write(&root.join("same/deep/f"), "same", 5);
            write(&root.join("d/kept"), "old", 5);
        }
        write(&old.join("d/gone"), "", 5);
        fs::create_dir_all(old.join("tree/sub")).unwrap();
        write(&new.join("d/kept"), "new", 6);
        write(&new.join("d/added"), "", 5);
        symlink("/etc", new.join("link")).unwrap();
        fs::create_dir(new.join("fresh")).unwrap();
        fs::create_dir_all(new.join("ignored/d")).unwrap();
        write(&new.join("fresh/f"), "", 5);
        assert_eq!(
            differences(old, new),
            [
                "Changed /d",
                "Added /d/added",
                "Deleted /d/gone",
                "Changed /d/kept",
                "Added /fresh",
                "Added /fresh/f",
                "Added /link",
                "Deleted /tree",
            ]
        );
        assert_eq!(differences(new, new), [] as [&str; 0]);
    }

    #[test]
    fn a_file_in_a_directorys_place_has_changed() {
        let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(old.path().join("x")).unwrap();
        fs::write(old.path().join("x/f"), "").unwrap();
        fs::write(new.path().join("x"), "").unwrap();
        assert_eq!(differences(old.path(), new.path()), ["Changed /x"]);
        assert_eq!(differences(new.path(), old.path()), ["Changed /x", "Added /x/f"]);
    }
}
