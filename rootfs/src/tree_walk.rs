//! Walks a directory of the host, inside a confined process, and makes an EROFS image of it.
//!
//! Overlayfs's attributes but the one for opaque directories are its own affair. Symbolic
//! links are never followed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;
use thiserror::Error;

use crate::erofs::{DataWriter, ErofsError, ReadData, is_representable, write_image};
use crate::layer::display;
use crate::limits::Limits;
use crate::tar::{Segment, Timestamp, Xattr};
use crate::tree::{Metadata, NodeId, NodeKind, OPAQUE_XATTR, Tree, TreeError};

#[derive(Debug, Error)]
pub(crate) enum WalkError {
    #[error("cannot {action} \"{}\"", display(.path))]
    Read { action: &'static str, path: Vec<u8>, source: io::Error },
    #[error("\"{}\": {reason}", display(.path))]
    Entry { path: Vec<u8>, reason: &'static str },
    #[error("more than {limit} files, the limit")]
    TooMany { limit: u64 },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Erofs(#[from] ErofsError),
}

/// What a walk came across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walked {
    pub(crate) inodes: u64,
    /// Contents of regular files.
    pub(crate) file_bytes: u64,
}

/// Makes an image of the tree below `root`. Changes the working directory of the calling
/// thread and of those that share it.
pub(crate) fn walk_tree(
    root: OwnedFd,
    image: &File,
    tails: File,
    uuid: [u8; 16],
    limits: &Limits,
) -> Result<Walked, WalkError> {
    let mut walker = Walker {
        root,
        tree: Tree::new(limits.tree_bytes),
        data: DataWriter::new(image, tails),
        links: HashMap::new(),
        file_bytes: 0,
        entries: 0,
        limits,
    };
    walker.walk()?;
    let Walker { tree, data, file_bytes, .. } = walker;
    let info = write_image(image, data, &tree, uuid)?;
    Ok(Walked { inodes: info.inodes, file_bytes })
}

struct Walker<'f, 'l> {
    root: OwnedFd,
    tree: Tree,
    data: DataWriter<'f>,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), NodeId>,
    file_bytes: u64,
    entries: u64,
    limits: &'l Limits,
}

impl<'f, 'l> Walker<'f, 'l> {
    fn walk(&mut self) -> Result<(), WalkError> {
        let stat = rustix::fs::fstat(&self.root).map_err(read_error("look at", b"."))?;
        rustix::process::fchdir(&self.root).map_err(read_error("enter", b"."))?;
        let metadata = self.metadata(b".", b".", &stat)?;
        self.tree.set_metadata(NodeId::ROOT, metadata)?;
        // Paths rather than open directories: a deep tree needs one descriptor at a time.
        let mut pending = vec![(NodeId::ROOT, Vec::new(), 0)];
        while let Some((id, path, depth)) = pending.pop() {
            if depth > self.limits.depth {
                return Err(WalkError::Entry { path, reason: "too many directories above it" });
            }
            let directory = self.open_directory(&path)?;
            // A link's own attributes can be read by a name alone: here, by the last one.
            rustix::process::fchdir(&directory).map_err(read_error("enter", &path))?;
            for name in self.names(&directory, &path)? {
                let child_path = match path.as_slice() {
                    [] => name.clone(),
                    path => [path, b"/", &name].concat(),
                };
                let child = self.add(&directory, &name, &child_path)?;
                self.tree.link(id, &name, child)?;
                if self.tree.is_directory(child) {
                    pending.push((child, child_path, depth + 1));
                }
            }
        }
        Ok(())
    }

    fn open_directory(&self, path: &[u8]) -> Result<OwnedFd, WalkError> {
        let path_or_dot = if path.is_empty() { b"." } else { path };
        rustix::fs::openat2(
            &self.root,
            path_or_dot,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
        .map_err(read_error("open the directory", path))
    }

    /// Sorted, so that equal trees give equal images.
    fn names(&mut self, directory: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, WalkError> {
        let failed = read_error("list", path);
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(WalkError::TooMany { limit: self.limits.entries });
            }
            names.push(name.to_vec());
        }
        names.sort();
        Ok(names)
    }

    fn add(&mut self, directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<NodeId, WalkError> {
        let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(read_error("look at", path))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let several = kind != FileType::Directory && stat.st_nlink > 1;
        if several && let Some(&known) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            return Ok(known);
        }
        let metadata = self.metadata(name, path, &stat)?;
        let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let kind = match kind {
            FileType::Directory => NodeKind::Directory(Default::default()),
            FileType::RegularFile => {
                NodeKind::File(self.take_data(directory, name, path, &metadata.xattrs)?)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new())
                    .map_err(read_error("read the link", path))?;
                NodeKind::Symlink(target.to_bytes().into())
            }
            FileType::CharacterDevice => NodeKind::CharDevice { major, minor },
            FileType::BlockDevice => NodeKind::BlockDevice { major, minor },
            FileType::Fifo => NodeKind::Fifo,
            FileType::Socket => NodeKind::Socket,
            FileType::Unknown => {
                let path = path.to_vec();
                return Err(WalkError::Entry { path, reason: "a file of unknown type" });
            }
        };
        let id = self.tree.add(kind, metadata)?;
        if several {
            self.links.insert((stat.st_dev, stat.st_ino), id);
        }
        Ok(id)
    }

    fn take_data(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        path: &[u8],
        xattrs: &[Xattr],
    ) -> Result<crate::tree::FileData, WalkError> {
        // NONBLOCK: what was a file a moment ago may be a FIFO now.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())
            .map_err(read_error("open", path))?;
        let stat = rustix::fs::fstat(&file).map_err(read_error("look at", path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let path = path.to_vec();
            return Err(WalkError::Entry { path, reason: "it changed while it was read" });
        }
        let size = stat.st_size.max(0) as u64;
        if size > self.limits.file_bytes {
            let path = path.to_vec();
            return Err(WalkError::Entry { path, reason: "a file that is too large" });
        }
        self.file_bytes += size;
        let sparse = (stat.st_blocks.max(0) as u64).saturating_mul(512) < size;
        let segments = if sparse { data_segments(file.as_fd(), size) } else { None };
        let mut source = FileContent {
            file: File::from(file),
            segments: segments.clone().unwrap_or_else(|| vec![Segment { offset: 0, length: size }]),
            next: 0,
            used: 0,
            path,
        };
        self.data.write_file(size, segments.as_deref(), xattrs, &mut source)
    }

    /// Of `name` in the working directory.
    fn metadata(&self, name: &[u8], path: &[u8], stat: &Stat) -> Result<Metadata, WalkError> {
        let mut xattrs = read_xattrs(name).map_err(read_error("read attributes of", path))?;
        xattrs.retain(|(name, value)| {
            let overlay = name.starts_with(b"trusted.overlay.") && **name != *OPAQUE_XATTR;
            !overlay && is_representable(name, value)
        });
        let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        if bytes > self.limits.xattr_bytes {
            let (path, reason) = (path.to_vec(), "extended attributes that are too large");
            return Err(WalkError::Entry { path, reason });
        }
        Ok(Metadata {
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 },
            xattrs,
        })
    }
}

fn read_error<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl Fn(E) -> WalkError {
    move |error| WalkError::Read { action, path: path.to_vec(), source: error.into() }
}

/// `None` where the file system cannot tell holes from data.
fn data_segments(file: std::os::fd::BorrowedFd<'_>, size: u64) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(position)) {
            Ok(start) => start.min(size),
            Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start)).ok()?.min(size);
        if end <= start {
            break;
        }
        segments.push(Segment { offset: start, length: end - start });
        position = end;
    }
    Some(segments)
}

