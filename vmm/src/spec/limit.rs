//! The limits that can be kept.

use std::ops::RangeInclusive;

use crate::config::{Rate, RateLimit};

/// Bytes a second. Below, a single request would take minutes.
pub const BANDWIDTHS: RangeInclusive<u64> = 4096..=1 << 40;
/// Requests or frames a second.
pub const OPERATIONS: RangeInclusive<u64> = 1..=1_000_000_000;
/// Bytes, requests or frames.
pub const BURSTS: RangeInclusive<u64> = 1..=1 << 40;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a {what} of {value}; it is {} to {}", .range.start(), .range.end())]
pub struct LimitError {
    what: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
}

/// Checks that every rate and burst is in its range.
pub fn check(limit: &RateLimit) -> Result<(), LimitError> {
    let in_range = |what, value, range: RangeInclusive<u64>| {
        if range.contains(&value) { Ok(()) } else { Err(LimitError { what, value, range }) }
    };
    if let Some(Rate { per_second, burst }) = limit.bandwidth {
        in_range("bandwidth in bytes a second", per_second, BANDWIDTHS)?;
        in_range("burst in bytes", burst, BURSTS)?;
    }
    if let Some(Rate { per_second, burst }) = limit.operations {
        in_range("rate in operations a second", per_second, OPERATIONS)?;
        in_range("burst in operations", burst, BURSTS)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_bursts_have_ranges() {
        let bandwidth = |per_second, burst| {
            let bandwidth = Some(Rate { per_second, burst });
            check(&RateLimit { bandwidth, operations: None })
        };
        let operations = |per_second, burst| {
            let operations = Some(Rate { per_second, burst });
            check(&RateLimit { bandwidth: None, operations })
        };
        check(&RateLimit::default()).unwrap();
        bandwidth(4096, 1).unwrap();
        bandwidth(1 << 40, 1 << 40).unwrap();
        operations(1, 1).unwrap();
        let error = bandwidth(4095, 1).unwrap_err().to_string();
        assert_eq!(error, "a bandwidth in bytes a second of 4095; it is 4096 to 1099511627776");
        bandwidth(u64::MAX, 1).unwrap_err();
        bandwidth(4096, 0).unwrap_err();
        operations(0, 1).unwrap_err();
        operations(1, u64::MAX).unwrap_err();
    }
}
