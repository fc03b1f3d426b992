//! An archive into a directory tree, which it never leaves.
//!
//! The archive is foreign, and so may be what is in the tree already. Each entry's parent is
//! opened beneath the tree's root with symbolic links resolved inside it, or with none
//! allowed; what is at the entry's own name is never followed, and replaced rather than
//! written to.

use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    },
    io::Errno,
};
use thiserror::Error;

use crate::{
    name::display,
    placing::PlacingError,
    tar::{Entry, EntryKind, Reader, Segment, TarError, TarLimits, Timestamp},
};

const BUFFER_BYTES: usize = 128 << 10;
/// The kernel's PATH_MAX, its NUL included.
const MAX_PATH_BYTES: usize = 4095;
/// More entries than any file system that is worth copying has; each directory among them
/// is remembered until the end.
const LIMITS: TarLimits = TarLimits { entry_bytes: 16 << 40, entries: 20_000_000 };

#[derive(Debug, Error)]
pub enum UnpackError {
    #[error(transparent)]
    Tar(#[from] TarError),
    #[error(transparent)]
    Placing(#[from] PlacingError),
    #[error("{action} \"{}\"", display(.path))]
    Write { action: &'static str, path: Vec<u8>, source: io::Error },
    #[error("entry \"{}\": {reason}", display(.path))]
    Entry { path: Vec<u8>, reason: &'static str },
    #[error("cannot overwrite directory \"{}\" with non-directory", display(.0))]
    DirectoryInTheWay(Vec<u8>),
    #[error("cannot overwrite non-directory \"{}\" with directory", display(.0))]
    FileInTheWay(Vec<u8>),
}

/// What symbolic links on the way to an entry may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Lead anywhere inside the root, as for a process whose root it is.
    InsideRoot,
    /// Nothing: an entry behind one is an error.
    Refused,
}

/// What of an entry is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Its owner, with the set-id bits that go with it; else this process's.
    pub owner: bool,
    /// Device nodes; else they are left out and counted.
    pub devices: bool,
    /// Attributes that give rights: file capabilities.
    pub capabilities: bool,
}

/// Where the entries go.
#[derive(Clone, Copy, Debug)]
pub struct UnpackTarget<'a> {
    pub root: BorrowedFd<'a>,
    /// In front of every entry's path; inside the root, and there.
    pub directory: &'a [u8],
    pub links: Links,
    pub keep: Keep,
}

/// What became of an archive.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    /// Device nodes that were left out: how many, and the first.
    pub devices_left_out: u64,
    pub first_device: Option<Vec<u8>>,
}

/// Gives each entry's path its place below the target's directory, or refuses it.
pub type Rename<'a> = &'a mut dyn FnMut(&Entry) -> Result<Vec<u8>, UnpackError>;

/// Unpacks the whole of `archive`, what follows its end included, so that its writer is
/// never left with a closed pipe. After an error what was unpacked stays.
pub fn unpack(
    archive: impl Read,
    target: UnpackTarget<'_>,
    rename: Rename<'_>,
) -> Result<Unpacked, UnpackError> {
    unpack_where(archive, |_| Ok(target), rename)
}

/// As [`unpack`], into what is chosen for the first entry. An archive without any leaves
/// nothing to choose.
pub fn unpack_where<'a>(
    archive: impl Read,
    choose: impl FnOnce(&Entry) -> Result<UnpackTarget<'a>, UnpackError>,
    rename: Rename<'_>,
) -> Result<Unpacked, UnpackError> {
    let mut reader = Reader::new(io::BufReader::with_capacity(BUFFER_BYTES, archive), LIMITS);
    let Some(first) = reader.next_entry()? else { return Ok(Unpacked::default()) };
    let mut unpacker = Unpacker {
        reader,
        target: choose(&first)?,
        unpacked: Unpacked::default(),
        directories: Vec::new(),
        buffer: vec![0; BUFFER_BYTES],
    };
    let mut next = Some(first);
    while let Some(entry) = next {
        let path = rename(&entry)?;
        unpacker.entry(&entry, &path, rename)?;
        next = unpacker.reader.next_entry()?;
    }
    unpacker.finish_directories()?;
    io::copy(&mut unpacker.reader.into_inner(), &mut io::sink()).map_err(TarError::Io)?;
    Ok(unpacker.unpacked)
}

struct Unpacker<'a, R> {
    reader: Reader<R>,
    target: UnpackTarget<'a>,
    unpacked: Unpacked,
    /// Whose modes and times are set at the end, as what is made in them changes both.
    directories: Vec<(Vec<u8>, Finish)>,
    buffer: Vec<u8>,
}

