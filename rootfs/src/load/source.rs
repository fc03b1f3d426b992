//! Where an image comes from: a directory, or a tar archive with random access.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LoadError;
use crate::compress::{Compression, HEAD_BYTES};
use crate::limits::Limits;
use crate::progress::Progress;
use crate::store::Store;
use crate::tar::{EntryKind, Reader, TarError};
use crate::unpack::{UnpackError, expand};

/// What [`Store::load`] reads.
pub enum LoadSource<'a> {
    /// A directory with an OCI layout, or an archive.
    Path(PathBuf),
    /// An archive, such as standard input.
    Reader(Box<dyn Read + 'a>),
}

/// More files than that are no image.
const MAX_FILES: usize = 100_000;
const MAX_LINKS: usize = 16;

/// Named files.
pub(super) enum Source {
    Directory(PathBuf),
    Archive { file: Arc<File>, files: HashMap<String, Place> },
}

pub(super) enum Place {
    Data {
        offset: u64,
        length: u64,
    },
    /// Cleaned, relative to the archive's root.
    Link(String),
}

impl Source {
    /// Opens `source`; an archive that is compressed or has no end yet is spooled to a
    /// nameless file of the store.
    pub(super) fn open(
        source: LoadSource<'_>,
        store: &Store,
        progress: &dyn Progress,
    ) -> Result<Source, LoadError> {
        match source {
            LoadSource::Path(path) => {
                let failed = |source| LoadError::Open { path: path.clone(), source };
                if fs::metadata(&path).map_err(failed)?.is_dir() {
                    return Ok(Source::Directory(path));
                }
                let file = open_regular(&path).map_err(failed)?;
                let mut head = [0; HEAD_BYTES];
                let length = file.read_at(&mut head, 0).map_err(LoadError::Read)?;
                match Compression::detect(&head[..length]) {
                    Ok(Compression::None) => Source::index(file, store.limits()),
                    _ => Source::index(spool(&file, store, progress)?, store.limits()),
                }
            }
            LoadSource::Reader(reader) => {
                Source::index(spool(reader, store, progress)?, store.limits())
            }
        }
    }

    fn index(mut file: File, limits: &Limits) -> Result<Source, LoadError> {
        file.rewind().map_err(LoadError::Read)?;
        let length = file.metadata().map_err(LoadError::Read)?.len();
        let mut reader = Reader::new(io::BufReader::new(&file), limits.tar());
        let mut files = HashMap::new();
        while let Some(entry) = reader.next_entry().map_err(LoadError::Archive)? {
            if entry.data_offset.saturating_add(entry.data_bytes) > length {
                return Err(LoadError::Archive(TarError::Truncated { at: length }));
            }
            // Layers are large: seeking beats reading them.
            reader.seek_past_data().map_err(LoadError::Archive)?;
            if entry.path.len() > limits.path_bytes {
                return Err(LoadError::LongName { limit: limits.path_bytes });
            }
            let place = match entry.kind {
                EntryKind::File { segments: None, .. } => {
                    Place::Data { offset: entry.data_offset, length: entry.data_bytes }
                }
                EntryKind::Symlink { target } | EntryKind::HardLink { target }
                    if target.len() > limits.path_bytes =>
                {
                    return Err(LoadError::LongName { limit: limits.path_bytes });
                }
                EntryKind::Symlink { target } => {
                    let parent = parent_of(&entry.path);
                    match clean(&[parent, b"/", &target].concat()) {
                        Some(target) => Place::Link(target),
                        None => continue,
                    }
                }
                EntryKind::HardLink { target } => match clean(&target) {
                    Some(target) => Place::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            let Some(name) = clean(&entry.path) else { continue };
            files.insert(name, place);
            if files.len() > MAX_FILES {
                return Err(LoadError::TooMany { what: "files in the archive", limit: MAX_FILES });
            }
        }
        Ok(Source::Archive { file: Arc::new(file), files })
    }

    /// Opens a file, or `None` if there is none of that name.
    pub(super) fn file(&self, name: &str) -> Result<Option<Section>, LoadError> {
        // Names come from documents inside the image.
        let Some(name) = clean(name.as_bytes()) else {
            return Err(LoadError::BadName { name: name.chars().take(300).collect() });
        };
        match self {
            Source::Directory(root) => match open_regular(&root.join(&name)) {
                Ok(file) => {
                    let length = file.metadata().map_err(LoadError::Read)?.len();
                    Ok(Some(Section { file: Arc::new(file), position: 0, end: length }))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(LoadError::Open { path: root.join(name), source }),
            },
            Source::Archive { file, files } => {
                let mut name = name.as_str();
                for _ in 0..MAX_LINKS {
                    match files.get(name) {
                        None => return Ok(None),
                        Some(Place::Link(target)) => name = target,
                        Some(Place::Data { offset, length }) => {
                            let (position, end) = (*offset, offset + length);
                            return Ok(Some(Section { file: Arc::clone(file), position, end }));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    /// A whole small file.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let Some(section) = self.file(name)? else { return Ok(None) };
        if section.len() > limit {
            let (name, bytes) = (name.to_owned(), section.len());
            return Err(LoadError::DocumentTooLarge { name, bytes, limit });
        }
        let mut data = Vec::new();
        section.take(limit + 1).read_to_end(&mut data).map_err(LoadError::Read)?;
        Ok(Some(data))
    }
}

/// A stretch of a file, with its own position.
pub(crate) struct Section {
    file: Arc<File>,
    position: u64,
    end: u64,
}

impl Section {
    pub(crate) fn len(&self) -> u64 {
        self.end - self.position
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.len()).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..want], self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

/// Without waiting for a FIFO's other end.
fn open_regular(path: &Path) -> io::Result<File> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    Ok(file)
}

/// The archive as a nameless file, decompressed.
fn spool(reader: impl Read, store: &Store, progress: &dyn Progress) -> Result<File, LoadError> {
    let failed = |error| LoadError::spool(store.root(), error);
    let mut file = tempfile::tempfile_in(store.root()).map_err(failed)?;
    let mut step = progress.step("reading", None);
    let limits = store.limits();
    let sink = |data: &[u8]| {
        step.advance(data.len() as u64);
        io::Write::write_all(&mut file, data).map_err(UnpackError::Copy)
    };
    expand(store.unpacker(), reader, limits, limits.archive_bytes, sink).map_err(|error| {
        match error {
            UnpackError::Copy(error) => failed(error),
            UnpackError::Read(error) => LoadError::Read(error),
            error => LoadError::Decompress(error),
        }
    })?;
    step.done("done");
    Ok(file)
}

fn parent_of(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(b"", |slash| &path[..slash])
}

/// A relative path without `.` and `..`; `None` if it leaves the root or is no UTF-8.
fn clean(path: &[u8]) -> Option<String> {
    let mut names: Vec<&str> = Vec::new();
    for name in std::str::from_utf8(path).ok()?.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()?),
            name => names.push(name),
        }
    }
    Some(names.join("/"))
}