/// All extended attributes of a path that is not followed.
fn read_xattrs(path: &[u8]) -> io::Result<Vec<Xattr>> {
    let list = match read_growing(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut xattrs = Vec::new();
    for name in list.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match read_growing(|buffer| rustix::fs::lgetxattr(path, name, buffer)) {
            Ok(value) => xattrs.push((name.into(), value.into())),
            // Removed in the meantime, or listed but not readable (user.* on a link).
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

/// The kernel's own limit is 64 KiB, for a list as for a value.
fn read_growing(
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 512];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 16 => buffer.resize(1 << 16, 0),
            Err(error) => return Err(error),
        }
    }
}

/// A file's segments, one after the other.
struct FileContent<'p> {
    file: File,
    segments: Vec<Segment>,
    next: usize,
    used: u64,
    path: &'p [u8],
}

impl ReadData for FileContent<'_> {
    type Error = WalkError;

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, WalkError> {
        while let Some(segment) = self.segments.get(self.next) {
            let left = segment.length - self.used;
            if left == 0 {
                self.next += 1;
                self.used = 0;
                continue;
            }
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let count = self
                .file
                .read_at(&mut buffer[..want], segment.offset + self.used)
                .map_err(read_error("read", self.path))?;
            if count == 0 {
                let path = self.path.to_vec();
                return Err(WalkError::Entry { path, reason: "it shrank while it was read" });
            }
            self.used += count as u64;
            return Ok(count);
        }
        Ok(0)
    }
}
