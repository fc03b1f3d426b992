//! What is said to a confined process, and what it answers: one JSON object a line. The
//! process that asks is trusted; the answer is not.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::compress::Compression;
use crate::limits::Limits;

/// Orders and answers are short: no message is longer.
pub(super) const MAX_LINE_BYTES: usize = 16 << 10;
/// Of an error's text that comes out of a confined process.
const MAX_MESSAGE_CHARS: usize = 500;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) job: Job,
    pub(super) confinement: Confinement,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Job {
    /// From the input to the output.
    Decompress { compression: Compression, window_log: u32 },
    /// A tar stream into an image; its UUID follows when the input has ended.
    Layer { limits: Limits },
    /// The directory that is the input into an image.
    Tree { limits: Limits, uuid: [u8; 16] },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Confinement {
    /// Namespaces, an empty root, another user, resource limits and a filter.
    Full { uid: u32 },
    /// What needs no rights: resource limits and a filter.
    Unprivileged,
    /// For tests in a thread.
    None,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Done(Report),
    /// The data is at fault.
    Refused(String),
    /// The image could not be written: an error number.
    Disk(i32),
    /// The host is at fault.
    Unconfined(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// The layer's root is opaque.
    pub(super) opaque: bool,
    pub(super) inodes: u64,
    pub(super) file_bytes: u64,
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// A confined process's words, for a person to read: short, on one line, inert.
pub(super) fn tamed(text: &str) -> String {
    let mut tame = String::new();
    for character in text.trim().chars().take(MAX_MESSAGE_CHARS) {
        if character.is_control() || is_invisible(character) {
            tame.extend(character.escape_unicode());
        } else {
            tame.push(character);
        }
    }
    tame
}

/// What reorders or hides the text around it.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_confined_process_are_short_and_inert() {
        assert_eq!(tamed(" a \"b\"\n"), "a \"b\"");
        assert_eq!(tamed("\x1b[2Jx\ny\u{202e}"), "\\u{1b}[2Jx\\u{a}y\\u{202e}");
        assert_eq!(tamed(&"x".repeat(5000)).len(), MAX_MESSAGE_CHARS);
    }

    #[test]
    fn the_longest_refusal_fits_a_line() {
        let answer = Answer::Refused(tamed(&"\u{1}".repeat(5000)));
        assert!(serde_json::to_vec(&answer).unwrap().len() < MAX_LINE_BYTES);
    }
}