/// What a directory gets at the end.
struct Finish {
    mode: Mode,
    mtime: Timestamp,
}

/// An entry's place: the open directory, and the name in it.
struct Place {
    parent: OwnedFd,
    name: Vec<u8>,
    /// For messages.
    path: Vec<u8>,
}

impl<R: Read> Unpacker<'_, R> {
    fn entry(&mut self, entry: &Entry, path: &[u8], rename: Rename<'_>) -> Result<(), UnpackError> {
        self.unpacked.entries += 1;
        let Some(place) = self.place(path)? else {
            // The directory itself.
            return match entry.kind {
                EntryKind::Directory => {
                    self.directories.push((Vec::new(), self.finish_of(entry)));
                    Ok(())
                }
                _ => Err(refused(entry, "it names the directory it is unpacked into")),
            };
        };
        if entry.kind == EntryKind::Directory {
            return self.directory(entry, &place, path);
        }
        if is_device(&entry.kind) && !self.target.keep.devices {
            self.unpacked.devices_left_out += 1;
            self.unpacked.first_device.get_or_insert_with(|| entry.path.clone());
            return Ok(());
        }
        // The link's target may be what is replaced.
        let link = match &entry.kind {
            EntryKind::HardLink { target } => Some(self.link_target(entry, target, rename)?),
            _ => None,
        };
        if link.as_ref().is_some_and(|link| same_file(link, &place)) {
            return Ok(());
        }
        clear(&place)?;
        match &entry.kind {
            EntryKind::File { size, segments } => {
                self.file(entry, &place, *size, segments.as_deref())
            }
            EntryKind::HardLink { .. } => {
                let link = link.expect("looked up above");
                let made = rustix::fs::linkat(
                    &link.parent,
                    &link.name[..],
                    &place.parent,
                    &place.name[..],
                    AtFlags::empty(),
                );
                made.map_err(place.failed("make the hard link"))
            }
            EntryKind::Symlink { target } => {
                rustix::fs::symlinkat(&target[..], &place.parent, &place.name[..])
                    .map_err(place.failed("make the link"))?;
                self.owner_and_time(entry, &place)
            }
            EntryKind::CharDevice { major, minor } => {
                self.node(entry, &place, FileType::CharacterDevice, (*major, *minor))
            }
            EntryKind::BlockDevice { major, minor } => {
                self.node(entry, &place, FileType::BlockDevice, (*major, *minor))
            }
            EntryKind::Fifo => self.node(entry, &place, FileType::Fifo, (0, 0)),
            EntryKind::Directory => unreachable!("handled above"),
        }
    }

    /// Opens the parent of `path`, made as far as missing; `None` for the target itself.
    fn place(&self, path: &[u8]) -> Result<Option<Place>, UnpackError> {
        let names = clean(path)?;
        let Some((name, parents)) = names.split_last() else { return Ok(None) };
        let below = parents.join(&b'/');
        let parent = self.make_directories(parents, &below)?;
        Ok(Some(Place { parent, name: name.to_vec(), path: path.to_vec() }))
    }

    fn make_directories(&self, names: &[&[u8]], below: &[u8]) -> Result<OwnedFd, UnpackError> {
        match self.open_directory(below) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(|error| self.unreachable(below, error)),
        }
        let mut walked = Vec::new();
        for name in names {
            let parent =
                self.open_directory(&walked).map_err(|error| self.unreachable(&walked, error))?;
            match rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(failed("make the directory", below)(error)),
            }
            if !walked.is_empty() {
                walked.push(b'/');
            }
            walked.extend_from_slice(name);
        }
        self.open_directory(below).map_err(|error| self.unreachable(below, error))
    }

    fn open_directory(&self, below: &[u8]) -> Result<OwnedFd, Errno> {
        let base: &[u8] = match self.target.directory {
            b"" => b".",
            directory => directory,
        };
        let path = match below {
            b"" => base.to_vec(),
            below => [base, b"/", below].concat(),
        };
        let resolve = match self.target.links {
            Links::InsideRoot => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            Links::Refused => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            match rustix::fs::openat2(self.target.root, &path[..], flags, Mode::empty(), resolve) {
                // A rename elsewhere raced with the walk.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
    }

    fn unreachable(&self, below: &[u8], error: Errno) -> UnpackError {
        match error {
            Errno::LOOP if self.target.links == Links::Refused => UnpackError::Entry {
                path: below.to_vec(),
                reason: "a symbolic link is in the way, and what is behind it is not written to",
            },
            error => failed("open the directory", below)(error),
        }
    }

    /// Where a hard link points: another entry's place, renamed as that was.
    fn link_target(
        &self,
        entry: &Entry,
        target: &[u8],
        rename: Rename<'_>,
    ) -> Result<Place, UnpackError> {
        let path = rename(&Entry { path: target.to_vec(), ..entry.clone() })?;
        let names = clean(&path)?;
        let (name, parents) =
            names.split_last().ok_or_else(|| refused(entry, "a hard link to a directory"))?;
        let below = parents.join(&b'/');
        let parent =
            self.open_directory(&below).map_err(|error| self.unreachable(&below, error))?;
        Ok(Place { parent, name: name.to_vec(), path })
    }

    fn directory(&mut self, entry: &Entry, place: &Place, path: &[u8]) -> Result<(), UnpackError> {
        match rustix::fs::mkdirat(&place.parent, &place.name[..], Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) if kind_at(place)? == Some(FileType::Directory) => {}
            Err(Errno::EXIST) => return Err(UnpackError::FileInTheWay(place.path.clone())),
            Err(error) => return Err(place.failed("make the directory")(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&place.parent, &place.name[..], flags, Mode::empty())
            .map_err(place.failed("open the directory"))?;
        if self.target.keep.owner {
            rustix::fs::fchown(&made, uid(entry), gid(entry)).map_err(place.failed("own"))?;
        }
        self.attributes(entry, &made, place)?;
        self.directories.push((path.to_vec(), self.finish_of(entry)));
        Ok(())
    }

    fn finish_of(&self, entry: &Entry) -> Finish {
        Finish { mode: self.mode(entry), mtime: entry.mtime }
    }

    /// From the last to the first: a parent's time is changed by nothing after it.
    fn finish_directories(&mut self) -> Result<(), UnpackError> {
        for (path, finish) in std::mem::take(&mut self.directories).into_iter().rev() {
            let below = clean(&path)?.join(&b'/');
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = self
                .open_directory(&below)
                .and_then(|directory| rustix::fs::openat(&directory, ".", flags, Mode::empty()));
            let directory = match directory {
                // A later entry has put something else there.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                other => other.map_err(failed("open the directory", &path))?,
            };
            if !below.is_empty() || self.target.keep.owner {
                rustix::fs::fchmod(&directory, finish.mode)
                    .map_err(failed("set the mode of", &path))?;
            }
            rustix::fs::futimens(&directory, &times(finish.mtime))
                .map_err(failed("set the time of", &path))?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        place: &Place,
        size: u64,
        segments: Option<&[Segment]>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&place.parent, &place.name[..], flags, mode)
            .map_err(place.failed("make"))?;
        let mut file = std::fs::File::from(file);
        match segments {
            None => while self.piece(&mut file, u64::MAX, place)? > 0 {},
            Some(segments) => self.sparse(&mut file, size, segments, place)?,
        }
        if self.target.keep.owner {
            rustix::fs::fchown(&file, uid(entry), gid(entry)).map_err(place.failed("own"))?;
        }
        self.attributes(entry, &file, place)?;
        rustix::fs::fchmod(&file, self.mode(entry)).map_err(place.failed("set the mode of"))?;
        rustix::fs::futimens(&file, &times(entry.mtime)).map_err(place.failed("set the time of"))
    }

    fn sparse(
        &mut self,
        file: &mut std::fs::File,
        size: u64,
        segments: &[Segment],
        place: &Place,
    ) -> Result<(), UnpackError> {
        for segment in segments {
            rustix::fs::seek(&*file, rustix::fs::SeekFrom::Start(segment.offset))
                .map_err(place.failed("write"))?;
            let mut left = segment.length;
            while left > 0 {
                match self.piece(file, left, place)? {
                    0 => break,
                    count => left -= count,
                }
            }
        }
        file.set_len(size).map_err(place.failed("write"))
    }

    /// Copies a buffer full of the entry's data, at most `most` bytes; 0 at its end.
    fn piece(
        &mut self,
        file: &mut std::fs::File,
        most: u64,
        place: &Place,
    ) -> Result<u64, UnpackError> {
        let want = usize::try_from(most).unwrap_or(usize::MAX).min(self.buffer.len());
        let count = self.reader.read_data(&mut self.buffer[..want])?;
        file.write_all(&self.buffer[..count]).map_err(place.failed("write"))?;
        Ok(count as u64)
    }

    fn node(
        &self,
        entry: &Entry,
        place: &Place,
        kind: FileType,
        (major, minor): (u32, u32),
    ) -> Result<(), UnpackError> {
        let device = rustix::fs::makedev(major, minor);
        let mode = self.mode(entry);
        rustix::fs::mknodat(&place.parent, &place.name[..], kind, mode, device)
            .map_err(place.failed("make"))?;
        self.owner_and_time(entry, place)?;
        // It is new, and in a directory that is held: nothing else has its name, but for who
        // may write there anyway.
        rustix::fs::chmodat(&place.parent, &place.name[..], mode, AtFlags::empty())
            .map_err(place.failed("set the mode of"))
    }

    /// By name and without following it.
    fn owner_and_time(&self, entry: &Entry, place: &Place) -> Result<(), UnpackError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if self.target.keep.owner {
            rustix::fs::chownat(&place.parent, &place.name[..], uid(entry), gid(entry), flags)
                .map_err(place.failed("own"))?;
        }
        rustix::fs::utimensat(&place.parent, &place.name[..], &times(entry.mtime), flags)
            .map_err(place.failed("set the time of"))
    }

    fn attributes(
        &self,
        entry: &Entry,
        file: &impl AsFd,
        place: &Place,
    ) -> Result<(), UnpackError> {
        for (name, value) in &entry.xattrs {
            let wanted = match &**name {
                b"security.capability" => self.target.keep.capabilities,
                name => name.starts_with(b"user."),
            };
            if !wanted {
                continue;
            }
            match rustix::fs::fsetxattr(file, &**name, value, XattrFlags::empty()) {
                // A file system without them holds the content all the same.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(error) => return Err(place.failed("set an attribute of")(error)),
            }
        }
        Ok(())
    }

    fn mode(&self, entry: &Entry) -> Mode {
        // Without the owner that they stand for, set-id bits would mean another's rights.
        let allowed = if self.target.keep.owner { 0o7777 } else { 0o1777 };
        Mode::from_raw_mode(u32::from(entry.mode) & allowed)
    }
}

impl Place {
    fn failed<E: Into<io::Error>>(
        &self,
        action: &'static str,
    ) -> impl FnOnce(E) -> UnpackError + use<E> {
        failed(action, &self.path)
    }
}

fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: &[u8],
) -> impl FnOnce(E) -> UnpackError + use<E> {
    let path = path.to_vec();
    move |error| UnpackError::Write { action, path, source: error.into() }
}

