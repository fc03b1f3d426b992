//! Wall-clock time as logs write it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NANOS: u64 = 1_000_000_000;

/// Nanoseconds since 1970.
pub fn now_unix_nanos() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `2006-01-02T15:04:05.999999999Z`: RFC 3339 in UTC without trailing zeros, which is
/// Go's `RFC3339Nano` and what Docker's logs hold.
pub fn rfc3339_nanos(unix_nanos: u64) -> String {
    let (seconds, nanos) = (unix_nanos / NANOS, unix_nanos % NANOS);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanos > 0 {
        text.push_str(format!(".{nanos:09}").trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// The Gregorian date of a day since 1970-01-01 (Hinnant's era algorithm, in which a year
/// begins in March).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times() {
        assert_eq!(rfc3339_nanos(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339_nanos(951_782_400 * NANOS + 5), "2000-02-29T00:00:00.000000005Z");
        assert_eq!(rfc3339_nanos(1_709_251_199 * NANOS + 120_000_000), "2024-02-29T23:59:59.12Z");
        assert_eq!(rfc3339_nanos(4_107_542_400 * NANOS), "2100-03-01T00:00:00Z");
    }
}
