//! Points in time as users write them.

use super::units::{self, UnixNanos};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid value {0:?}: expected a time such as 2026-01-02T13:23:37Z, or 42m")]
pub struct InvalidTime(String);

/// RFC 3339, a date, Unix seconds, or how long before `now`: `90s`, `1h30m`.
pub fn parse(text: &str, now: UnixNanos) -> Result<UnixNanos, InvalidTime> {
    let invalid = || InvalidTime(text.to_owned());
    let full = [text.to_owned(), format!("{text}Z"), format!("{text}T00:00:00Z")];
    if let Some(time) = full.iter().find_map(|text| units::parse_rfc3339(text)) {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return seconds.checked_mul(1_000_000_000).ok_or_else(invalid);
    }
    let mut ago: i64 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let number: i64 = rest[..digits].parse().map_err(|_| invalid())?;
        let (unit, after) = rest[digits..].split_at_checked(1).ok_or_else(invalid)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(invalid()),
        };
        let nanos = number.checked_mul(seconds * 1_000_000_000).ok_or_else(invalid)?;
        ago = ago.checked_add(nanos).ok_or_else(invalid)?;
        rest = after;
    }
    if text.is_empty() { Err(invalid()) } else { Ok(now.saturating_sub(ago)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_ago() {
        let now = 10_000_000_000_000;
        let cases = [
            ("1970-01-01T00:00:01Z", 1_000_000_000),
            ("1970-01-01T00:00:01", 1_000_000_000),
            ("1970-01-02", 86_400_000_000_000),
            ("5", 5_000_000_000),
            ("1h30m", now - 5_400_000_000_000),
            ("90s", now - 90_000_000_000),
        ];
        for (text, time) in cases {
            assert_eq!(parse(text, now), Ok(time), "{text}");
        }
        for text in ["", "yesterday", "5x", "m", "1h30", "5é", "99999999999999h"] {
            assert!(parse(text, now).is_err(), "{text}");
        }
    }
}
