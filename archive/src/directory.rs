//! Directories of a tree that may be foreign and in use.

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    fs::{Dir, Mode, OFlags, ResolveFlags},
    io::Errno,
};

/// Opens the directory at `path` below `top` (empty: `top` itself) without following any link;
/// `None` if there is none (any more).
pub(crate) fn open(top: impl AsFd, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { b"." } else { path };
    match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        other => other.map(Some),
    }
}

/// What is in a directory, sorted, so that equal trees are told in equal words.
pub(crate) fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}