fn refused(entry: &Entry, reason: &'static str) -> UnpackError {
    UnpackError::Entry { path: entry.path.clone(), reason }
}

/// The names of a path that stays below where it starts; none for that itself.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    let refuse = |reason| Err(UnpackError::Entry { path: path.to_vec(), reason });
    if path.len() > MAX_PATH_BYTES {
        return refuse("a path that is too long");
    }
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refuse("a path that goes up"),
            name => names.push(name),
        }
    }
    Ok(names)
}

fn is_device(kind: &EntryKind) -> bool {
    matches!(kind, EntryKind::CharDevice { .. } | EntryKind::BlockDevice { .. })
}

fn kind_at(place: &Place) -> Result<Option<FileType>, UnpackError> {
    match rustix::fs::statat(&place.parent, &place.name[..], AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => {
            let stat = stat.map_err(place.failed("look at"))?;
            Ok(Some(FileType::from_raw_mode(stat.st_mode)))
        }
    }
}

/// Whether both names are of one file, so that there is nothing to link.
fn same_file(left: &Place, right: &Place) -> bool {
    let stat = |place: &Place| {
        rustix::fs::statat(&place.parent, &place.name[..], AtFlags::SYMLINK_NOFOLLOW).ok()
    };
    match (stat(left), stat(right)) {
        (Some(left), Some(right)) => (left.st_dev, left.st_ino) == (right.st_dev, right.st_ino),
        _ => false,
    }
}

/// Takes away what a new file is to replace.
fn clear(place: &Place) -> Result<(), UnpackError> {
    match kind_at(place)? {
        None => Ok(()),
        Some(FileType::Directory) => Err(UnpackError::DirectoryInTheWay(place.path.clone())),
        Some(_) => match rustix::fs::unlinkat(&place.parent, &place.name[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(place.failed("replace")(error)),
        },
    }
}

fn uid(entry: &Entry) -> Option<Uid> {
    Some(Uid::from_raw(entry.uid))
}

fn gid(entry: &Entry) -> Option<Gid> {
    Some(Gid::from_raw(entry.gid))
}

fn times(mtime: Timestamp) -> Timestamps {
    let mtime = Timespec { tv_sec: mtime.seconds, tv_nsec: mtime.nanoseconds.into() };
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    Timestamps { last_access: now, last_modification: mtime }
}
