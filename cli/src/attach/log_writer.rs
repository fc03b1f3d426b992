//! Docker's `json-file` log, written by a command that relays a container's output itself.
//! (Of a detached container the shim writes it.)

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use super::AttachError;
use crate::format::units;

/// The most that one record holds of a line, as in Docker.
const MAX_PIECE_BYTES: usize = 16 << 10;

/// Appends one stream to a log. A log that cannot be written is given up with a warning;
/// the container goes on.
pub struct LogWriter {
    file: Option<File>,
    stream: &'static str,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl LogWriter {
    pub fn open(path: &Path, stream: &'static str) -> Result<Self, AttachError> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(path)
            .map_err(|source| AttachError::Log { path: path.to_owned(), source })?;
        Ok(Self { file: Some(file), stream, partial: Vec::new() })
    }

    pub fn push(&mut self, mut bytes: &[u8]) {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_PIECE_BYTES - self.partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            let end = piece.iter().position(|&byte| byte == b'\n').map_or(piece.len(), |at| at + 1);
            self.partial.extend_from_slice(&piece[..end]);
            bytes = &bytes[end..];
            if self.partial.ends_with(b"\n") {
                self.emit(self.partial.len(), &mut records);
            } else if self.partial.len() == MAX_PIECE_BYTES {
                self.emit(whole_characters(&self.partial), &mut records);
            }
        }
        self.write(&records);
    }

    /// Writes the last line if it has no end.
    pub fn finish(&mut self) {
        let mut records = Vec::new();
        if !self.partial.is_empty() {
            self.emit(self.partial.len(), &mut records);
        }
        self.write(&records);
    }

    fn emit(&mut self, length: usize, records: &mut Vec<u8>) {
        let record = serde_json::json!({
            "log": String::from_utf8_lossy(&self.partial[..length]),
            "stream": self.stream,
            "time": units::rfc3339(Some(units::now())),
        });
        records.extend_from_slice(record.to_string().as_bytes());
        records.push(b'\n');
        self.partial.drain(..length);
    }

    fn write(&mut self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        if let Some(Err(error)) = self.file.as_mut().map(|file| file.write_all(records)) {
            tracing::warn!(%error, "write the container's log; it ends here");
            self.file = None;
        }
    }
}

/// The length of `bytes` without a UTF-8 sequence that is cut short at their end.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() > 0 => error.valid_up_to(),
        // Either all is text, or it is none anyway.
        _ => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(chunks: &[&[u8]]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut log = LogWriter::open(file.path(), "stdout").unwrap();
        chunks.iter().for_each(|chunk| log.push(chunk));
        log.finish();
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines()
            .map(|line| {
                let record: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(record["stream"], "stdout");
                assert!(record["time"].as_str().unwrap().ends_with('Z'));
                record["log"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn lines_are_records_however_they_arrive() {
        assert_eq!(logged(&[b"one\ntw", b"o\n\nthree"]), ["one\n", "two\n", "\n", "three"]);
        assert!(logged(&[b""]).is_empty());
    }

    #[test]
    fn long_lines_come_in_pieces_and_characters_stay_whole() {
        let text = format!("{}äx\n", "x".repeat(MAX_PIECE_BYTES - 1));
        let pieces = logged(&[text.as_bytes()]);
        assert_eq!(pieces.len(), 2);
        assert_eq!(pieces.concat(), text);
        let broken = vec![0xff; MAX_PIECE_BYTES * 2];
        assert_eq!(logged(&[&broken]).len(), 2);
    }
}
