//! Docker's `json-file` log: one JSON object a line.
//!
//! `{"log":"text\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}`. A line
//! longer than 16 KiB comes in pieces, of which only the last ends with `\n`, as from
//! Docker. Bytes that are no UTF-8 become U+FFFD, which is Docker's loss too.

use std::io;

use crate::time;

/// The most that one record holds of a line, as in Docker.
const MAX_PIECE_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct JsonLog {
    stream: &'static str,
    /// The beginning of a line whose end has not come.
    partial: Vec<u8>,
}

impl JsonLog {
    pub(super) fn new(stream: &'static str) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// Takes output and writes each line, or full piece, that it completes.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_PIECE_BYTES - self.partial.len();
            let piece = &bytes[..bytes.len().min(room)];
            let line_end = piece.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let (piece, rest) = bytes.split_at(line_end.unwrap_or(piece.len()));
            self.partial.extend_from_slice(piece);
            bytes = rest;
            if line_end.is_some() {
                self.emit(self.partial.len(), &mut records);
            } else if self.partial.len() == MAX_PIECE_BYTES {
                // A character is not cut in two.
                self.emit(whole_characters(&self.partial), &mut records);
            }
        }
        if records.is_empty() { Ok(()) } else { write(&records) }
    }

    /// Writes the last line if it has no end.
    pub(super) fn finish(
        &mut self,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.partial.is_empty() {
            return Ok(());
        }
        let mut records = Vec::new();
        self.emit(self.partial.len(), &mut records);
        write(&records)
    }

    fn emit(&mut self, length: usize, records: &mut Vec<u8>) {
        let text = String::from_utf8_lossy(&self.partial[..length]);
        let record = serde_json::json!({
            "log": text,
            "stream": self.stream,
            "time": time::rfc3339_nanos(time::now_unix_nanos()),
        });
        records.extend_from_slice(record.to_string().as_bytes());
        records.push(b'\n');
        self.partial.drain(..length);
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
        let mut log = JsonLog::new("stderr");
        let mut out = Vec::new();
        for chunk in chunks {
            log.push(chunk, |bytes| {
                out.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            assert!(log.partial.len() < MAX_PIECE_BYTES, "a piece waits though it is full");
        }
        log.finish(|bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })
        .unwrap();
        let text = String::from_utf8(out).unwrap();
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

    proptest! {
        #[test]
        fn no_text_is_lost(text in ".{0,200}\n?.{0,200}", cut in 0_usize..400) {
            let bytes = text.as_bytes();
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(logged(&[a, b]).concat(), text);
        }
    }
}
