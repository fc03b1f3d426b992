//! Writes an initramfs: the "newc" cpio format (Linux, `early-userspace/buffer-format`).

use std::io::{self, Write};

/// An archive that is being written to `W`. Times and owners are 0, so that the same
/// content gives the same bytes.
pub(crate) struct Archive<W: Write> {
    out: W,
    next_inode: u32,
    written: usize,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, next_inode: 1, written: 0 }
    }

    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, 0o040_755, (0, 0), &[])
    }

    /// A regular file; `mode` are its permission bits.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, 0o100_000 | mode, (0, 0), content)
    }

    pub(crate) fn character_device(
        &mut self,
        path: &str,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> io::Result<()> {
        self.entry(path, 0o020_000 | mode, (major, minor), &[])
    }

    /// Writes the trailer and returns the output.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(
        &mut self,
        path: &str,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a file over 4 GiB"))?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let links = 1;
        let fields = [
            inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // device of the archive
            0,
            major,
            minor,
            path.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(path.as_bytes())?;
        self.put(&[0])?;
        self.pad()?;
        self.put(content)?;
        self.pad()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let padding = self.written.next_multiple_of(4) - self.written;
        self.put(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_starts_on_four_bytes_and_the_archive_ends_with_its_trailer() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<_> = text.match_indices("070701").map(|(at, _)| at % 4).collect();
        assert_eq!(starts, [0; 4]);
        assert!(text.contains("TRAILER!!!"));
    }
}
