//! Where saved files go: a tar archive or a directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

pub(crate) trait Sink {
    /// Takes a file of exactly `bytes` bytes.
    fn file(&mut self, name: &str, bytes: u64, data: &mut dyn Read) -> io::Result<()>;
    fn finish(&mut self) -> io::Result<()>;
}

/// POSIX ustar; sizes from 8 GiB on as GNU tar writes them.
pub(crate) struct TarSink<W> {
    to: W,
}

const BLOCK: u64 = 512;
/// What eleven octal digits hold.
const MAX_OCTAL: u64 = (1 << 33) - 1;

impl<W: Write> TarSink<W> {
    pub(crate) fn new(to: W) -> TarSink<W> {
        TarSink { to }
    }
}

impl<W: Write> Sink for TarSink<W> {
    fn file(&mut self, name: &str, bytes: u64, data: &mut dyn Read) -> io::Result<()> {
        self.to.write_all(&header(name, bytes))?;
        copy_exactly(data, &mut self.to, bytes)?;
        let padding = bytes.next_multiple_of(BLOCK) - bytes;
        io::copy(&mut io::repeat(0).take(padding), &mut self.to).map(drop)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.to.write_all(&[0; 2 * BLOCK as usize])?;
        self.to.flush()
    }
}

fn header(name: &str, bytes: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    // Names are ours: the longest, of a sha512, has 141 bytes.
    let split = if name.len() > 100 { name.rfind('/').unwrap_or(0) } else { 0 };
    match split {
        0 => put(0, name.as_bytes()),
        at => {
            put(345, &name.as_bytes()[..at]);
            put(0, &name.as_bytes()[at + 1..][..100.min(name.len() - at - 1)]);
        }
    }
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    match bytes <= MAX_OCTAL {
        true => put(124, format!("{bytes:011o}\0").as_bytes()),
        false => {
            put(124, &[0x80, 0, 0, 0]);
            put(128, &bytes.to_be_bytes());
        }
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub(crate) struct DirectorySink {
    directory: PathBuf,
}

impl DirectorySink {
    pub(crate) fn new(directory: &Path) -> DirectorySink {
        DirectorySink { directory: directory.to_owned() }
    }
}

impl Sink for DirectorySink {
    fn file(&mut self, name: &str, bytes: u64, data: &mut dyn Read) -> io::Result<()> {
        let path = self.directory.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = File::create(path)?;
        copy_exactly(data, &mut file, bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy_exactly(from: &mut dyn Read, to: &mut dyn Write, bytes: u64) -> io::Result<()> {
    let copied = io::copy(&mut from.take(bytes), to)?;
    if copied < bytes {
        let words = format!("a blob has {copied} bytes instead of {bytes}; load the image again");
        return Err(io::Error::new(io::ErrorKind::InvalidData, words));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::tar::{EntryKind, Reader};

    #[test]
    fn names_and_sizes_of_all_lengths_are_read_back() {
        let long = format!("blobs/sha512/{}", "ab".repeat(64));
        for name in ["x", "blobs/sha256/abc", &long[..100], &long[..112]] {
            let mut archive = Vec::new();
            let mut sink = TarSink::new(&mut archive);
            sink.file(name, 3, &mut &b"abc"[..]).unwrap();
            sink.finish().unwrap();
            assert_eq!(archive.len() % 512, 0);
            let limits = Limits::default();
            let mut reader = Reader::new(archive.as_slice(), limits.tar());
            let entry = reader.next_entry().unwrap().unwrap();
            assert_eq!(entry.path, name.as_bytes());
            assert!(matches!(entry.kind, EntryKind::File { .. }));
            assert_eq!(entry.data_bytes, 3);
        }
        let big = header("x", 1 << 34);
        let limits = Limits::default();
        let mut reader = Reader::new(&big[..], limits.tar());
        assert_eq!(reader.next_entry().unwrap().unwrap().data_bytes, 1 << 34);
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let mut sink = TarSink::new(io::sink());
        assert!(sink.file("x", 4, &mut &b"abc"[..]).is_err());
    }
}
