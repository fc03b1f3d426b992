//! Names, labels and messages that others chose, shown so that a terminal does not act
//! on them.

use std::borrow::Cow;

/// `text` with every control character, and every one that reorders text, written as an
/// escape. Tabs and line breaks too: a table's cell stays in its cell.
pub fn inert(text: &str) -> Cow<'_, str> {
    escape(text, |_| false)
}

/// As [`inert`], but keeps line breaks and tabs, for messages of several lines.
pub fn inert_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c == '\n' || c == '\t')
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    if text.chars().all(|c| keep(c) || !is_active(c)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if keep(c) || !is_active(c) {
            shown.push(c);
        } else if (c as u32) < 0x100 {
            shown.push_str(&format!("\\x{:02x}", c as u32));
        } else {
            shown.push_str(&format!("\\u{{{:x}}}", c as u32));
        }
    }
    Cow::Owned(shown)
}

/// C0, DEL and C1 drive the terminal; the bidirectional controls and the line separators
/// let a name pretend to be another.
fn is_active(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_sequences_lose_their_power() {
        assert_eq!(inert("\x1b[2Jx\u{9b}0m"), "\\x1b[2Jx\\x9b0m");
        assert_eq!(inert("a\nb\tc\x7f"), "a\\x0ab\\x09c\\x7f");
        assert_eq!(inert("ab\u{202e}cd"), "ab\\u{202e}cd");
    }

    #[test]
    fn ordinary_text_is_untouched_and_not_copied() {
        assert!(matches!(inert("größe 日本"), Cow::Borrowed("größe 日本")));
        assert!(matches!(inert_lines("a\n\tb"), Cow::Borrowed(_)));
        assert_eq!(inert_lines("a\n\x1bb"), "a\n\\x1bb");
    }
}
