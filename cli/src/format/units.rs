//! Sizes, times and durations as Docker writes and reads them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    #[error("invalid size {0:?}: expected a number with one of the units b, k, m, g, t")]
    Size(String),
    #[error("size {0:?} is too large")]
    TooLarge(String),
    #[error("invalid number of CPUs {0:?}: expected a decimal such as 1.5")]
    Cpus(String),
}

/// Bytes in `64m`, `1.5g`, `1GiB` or `4096`; units are powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let invalid = || UnitError::Size(text.to_owned());
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let power = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(invalid()),
    };
    let factor = 1024_u64.pow(power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| UnitError::TooLarge(text.to_owned()));
    }
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(invalid());
    }
    let value = number.parse::<f64>().map_err(|_| invalid())? * factor as f64;
    if value < 2_f64.powi(63) {
        Ok(value as u64)
    } else {
        Err(UnitError::TooLarge(text.to_owned()))
    }
}

/// Billionths of a CPU in `1.5`.
pub fn parse_nano_cpus(text: &str) -> Result<u64, UnitError> {
    let invalid = || UnitError::Cpus(text.to_owned());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let only_digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
    if !only_digits(whole) || !only_digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(invalid());
    }
    // Docker refuses what a billionth cannot hold; so do we.
    if fraction.len() > 9 {
        return Err(invalid());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
    let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| invalid())?;
    whole.checked_mul(1_000_000_000).and_then(|nano| nano.checked_add(fraction)).ok_or_else(invalid)
}

/// `124MB`: powers of 1000, three significant digits.
pub fn human_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    // 999.5 and up would round to four digits.
    while value >= 999.5 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if unit == 0 || v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let mut number = format!("{value:.decimals$}");
    if number.contains('.') {
        number.truncate(number.trim_end_matches('0').trim_end_matches('.').len());
    }
    number + UNITS[unit]
}

/// `3.84GiB`: powers of 1024, for memory.
pub fn human_size_binary(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    let number = format!("{value:.2}");
    number.trim_end_matches('0').trim_end_matches('.').to_owned() + UNITS[unit]
}

/// `About a minute`, `3 hours`.
pub fn human_duration(duration: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = duration.as_secs();
    match seconds {
        0 => "Less than a second".into(),
        1 => "1 second".into(),
        s if s < MINUTE => format!("{s} seconds"),
        s if s < 2 * MINUTE => "About a minute".into(),
        s if s < 46 * MINUTE => format!("{} minutes", s / MINUTE),
        s if s < HOUR + HOUR / 2 => "About an hour".into(),
        s if s < 2 * DAY => format!("{} hours", (s + HOUR / 2) / HOUR),
        s if s < 14 * DAY => format!("{} days", s / DAY),
        s if s < 60 * DAY => format!("{} weeks", s / DAY / 7),
        s if s < 730 * DAY => format!("{} months", s / DAY / 30),
        s => format!("{} years", s / DAY / 365),
    }
}

/// Nanoseconds since 1970, as records keep times.
pub type UnixNanos = i64;

/// The present.
pub fn now() -> UnixNanos {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `3 hours ago`.
pub fn ago(then: UnixNanos, now: UnixNanos) -> String {
    format!("{} ago", human_duration(between(then, now)))
}

/// The time from `then` to `now`, zero if the clock went back.
pub fn between(then: UnixNanos, now: UnixNanos) -> Duration {
    Duration::from_nanos(u64::try_from(now.saturating_sub(then)).unwrap_or(0))
}

/// RFC 3339 in UTC; what Docker shows for "never" if there is no time.
pub fn rfc3339(time: Option<UnixNanos>) -> String {
    const NEVER: &str = "0001-01-01T00:00:00Z";
    time.and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).ok())
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| NEVER.to_owned())
}

/// Reads RFC 3339; `None` for anything else.
pub fn parse_rfc3339(text: &str) -> Option<UnixNanos> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos()).ok()
}

/// `2026-11-20 17:53:01 +0000 UTC`, the long form of listings.
pub fn long_time(time: UnixNanos) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(time)) else {
        return String::new();
    };
    let (date, clock) = (time.date(), time.time());
    format!("{date} {:02}:{:02}:{:02} +0000 UTC", clock.hour(), clock.minute(), clock.second())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_read_as_docker_reads_them() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("32b", 32),
            ("32k", 32 << 10),
            ("32Kb", 32 << 10),
            ("32m", 32 << 20),
            ("1.5g", 3 << 29),
            ("1GiB", 1 << 30),
            ("2 t", 2 << 40),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "-1", "1x", ".5g", "1..2m", "0x10", "1e9", "1 m m"] {
            assert_eq!(parse_bytes(text), Err(UnitError::Size(text.into())), "{text}");
        }
        for text in ["99999999999g", "99999999.5p"] {
            assert_eq!(parse_bytes(text), Err(UnitError::TooLarge(text.into())), "{text}");
        }
    }

    #[test]
    fn cpus_are_billionths() {
        for (text, nano) in [
            ("1", 1_000_000_000),
            ("0.5", 500_000_000),
            (".25", 250_000_000),
            ("1.", 1_000_000_000),
        ] {
            assert_eq!(parse_nano_cpus(text), Ok(nano), "{text}");
        }
        for text in ["", ".", "-1", "1.5.1", "1,5", "0.0000000001", "99999999999999999999"] {
            assert!(parse_nano_cpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (7_800_000, "7.8MB"),
            (124_000_000, "124MB"),
            (999_600_000, "1GB"),
            (1_234_000_000, "1.23GB"),
        ];
        for (bytes, shown) in cases {
            assert_eq!(human_size(bytes), shown);
        }
        assert_eq!(human_size_binary(4 << 30), "4GiB");
        assert_eq!(human_size_binary(100), "100B");
    }

    #[test]
    fn durations_are_dockers() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (120, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (48 * 3600, "2 days"),
            (14 * 24 * 3600, "2 weeks"),
            (60 * 24 * 3600, "2 months"),
            (730 * 24 * 3600, "2 years"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(human_duration(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn times_survive_text() {
        let time = parse_rfc3339("2026-11-20T17:53:01.5+01:00").expect("a time");
        assert_eq!(rfc3339(Some(time)), "2026-11-20T16:53:01.5Z");
        assert_eq!(long_time(time), "2026-11-20 16:53:01 +0000 UTC");
        assert_eq!(rfc3339(None), "0001-01-01T00:00:00Z");
        assert_eq!(parse_rfc3339("yesterday"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse_bytes(&text);
            let _ = parse_nano_cpus(&text);
            let _ = parse_rfc3339(&text);
        }

        #[test]
        fn every_size_and_duration_is_shown(n: u64) {
            prop_assert!(human_size(n).len() <= 7, "{}", human_size(n));
            prop_assert!(!human_duration(Duration::from_secs(n)).is_empty());
        }
    }
}
