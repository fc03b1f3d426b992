//! A directory tree as an archive.
//!
//! The tree may be foreign and in use: symbolic links are never followed, only regular files
//! are opened, and nothing outside the tree is.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use thiserror::Error;

use crate::{
    directory,
    name::display,
    tar::{Entry, EntryKind, Timestamp, Writer, Xattr},
};

/// Files with several names that are remembered, so that memory is bounded; beyond it each
/// name gets its own content.
const MAX_LINKED_FILES: usize = 1 << 20;
const BUFFER_BYTES: usize = 128 << 10;
/// The kernel's own limit, for a list of names as for a value.
const MAX_XATTR_BYTES: usize = 64 << 10;

#[derive(Debug, Error)]
pub enum PackError {
    #[error("{action} \"{}\"", display(.path))]
    Read { action: &'static str, path: Vec<u8>, source: io::Error },
    #[error("write the archive")]
    Write(#[from] io::Error),
}

/// What to pack: `name` in the directory `parent`, under the name `archived_as`, which is
/// empty if a directory's contents go in without the directory itself.
#[derive(Clone, Copy, Debug)]
pub struct PackSource<'a> {
    pub parent: BorrowedFd<'a>,
    pub name: &'a [u8],
    pub archived_as: &'a [u8],
}

/// What the archive does not have as the tree has it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The first files that became shorter while they were read, with zeros in their place.
    pub shrunk: Vec<Vec<u8>>,
}

/// Which directories are entered; the name of one that is not is packed all the same.
pub type Enters<'a> = &'a dyn Fn(BorrowedFd<'_>) -> bool;

/// Writes the archive and its end. Sockets, which no archive can hold, are left out.
pub fn pack<W: Write>(
    source: PackSource<'_>,
    enters: Enters<'_>,
    to: W,
) -> Result<Packed, PackError> {
    let mut packer = Packer {
        writer: Writer::new(to),
        links: HashMap::new(),
        packed: Packed::default(),
        buffer: vec![0; BUFFER_BYTES],
    };
    packer.tree(source, enters)?;
    packer.writer.finish()?;
    Ok(packer.packed)
}

struct Packer<W> {
    writer: Writer<W>,
    /// The archive's names of files with several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    packed: Packed,
    buffer: Vec<u8>,
}

impl<W: Write> Packer<W> {
    fn tree(&mut self, source: PackSource<'_>, enters: Enters<'_>) -> Result<(), PackError> {
        let PackSource { parent, name, archived_as } = source;
        let Some(top) = self.node(parent, name, archived_as)? else { return Ok(()) };
        // Paths below the top rather than open directories: a deep tree needs one descriptor.
        let mut pending = vec![Vec::new()];
        while let Some(below) = pending.pop() {
            let path = join(archived_as, &below);
            let opened = directory::open(&top, &below);
            let opened = opened.map_err(read_error("open the directory", &path))?;
            let Some(directory) = opened else { continue };
            if !enters(directory.as_fd()) {
                continue;
            }
            let at = pending.len();
            for name in directory::names(&directory).map_err(read_error("list", &path))? {
                let child = join(&path, &name);
                if self.node(directory.as_fd(), &name, &child)?.is_some() {
                    pending.push(join(&below, &name));
                }
            }
            pending[at..].reverse();
        }
        Ok(())
    }

    /// Writes one file, link or directory; the directory, if it is one.
    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<OwnedFd>, PackError> {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            // Gone since it was listed.
            Err(Errno::NOENT) if !path.is_empty() => return Ok(None),
            other => other.map_err(read_error("look at", path))?,
        };
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(parent, name, path).map(Some),
            FileType::RegularFile => return self.file(parent, name, path).map(|()| None),
            FileType::Symlink => match rustix::fs::readlinkat(parent, name, Vec::new()) {
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                target => EntryKind::Symlink {
                    target: target.map_err(read_error("read the link", path))?.into_bytes(),
                },
            },
            FileType::CharacterDevice => EntryKind::CharDevice { major: device.0, minor: device.1 },
            FileType::BlockDevice => EntryKind::BlockDevice { major: device.0, minor: device.1 },
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket | FileType::Unknown => return Ok(None),
        };
        self.writer.entry(&entry(path, kind, &stat, Vec::new()))?;
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<OwnedFd, PackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(read_error("open the directory", path))?;
        let stat = rustix::fs::fstat(&directory).map_err(read_error("look at", path))?;
        if !path.is_empty() {
            let xattrs = xattrs(&directory).map_err(read_error("read attributes of", path))?;
            let path = [path, b"/"].concat();
            self.writer.entry(&entry(&path, EntryKind::Directory, &stat, xattrs))?;
        }
        Ok(directory)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), PackError> {
        // NONBLOCK: what was a file a moment ago may be a FIFO now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP) => return Ok(()),
            other => other.map_err(read_error("open", path))?,
        };
        let stat = rustix::fs::fstat(&file).map_err(read_error("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let key = (stat.st_dev, stat.st_ino);
        if stat.st_nlink > 1 {
            if let Some(target) = self.links.get(&key) {
                let kind = EntryKind::HardLink { target: target.clone() };
                return Ok(self.writer.entry(&entry(path, kind, &stat, Vec::new()))?);
            }
            if self.links.len() < MAX_LINKED_FILES {
                self.links.insert(key, path.to_vec());
            }
        }
        let xattrs = xattrs(&file).map_err(read_error("read attributes of", path))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let kind = EntryKind::File { size, segments: None };
        self.writer.entry(&entry(path, kind, &stat, xattrs))?;
        self.content(file.into(), size, path)
    }

    /// Exactly `size` bytes, as the header says so already.
    fn content(&mut self, file: std::fs::File, size: u64, path: &[u8]) -> Result<(), PackError> {
        const SHOWN: usize = 10;
        let mut left = size;
        let mut file = file.take(size);
        while left > 0 {
            let count = match file.read(&mut self.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(read_error("read", path))?,
            };
            if count == 0 {
                if self.packed.shrunk.len() < SHOWN {
                    self.packed.shrunk.push(path.to_vec());
                }
                break;
            }
            self.writer.data(&self.buffer[..count])?;
            left -= count as u64;
        }
        self.buffer.fill(0);
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            self.writer.data(&self.buffer[..count])?;
            left -= count as u64;
        }
        Ok(())
    }
}

fn entry(path: &[u8], kind: EntryKind, stat: &Stat, xattrs: Vec<Xattr>) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Timestamp {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        xattrs,
        data_offset: 0,
        data_bytes: 0,
    }
}

/// Those that mean something elsewhere: capabilities and the user's own.
fn xattrs(file: &impl AsFd) -> io::Result<Vec<Xattr>> {
    let mut list = vec![0; MAX_XATTR_BYTES];
    let length = match rustix::fs::flistxattr(file, &mut list[..]) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        other => other?,
    };
    let mut xattrs = Vec::new();
    let mut value = Vec::new();
    for name in list[..length].split(|&byte| byte == 0) {
        if name != b"security.capability" && !name.starts_with(b"user.") {
            continue;
        }
        value.resize(MAX_XATTR_BYTES, 0);
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(length) => xattrs.push((name.into(), value[..length].into())),
            // Removed in the meantime, or listed but not readable.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    match (directory, name) {
        ([], path) | (path, []) => path.to_vec(),
        (directory, name) => [directory, b"/", name].concat(),
    }
}

fn read_error<E: Into<io::Error>>(
    action: &'static str,
    path: &[u8],
) -> impl FnOnce(E) -> PackError + use<E> {
    let path = path.to_vec();
    move |error| PackError::Read { action, path, source: error.into() }
}
