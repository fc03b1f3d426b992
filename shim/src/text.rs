//! Bytes from a guest, made safe to print.

/// `bytes` as text in which no control character but the line feed and the tab is left:
/// a terminal that shows it obeys nothing in it.
pub fn inert(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .filter(|&c| c != '\r')
        .map(|c| match c {
            '\n' | '\t' => c,
            c if c.is_control() => '\u{fffd}',
            // Characters that reorder what surrounds them.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_shown_not_obeyed() {
        assert_eq!(inert(b"a\x1b[31mb\r\nc\x07\td"), "a\u{fffd}[31mb\nc\u{fffd}\td");
        assert_eq!(inert("\u{9b}x\u{202e}y".as_bytes()), "\u{fffd}x\u{fffd}y");
        assert_eq!(inert(b"\xffz"), "\u{fffd}z");
    }
}
