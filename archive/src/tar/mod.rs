//! The one tar reader: strict, streaming and bounded.
//!
//! Reads ustar, PAX and GNU archives (long names, all sparse formats) as Go's `archive/tar`
//! does, which is what other engines see; where it would guess, this one refuses. Nothing
//! here interprets a path.

mod header;
mod pax;
mod sparse;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod writer;

use std::io::{self, BufReader, Read, Seek};

use thiserror::Error;

use self::header::{BLOCK, Header};
use self::pax::Pax;
pub use self::sparse::Segment;
pub use self::writer::Writer;

/// Of one PAX header or GNU long name.
const MAX_META_BYTES: u64 = 1 << 20;

#[derive(Debug, Error)]
pub enum TarError {
    #[error("cannot read the archive")]
    Io(#[from] io::Error),
    #[error("the archive ends in the middle of an entry, at byte {at}")]
    Truncated { at: u64 },
    #[error("there is no tar header at byte {at}: its checksum is wrong")]
    Checksum { at: u64 },
    #[error("the tar header at byte {at} has an invalid {field}")]
    Field { field: &'static str, at: u64 },
    #[error("the tar entry at byte {at} has the unsupported type {:?}", *.kind as char)]
    Kind { kind: u8, at: u64 },
    #[error("the extended header before byte {at} is malformed: {what}")]
    Extended { what: &'static str, at: u64 },
    #[error("the sparse file at byte {at} is malformed: {what}")]
    Sparse { what: &'static str, at: u64 },
    #[error("the archive has more than {limit} {what}, the limit, at byte {at}")]
    Limit { what: &'static str, limit: u64, at: u64 },
}

/// Caps on what one archive may make its reader do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TarLimits {
    /// Stored bytes of one entry.
    pub entry_bytes: u64,
    /// Headers, extended ones included.
    pub entries: u64,
}

/// Seconds and nanoseconds since 1970; the nanoseconds always count upwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// An extended attribute: name and value.
pub type Xattr = (Box<[u8]>, Box<[u8]>);

#[derive(Clone, Debug)]
pub struct Entry {
    /// As it stands in the archive, without NUL bytes.
    pub path: Vec<u8>,
    pub kind: EntryKind,
    /// Permission bits, at most 0o7777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Timestamp,
    pub xattrs: Vec<Xattr>,
    /// Where the data begins in the archive, and how many bytes of it there are.
    pub data_offset: u64,
    pub data_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Without `segments` the data is the content.
    File {
        size: u64,
        segments: Option<Vec<Segment>>,
    },
    HardLink {
        target: Vec<u8>,
    },
    Symlink {
        target: Vec<u8>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Directory,
    Fifo,
}

/// Reads an archive entry by entry.
pub struct Reader<R> {
    inner: R,
    limits: TarLimits,
    /// Bytes read so far.
    offset: u64,
    /// Of the current entry's data, and the padding behind it.
    remaining: u64,
    padding: u64,
    headers: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    pub fn new(inner: R, limits: TarLimits) -> Self {
        Reader { inner, limits, offset: 0, remaining: 0, padding: 0, headers: 0, ended: false }
    }

    /// The next entry, past what is unread of the current one.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_rest()?;
        let mut pax: Option<Pax> = None;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            let at = self.offset;
            let Some(header) = self.read_header()? else {
                self.ended = true;
                return match (&pax, &long_name, &long_link) {
                    (None, None, None) => Ok(None),
                    _ => Err(TarError::Truncated { at }),
                };
            };
            match header.kind() {
                b'x' => pax = Some(Pax::parse(&self.read_meta(&header)?, at)?),
                // Docker and containerd take nothing from global headers.
                b'g' => drop(self.read_meta(&header)?),
                b'L' => long_name = Some(until_nul(self.read_meta(&header)?)),
                b'K' => long_link = Some(until_nul(self.read_meta(&header)?)),
                _ => {
                    let names = Names { pax: pax.unwrap_or_default(), long_name, long_link };
                    return self.entry(&header, names, at).map(Some);
                }
            }
        }
    }

    /// Reads of the current entry's data; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let want = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.read_some(&mut buffer[..want])?;
        if count == 0 {
            return Err(TarError::Truncated { at: self.offset });
        }
        self.remaining -= count as u64;
        Ok(count)
    }

    /// What is read from; positioned behind the last header or data that was read.
    pub fn into_inner(self) -> R {
        self.inner
    }

    fn entry(&mut self, header: &Header, names: Names, at: u64) -> Result<Entry, TarError> {
        let field = |field| TarError::Field { field, at };
        let Names { mut pax, long_name, long_link } = names;
        if (long_name.is_some() && pax.path.is_some())
            || (long_link.is_some() && pax.link.is_some())
        {
            return Err(TarError::Extended { what: "two long names", at });
        }
        let path = pax.path.take().or(long_name).unwrap_or_else(|| header.path());
        let link = pax.link.take().or(long_link).unwrap_or_else(|| header.link());
        let stored = match pax.size {
            Some(size) => size,
            None => header.size().ok_or(field("size"))?,
        };
        let mut kind_byte = header.kind();
        if kind_byte == 0 {
            kind_byte = if path.ends_with(b"/") { b'5' } else { b'0' };
        }
        let device = || -> Result<(u32, u32), TarError> {
            let number = |value: Option<u64>, limit: u32| {
                value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value <= limit)
            };
            // The widths of Linux's dev_t.
            let major = number(header.device_major(), 0xfff).ok_or(field("device major"))?;
            let minor = number(header.device_minor(), 0xf_ffff).ok_or(field("device minor"))?;
            Ok((major, minor))
        };
        let mut data_bytes = 0;
        let kind = match kind_byte {
            b'0' | b'7' | b'S' => {
                data_bytes = stored;
                self.begin_data(stored, at)?;
                self.file_kind(header, &mut pax, kind_byte, at)?
            }
            b'1' => EntryKind::HardLink { target: link },
            b'2' => EntryKind::Symlink { target: link },
            b'3' => device().map(|(major, minor)| EntryKind::CharDevice { major, minor })?,
            b'4' => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            kind => return Err(TarError::Kind { kind, at }),
        };
        let consumed = data_bytes - self.remaining;
        let id = |value: Option<u64>| {
            // The highest id means "none" to the kernel.
            value.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != u32::MAX)
        };
        Ok(Entry {
            path: pax.sparse.name.take().unwrap_or(path),
            kind,
            mode: (header.mode().ok_or(field("mode"))? & 0o7777) as u16,
            uid: id(pax.uid.or_else(|| header.uid())).ok_or(field("user id"))?,
            gid: id(pax.gid.or_else(|| header.gid())).ok_or(field("group id"))?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => Timestamp {
                    seconds: header.mtime().ok_or(field("modification time"))?,
                    nanoseconds: 0,
                },
            },
            xattrs: std::mem::take(&mut pax.xattrs),
            data_offset: self.offset,
            data_bytes: data_bytes - consumed,
        })
    }

    /// The kind of a regular file; reads a sparse map that precedes the data.
    fn file_kind(
        &mut self,
        header: &Header,
        pax: &mut Pax,
        kind: u8,
        at: u64,
    ) -> Result<EntryKind, TarError> {
        let (segments, size) = if kind == b'S' {
            sparse::read_old_gnu(self, header, at)?
        } else if pax.sparse.is_version_1() {
            let size = pax.sparse.real_size;
            let size = size.ok_or(TarError::Sparse { what: "no real size", at })?;
            (sparse::read_map(self, at)?, size)
        } else if let Some(map) = pax.sparse.take_map(at)? {
            map
        } else {
            return Ok(EntryKind::File { size: self.remaining, segments: None });
        };
        sparse::check(&segments, size, self.remaining, at)?;
        Ok(EntryKind::File { size, segments: Some(segments) })
    }

    fn begin_data(&mut self, bytes: u64, at: u64) -> Result<(), TarError> {
        if bytes > self.limits.entry_bytes {
            let limit = self.limits.entry_bytes;
            return Err(TarError::Limit { what: "bytes in one file", limit, at });
        }
        self.remaining = bytes;
        self.padding = bytes.next_multiple_of(BLOCK as u64) - bytes;
        Ok(())
    }

    /// The data of an entry that describes the next one.
    fn read_meta(&mut self, header: &Header) -> Result<Vec<u8>, TarError> {
        let at = self.offset;
        let size = header.size().ok_or(TarError::Field { field: "size", at })?;
        if size > MAX_META_BYTES {
            let what = "bytes in one extended header";
            return Err(TarError::Limit { what, limit: MAX_META_BYTES, at });
        }
        self.begin_data(size, at)?;
        // At most MAX_META_BYTES, checked above.
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data)?;
        self.remaining = 0;
        self.skip_rest()?;
        Ok(data)
    }

    /// `None` at the end: two zero blocks, one before the end of file, or the end of file
    /// at a block's boundary.
    fn read_header(&mut self) -> Result<Option<Header>, TarError> {
        let at = self.offset;
        let Some(block) = self.read_block()? else { return Ok(None) };
        self.headers += 1;
        if self.headers > self.limits.entries {
            let limit = self.limits.entries;
            return Err(TarError::Limit { what: "entries", limit, at });
        }
        if block.iter().any(|&byte| byte != 0) {
            return Header::parse(block).map(Some).ok_or(TarError::Checksum { at });
        }
        match self.read_block()? {
            Some(second) if second.iter().any(|&byte| byte != 0) => Err(TarError::Checksum { at }),
            _ => Ok(None),
        }
    }

    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.read_some(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(TarError::Truncated { at: self.offset }),
                count => filled += count,
            }
        }
        Ok(Some(block))
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<(), TarError> {
        while !buffer.is_empty() {
            match self.read_some(buffer)? {
                0 => return Err(TarError::Truncated { at: self.offset }),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        loop {
            match self.inner.read(buffer) {
                Ok(count) => {
                    self.offset += count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let mut left = self.remaining + self.padding;
        let mut scratch = [0; 8192];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
            match self.read_some(&mut scratch[..want])? {
                // Go's writer and reader agree on padding; a missing one at the very end is
                // seen in the wild and harmless.
                0 if left <= self.padding => break,
                0 => return Err(TarError::Truncated { at: self.offset }),
                count => left -= count as u64,
            }
        }
        self.remaining = 0;
        self.padding = 0;
        Ok(())
    }
}

impl<R: Read + Seek> Reader<BufReader<R>> {
    /// Passes the current entry's data without reading it. The caller knows that the data
    /// is there.
    pub fn seek_past_data(&mut self) -> Result<(), TarError> {
        let length = self.remaining + self.padding;
        let relative =
            i64::try_from(length).map_err(|_| TarError::Truncated { at: self.offset })?;
        self.inner.seek_relative(relative)?;
        self.offset += length;
        self.remaining = 0;
        self.padding = 0;
        Ok(())
    }
}

/// What extended headers said about the entry they precede.
struct Names {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests;
