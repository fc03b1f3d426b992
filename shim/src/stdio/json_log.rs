//! Docker's `json-file` log: one JSON object a line.
//!
//! `{"log":"text\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}`. A line
//! longer than 16 KiB comes in pieces, of which only the last ends with `\n`, as from
//! Docker. Bytes that are no UTF-8 become U+FFFD, which is Docker's loss too.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::rotating_file::{RotatingFile, Rotation};
use crate::time;

/// The most that one record holds of a line, as in Docker.
const MAX_PIECE_BYTES: usize = 16 << 10;

/// What is written at once; a record may be longer.
const MAX_BATCH_BYTES: u64 = 64 << 10;

/// Users read each other's logs no more than with Docker.
const MODE: u32 = 0o640;

/// One stream of a process on its way into a log.
#[derive(Debug)]
pub struct JsonLog {
    stream: &'static str,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
    /// The process's other stream writes there too.
    file: Arc<Mutex<RotatingFile>>,
}

impl JsonLog {
    /// A log for the stream of this name.
    pub fn open(path: &Path, rotation: Rotation, stream: &'static str) -> io::Result<Self> {
        let file = Arc::new(Mutex::new(RotatingFile::open(path, rotation, MODE)?));
        Ok(Self { stream, partial: Vec::new(), file })
    }

    /// The same log for another stream; a log must not be open twice, lest one writer miss
    /// the other's rotations.
    #[must_use]
    pub fn for_stream(&self, stream: &'static str) -> Self {
        Self { stream, partial: Vec::new(), file: Arc::clone(&self.file) }
    }

    /// Takes output and writes each line, or full piece, that it completes.
    pub fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        let mut batch = Batch::new(&file);
        while !bytes.is_empty() {
            let room = MAX_PIECE_BYTES - self.partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            let line_end = piece.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let (piece, rest) = bytes.split_at(line_end.unwrap_or(piece.len()));
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if line_end.is_some() {
                batch.add(&self.take_record(self.partial.len()));
            } else if self.partial.len() == MAX_PIECE_BYTES {
                // A character is not cut in two.
                batch.add(&self.take_record(whole_characters(&self.partial)));
            }
        }
        batch.finish()
    }

    /// Writes the last line if it has no end.
    pub fn finish(&mut self) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        let mut batch = Batch::new(&file);
        if !self.partial.is_empty() {
            batch.add(&self.take_record(self.partial.len()));
        }
        batch.finish()
    }

    /// Makes a record of the first `length` bytes that wait.
    fn take_record(&mut self, length: usize) -> Vec<u8> {
        let text = String::from_utf8_lossy(&self.partial[..length]);
        let record = serde_json::json!({
            "log": text,
            "stream": self.stream,
            "time": time::rfc3339_nanos(time::now_unix_nanos()),
        });
        let mut line = record.to_string().into_bytes();
        line.push(b'\n');
        self.partial.drain(..length);
        line
    }
}

/// Records that go into the file by one call, as long as they fit it.
struct Batch<'a> {
    file: MutexGuard<'a, RotatingFile>,
    records: Vec<u8>,
    /// Of the first call that failed; what follows is tried all the same.
    failure: Option<io::Error>,
}

impl<'a> Batch<'a> {
    fn new(file: &'a Mutex<RotatingFile>) -> Self {
        // Between two calls the file is as it should be, whoever panicked.
        let file = file.lock().unwrap_or_else(PoisonError::into_inner);
        Self { file, records: Vec::new(), failure: None }
    }

    fn add(&mut self, record: &[u8]) {
        let room = self.file.room().min(MAX_BATCH_BYTES);
        if !self.records.is_empty() && (self.records.len() + record.len()) as u64 > room {
            self.write();
        }
        self.records.extend_from_slice(record);
    }

    fn write(&mut self) {
        if let Err(error) = self.file.append(&self.records) {
            self.failure.get_or_insert(error);
        }
        self.records.clear();
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.records.is_empty() {
            self.write();
        }
        self.failure.map_or(Ok(()), Err)
    }
}

/// The length of `bytes` without a UTF-8 sequence that is cut short at their end.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for start in (tail..bytes.len()).rev() {
        let needed = match bytes[start] {
            0b1100_0000..=0b1101_1111 => 2,
            0b1110_0000..=0b1110_1111 => 3,
            0b1111_0000..=0b1111_0111 => 4,
            0b1000_0000..=0b1011_1111 => continue,
            _ => return bytes.len(),
        };
        return if bytes.len() - start < needed { start } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = JsonLog::open(&path, Rotation::default(), "stderr").unwrap();
        for chunk in chunks {
            log.push(chunk).unwrap();
            assert!(log.partial.len() < MAX_PIECE_BYTES, "a piece waits though it is full");
        }
        log.finish().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines()
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(record["stream"], "stderr");
                assert!(record["time"].as_str().unwrap().ends_with('Z'));
                record["log"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_records_however_they_arrive() {
        assert_eq!(logged(&[b"one\ntw", b"o\n\nthree"]), ["one\n", "two\n", "\n", "three"]);
        assert_eq!(logged(&[b"quote\" and \x1b\n"]), ["quote\" and \u{1b}\n"]);
        assert!(logged(&[b""]).is_empty());
    }

    #[test]
    fn a_long_line_comes_in_pieces() {
        let line = [vec![b'x'; MAX_PIECE_BYTES * 2 + 5], b"\n".to_vec()].concat();
        let pieces = logged(&[&line]);
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[0].len(), MAX_PIECE_BYTES);
        assert!(!pieces[1].ends_with('\n'));
        assert_eq!(pieces[2], "xxxxx\n");
    }

    #[test]
    fn a_character_at_a_piece_border_stays_whole() {
        for character in ["ä", "€", "𝄞"] {
            let mut text = "x".repeat(MAX_PIECE_BYTES - 1);
            text.push_str(character);
            assert_eq!(logged(&[text.as_bytes()]).concat(), text);
        }
        // And bytes that only look like the beginning of one do not stay for ever.
        let broken = [vec![b'x'; MAX_PIECE_BYTES - 1], vec![0xf0], vec![b'y'; 9]].concat();
        assert_eq!(logged(&[&broken]).concat().len(), MAX_PIECE_BYTES - 1 + 3 + 9);
    }

    // Hostile case 32.

    #[test]
    fn a_flood_without_a_newline_takes_little_memory_and_disk() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let rotation = Rotation { max_bytes: Some(1 << 20), max_files: 3 };
        let mut log = JsonLog::open(&path, rotation, "stdout").unwrap();
        let mut other = log.for_stream("stderr");
        for _ in 0..6 << 20 >> 15 {
            log.push(&[b'x'; 32 << 10]).unwrap();
            other.push(b"a line\n").unwrap();
            assert!(log.partial.capacity() <= 2 * MAX_PIECE_BYTES, "{}", log.partial.capacity());
        }
        let files = crate::stdio::log_files::oldest_first(&path).unwrap();
        let bytes = files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum::<u64>();
        assert!((1 << 20..=3 << 20).contains(&bytes), "{bytes} bytes");
        for file in files {
            let text = std::fs::read_to_string(file).unwrap();
            assert!(
                text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_is_lost(text in ".{0,200}\n?.{0,200}", cut in 0_usize..400) {
            let bytes = text.as_bytes();
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(logged(&[a, b]).concat(), text);
        }
    }
}
