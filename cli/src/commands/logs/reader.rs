//! A container's log, read across its rotations while they go on.
//!
//! The file that is being read keeps its identity when it is renamed; what comes after it is
//! the next newer one, whatever its name is by then.

use std::{
    fs::{self, File, Metadata},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use caisson_shim::stdio::log_files;
use serde::Deserialize;

/// A record is 16 KiB of text, each byte of which JSON writes in 6 at most.
const MAX_RECORD_BYTES: u64 = 128 << 10;

/// One line of the log file.
#[derive(Deserialize)]
pub(super) struct Record {
    pub(super) log: String,
    pub(super) stream: String,
    pub(super) time: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub(in crate::commands) struct ReadError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A log, read from where the last read ended.
pub(in crate::commands) struct Log {
    path: PathBuf,
    current: Current,
    /// The beginning of a record whose end is not written yet.
    partial: Vec<u8>,
}

/// The file that is being read.
struct Current {
    reader: BufReader<File>,
    identity: Identity,
    /// It was seen to be written no more, before the read that found its end.
    is_old: bool,
}

/// Device and inode: a file's for as long as it is open.
type Identity = (u64, u64);

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let identity = identity(&file.metadata()?);
        Ok(Self { reader: BufReader::new(file), identity, is_old: false })
    }
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

impl Log {
    /// From its oldest record on. `None` if nothing was ever logged.
    pub(in crate::commands) fn open(path: &Path) -> Result<Option<Self>, ReadError> {
        let current = next_after(path, None).map_err(failed("open", path))?;
        let open = |current| Self { path: path.to_owned(), current, partial: Vec::new() };
        Ok(current.map(open))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Skips what is there.
    pub(in crate::commands) fn skip_to_end(&mut self) -> Result<(), ReadError> {
        while self.advance()? {}
        let end = self.current.reader.seek(SeekFrom::End(0));
        end.map(drop).map_err(failed("seek in", &self.path))
    }

    /// The next whole record. Lines that are none are passed over.
    pub(super) fn next(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            let room = MAX_RECORD_BYTES.saturating_sub(self.partial.len() as u64);
            let reader = &mut self.current.reader;
            let count = reader
                .take(room)
                .read_until(b'\n', &mut self.partial)
                .map_err(failed("read", &self.path))?;
            if !self.partial.ends_with(b"\n") && room > 0 && (count as u64) < room {
                if self.advance()? {
                    continue;
                }
                return Ok(None);
            }
            let line = std::mem::take(&mut self.partial);
            if let Ok(record) = serde_json::from_slice(&line) {
                return Ok(Some(record));
            }
        }
    }

    /// At the end of a file: whether there is more to read all the same, in it or in the
    /// next.
    fn advance(&mut self) -> Result<bool, ReadError> {
        if self.current.is_old {
            let next = next_after(&self.path, Some(self.current.identity));
            let Some(next) = next.map_err(failed("open", &self.path))? else { return Ok(false) };
            self.current = next;
            // What a program that was killed left of a record.
            self.partial.clear();
            return Ok(true);
        }
        let files = files(&self.path).map_err(failed("look for", &self.path))?;
        let newest = files.last().filter(|(path, _)| *path == self.path);
        if newest.is_some_and(|(_, newest)| *newest == self.current.identity) {
            return self.rewind_if_shorter();
        }
        // What was written to it before it became old is still to be read.
        self.current.is_old = true;
        Ok(true)
    }

    /// A log of one file begins anew when it is full.
    fn rewind_if_shorter(&mut self) -> Result<bool, ReadError> {
        let reader = &mut self.current.reader;
        let read = |reader: &mut BufReader<File>| -> io::Result<bool> {
            if reader.get_ref().metadata()?.len() >= reader.stream_position()? {
                return Ok(false);
            }
            reader.rewind()?;
            Ok(true)
        };
        let is_shorter = read(reader).map_err(failed("read", &self.path))?;
        if is_shorter {
            self.partial.clear();
        }
        Ok(is_shorter)
    }
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ReadError + use<'a> {
    move |source| ReadError { action, path: path.to_owned(), source }
}

/// The files that are there, oldest first.
fn files(path: &Path) -> io::Result<Vec<(PathBuf, Identity)>> {
    let mut files = Vec::new();
    for file in log_files::oldest_first(path)? {
        match fs::metadata(&file) {
            Ok(metadata) => files.push((file, identity(&metadata))),
            // Renamed or removed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// Where in `files` the one begins that follows `before`: the oldest, if that one is gone.
fn position_after(files: &[(PathBuf, Identity)], before: Option<Identity>) -> usize {
    let before = before.and_then(|before| files.iter().position(|(_, file)| *file == before));
    before.map_or(0, |index| index + 1)
}

/// Opens the file that follows `before`, or the oldest. `None` if there is none yet.
fn next_after(path: &Path, before: Option<Identity>) -> io::Result<Option<Current>> {
    loop {
        let listed = files(path)?;
        let Some((name, _)) = listed.get(position_after(&listed, before)) else { return Ok(None) };
        let opened = match Current::open(name) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        // Between the list and the opening the name may have passed to another.
        let now = files(path)?;
        if now.get(position_after(&now, before)).is_some_and(|(_, file)| *file == opened.identity) {
            return Ok(Some(opened));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use caisson_shim::stdio::rotating_file::{RotatingFile, Rotation};
    use proptest::prelude::*;

    use super::*;

    fn record(log: &str) -> String {
        format!("{{\"log\":{log:?},\"stream\":\"stdout\",\"time\":\"2026-01-01T00:00:00Z\"}}\n")
    }

    fn read(log: &mut Log) -> Vec<String> {
        std::iter::from_fn(|| log.next().unwrap()).map(|record| record.log).collect()
    }

    #[test]
    fn records_are_read_as_they_come() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let mut writer = File::options().append(true).open(path).unwrap();
        let mut log = Log::open(path).unwrap().unwrap();
        assert!(log.next().unwrap().is_none());
        let text = record("one\n");
        let (first, second) = text.split_at(9);
        writer.write_all(first.as_bytes()).unwrap();
        assert!(log.next().unwrap().is_none());
        writer.write_all(format!("{second}garbage\n{}", record("two\n")).as_bytes()).unwrap();
        assert_eq!(read(&mut log), ["one\n", "two\n"]);
        // A line that never ends is passed over in pieces, not held.
        writer.write_all(&vec![b'x'; 300 << 10]).unwrap();
        writer.write_all(format!("\n{}", record("three\n")).as_bytes()).unwrap();
        assert_eq!(read(&mut log), ["three\n"]);
        assert!(Log::open(Path::new("/nonexistent")).unwrap().is_none());
    }

    #[test]
    fn what_a_killed_program_left_is_read() {
        // Between two renames there is no newest file, and a number is missing.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(log_files::numbered(&path, 3), record("1")).unwrap();
        fs::write(log_files::numbered(&path, 1), record("2") + "{\"log\":\"torn").unwrap();
        let mut log = Log::open(&path).unwrap().unwrap();
        assert_eq!(read(&mut log), ["1", "2"]);
        // The file that comes is followed into.
        fs::write(&path, record("3")).unwrap();
        assert_eq!(read(&mut log), ["3"]);
    }

    #[test]
    fn new_output_is_read_from_the_newest_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(log_files::numbered(&path, 1), record("1")).unwrap();
        fs::write(&path, record("2")).unwrap();
        let mut log = Log::open(&path).unwrap().unwrap();
        log.skip_to_end().unwrap();
        assert!(read(&mut log).is_empty());
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(record("3").as_bytes())
            .unwrap();
        assert_eq!(read(&mut log), ["3"]);
    }

    #[test]
    fn a_log_of_one_file_is_read_from_its_new_beginning() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let rotation = Rotation { max_bytes: Some(200), max_files: 1 };
        let mut file = RotatingFile::open(&path, rotation, 0o640).unwrap();
        let mut log = Log::open(&path).unwrap().unwrap();
        for round in 0..3 {
            file.append(record(&format!("{round} first")).as_bytes()).unwrap();
            file.append(record(&format!("{round} second")).as_bytes()).unwrap();
            assert_eq!(read(&mut log).last().unwrap(), &format!("{round} second"));
        }
    }

    #[test]
    fn a_reader_beside_a_writer_misses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let rotation = Rotation { max_bytes: Some(500), max_files: 100_000 };
        let mut file = RotatingFile::open(&path, rotation, 0o640).unwrap();
        let mut log = Log::open(&path).unwrap().unwrap();
        let writer = std::thread::spawn(move || {
            for number in 0..500 {
                file.append(record(&number.to_string()).as_bytes()).unwrap();
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 500 {
            seen.extend(read(&mut log));
        }
        writer.join().unwrap();
        let expected: Vec<String> = (0..500).map(|number| number.to_string()).collect();
        assert_eq!(seen, expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A reader that keeps up sees everything; one that does not misses the oldest.
        #[test]
        fn records_come_once_and_in_order(
            writes in prop::collection::vec(0_usize..30, 1..20),
            max_files in 2_u32..6,
        ) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            let rotation = Rotation { max_bytes: Some(400), max_files };
            let mut file = RotatingFile::open(&path, rotation, 0o640).unwrap();
            let mut log = Log::open(&path).unwrap().unwrap();
            let mut number = 0;
            let mut last = None;
            for count in writes {
                for _ in 0..count {
                    file.append(record(&number.to_string()).as_bytes()).unwrap();
                    number += 1;
                }
                let seen: Vec<u32> =
                    read(&mut log).iter().map(|text| text.parse().unwrap()).collect();
                prop_assert!(seen.is_sorted());
                if let (Some(last), Some(first)) = (last, seen.first()) {
                    prop_assert!(*first > last);
                }
                // Two files hold ten records.
                if count <= 5 && let (Some(last), Some(first)) = (last, seen.first()) {
                    prop_assert_eq!(*first, last + 1);
                }
                last = seen.last().copied().or(last);
                if count > 0 {
                    prop_assert_eq!(last, Some(number - 1));
                }
            }
        }
    }
}
