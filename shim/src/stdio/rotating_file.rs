//! A file that is bounded: when it is full it becomes the first of a few older ones.
//!
//! ```text
//! log ──► log.1 ──► log.2 ──► gone
//! ```
//!
//! The oldest moves first, each by one rename, so whatever moment the program is killed at,
//! every file is whole, in order, and at most a number is missing among them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::log_files::numbered;

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Of each file; all of the output is kept without it.
    pub max_bytes: Option<u64>,
    /// Files in all, the one that is written included; 0 is taken for 1. Of one file what
    /// is there is dropped when it is full.
    pub max_files: u32,
}

#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    rotation: Rotation,
    mode: u32,
    /// `None` after a rotation that could not make a new one.
    file: Option<File>,
    bytes: u64,
}

impl RotatingFile {
    /// Appends to the file at `path`, or makes it. What a program that was killed left
    /// without a line's end gets one.
    pub fn open(path: &Path, rotation: Rotation, mode: u32) -> io::Result<Self> {
        let file = open(path, mode)?;
        let bytes = file.metadata()?.len();
        let mut this = Self { path: path.to_owned(), rotation, mode, file: Some(file), bytes };
        if !this.ends_with_a_line()? {
            this.write(b"\n")?;
        }
        Ok(this)
    }

    fn ends_with_a_line(&self) -> io::Result<bool> {
        let Some(mut file) = self.file.as_ref().filter(|_| self.bytes > 0) else { return Ok(true) };
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        Ok(last == *b"\n")
    }

    /// How much the file takes before it rotates.
    pub fn room(&self) -> u64 {
        self.rotation.max_bytes.map_or(u64::MAX, |max| max.saturating_sub(self.bytes))
    }

    /// Appends `bytes`, which are never spread over two files; first rotates if they do not
    /// fit. After an error the file ends where it ended before.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && bytes.len() as u64 > self.room() {
            self.rotate()?;
        }
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            let file = open(&self.path, self.mode)?;
            self.bytes = file.metadata()?.len();
            self.file = Some(file);
        }
        let file = self.file.as_mut().expect("it was just opened");
        let written = file.write_all(bytes);
        match written {
            Ok(()) => self.bytes += bytes.len() as u64,
            // A piece of a record would spoil the next one too. If the disk is so broken
            // that this fails, there is nothing to spoil.
            Err(_) => drop(file.set_len(self.bytes)),
        }
        written
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.rotation.max_files <= 1 {
            if let Some(file) = &self.file {
                file.set_len(0)?;
            }
            self.bytes = 0;
            return Ok(());
        }
        // A number that is missing takes the move; what is older stays where it is.
        let last = self.rotation.max_files - 1;
        let free = (1..last).find(|&n| !numbered(&self.path, n).exists()).unwrap_or(last);
        for number in (1..free).rev() {
            fs::rename(numbered(&self.path, number), numbered(&self.path, number + 1))?;
        }
        fs::rename(&self.path, numbered(&self.path, 1))?;
        self.file = None;
        self.bytes = 0;
        Ok(())
    }
}

/// Never through a symlink, never waiting for a FIFO's reader.
fn open(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stdio::log_files;

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        (directory, path)
    }

    fn rotation(max_bytes: u64, max_files: u32) -> Rotation {
        Rotation { max_bytes: Some(max_bytes), max_files }
    }

    /// All that is kept, oldest first.
    fn kept(path: &Path) -> String {
        let files = log_files::oldest_first(path).unwrap();
        files.iter().map(|file| fs::read_to_string(file).unwrap()).collect()
    }

    #[test]
    fn the_newest_output_is_kept_in_as_many_files() {
        let (_directory, path) = directory();
        let mut file = RotatingFile::open(&path, rotation(20, 3), 0o640).unwrap();
        for number in 0..50 {
            file.append(format!("line {number:02}\n").as_bytes()).unwrap();
        }
        assert_eq!(kept(&path), "line 44\nline 45\nline 46\nline 47\nline 48\nline 49\n");
        assert_eq!(log_files::oldest_first(&path).unwrap().len(), 3);
        for file in log_files::oldest_first(&path).unwrap() {
            assert!(fs::metadata(file).unwrap().len() <= 20);
        }
    }

    #[test]
    fn one_file_begins_anew_when_it_is_full() {
        let (_directory, path) = directory();
        let mut file = RotatingFile::open(&path, rotation(20, 1), 0o640).unwrap();
        for number in 0..5 {
            file.append(format!("line {number:02}\n").as_bytes()).unwrap();
        }
        assert_eq!(kept(&path), "line 04\n");
        // What is longer than a file has one to itself.
        file.append(&[b'x'; 30]).unwrap();
        assert_eq!(kept(&path).len(), 30);
    }

    #[test]
    fn without_a_limit_everything_is_kept() {
        let (_directory, path) = directory();
        for _ in 0..2 {
            let mut file = RotatingFile::open(&path, Rotation::default(), 0o640).unwrap();
            file.append(b"0123456789\n").unwrap();
        }
        assert_eq!(kept(&path).len(), 22);
    }

    #[test]
    fn a_kill_within_a_rotation_loses_nothing_that_is_kept() {
        // Every state that a rotation passes through, as which files are there.
        for there in [&[0, 1, 2][..], &[0, 1], &[0, 2], &[1, 2], &[0], &[1], &[2], &[]] {
            let (_directory, path) = directory();
            let name = |number: u32| match number {
                0 => path.clone(),
                _ => numbered(&path, number),
            };
            for &number in there {
                fs::write(name(number), format!("{number}\n")).unwrap();
            }
            let before = kept(&path);
            let mut file = RotatingFile::open(&path, rotation(3, 3), 0o640).unwrap();
            assert_eq!(kept(&path), before, "{there:?}");
            file.append(b"new\n").unwrap();
            let expected = if there == [0, 1, 2] { &before[2..] } else { &before };
            assert_eq!(kept(&path), format!("{expected}new\n"), "{there:?}");
        }
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let (_directory, path) = directory();
        fs::write(&path, "torn").unwrap();
        let mut file = RotatingFile::open(&path, Rotation::default(), 0o640).unwrap();
        file.append(b"whole\n").unwrap();
        assert_eq!(kept(&path), "torn\nwhole\n");
    }

    #[test]
    fn a_full_disk_leaves_no_piece_of_a_record() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            eprintln!("skipped: there is no /dev/full");
            return;
        }
        let (_directory, path) = directory();
        let mut file = RotatingFile::open(&path, Rotation::default(), 0o640).unwrap();
        file.append(b"before\n").unwrap();
        let works = file.file.replace(OpenOptions::new().write(true).open(full).unwrap());
        file.append(b"lost\n").unwrap_err();
        file.file = works;
        file.append(b"after\n").unwrap();
        assert_eq!(kept(&path), "before\nafter\n");
    }

    #[test]
    fn symlinks_and_fifos_are_refused() {
        let (directory, path) = directory();
        std::os::unix::fs::symlink(directory.path().join("target"), &path).unwrap();
        RotatingFile::open(&path, Rotation::default(), 0o640).unwrap_err();
        assert!(!directory.path().join("target").exists());
        RotatingFile::open(Path::new("/dev/null"), Rotation::default(), 0o640).unwrap_err();
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_end_of_what_was_written(
            lines in prop::collection::vec(0_usize..40, 0..60),
            max_bytes in 1_u64..60,
            max_files in 0_u32..5,
        ) {
            let (_directory, path) = directory();
            let mut file = RotatingFile::open(&path, rotation(max_bytes, max_files), 0o640).unwrap();
            let mut all = String::new();
            for (number, length) in lines.into_iter().enumerate() {
                let line = format!("{}{}\n", number % 10, "x".repeat(length));
                file.append(line.as_bytes()).unwrap();
                all += &line;
                prop_assert!(all.ends_with(&kept(&path)));
                prop_assert!(kept(&path).ends_with(&line));
            }
            prop_assert!(log_files::oldest_first(&path).unwrap().len() <= max_files.max(1) as usize);
        }
    }
}
