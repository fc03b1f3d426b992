//! `--disk-bandwidth` and `--disk-iops`: a rate, and what may be used at once after a pause.

use std::ops::RangeInclusive;

use caisson_vmm::{
    config::{Rate, RateLimit},
    spec::limit::{BANDWIDTHS, BURSTS, OPERATIONS},
};

use crate::format::units;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error(
        "invalid --disk-bandwidth {0:?}: expected bytes a second from 4k to 1t, and after a colon \
         the burst, up to 1t (10m, 10m:50m)"
    )]
    Bandwidth(String),
    #[error(
        "invalid --disk-iops {0:?}: expected requests a second from 1 to 1000000000, and after a \
         colon the burst, up to 1099511627776 (500, 500:2000)"
    )]
    Iops(String),
}

/// What the two flags say.
pub fn disk_limit(
    bandwidth: &Option<String>,
    iops: &Option<String>,
) -> Result<RateLimit, RateError> {
    let bytes = |text: &str| units::parse_bytes(text).ok();
    let count = |text: &str| text.parse().ok();
    let bandwidth = bandwidth.as_deref().map(|text| {
        rate(text, bytes, BANDWIDTHS).ok_or_else(|| RateError::Bandwidth(text.to_owned()))
    });
    let operations = iops
        .as_deref()
        .map(|text| rate(text, count, OPERATIONS).ok_or_else(|| RateError::Iops(text.to_owned())));
    Ok(RateLimit { bandwidth: bandwidth.transpose()?, operations: operations.transpose()? })
}

/// A burst that is not named is what comes in within a second.
fn rate(
    text: &str,
    parse: impl Fn(&str) -> Option<u64>,
    rates: RangeInclusive<u64>,
) -> Option<Rate> {
    let (per_second, burst) = match text.split_once(':') {
        Some((per_second, burst)) => (parse(per_second)?, Some(parse(burst)?)),
        None => (parse(text)?, None),
    };
    let burst = burst.unwrap_or(per_second);
    (rates.contains(&per_second) && BURSTS.contains(&burst)).then_some(Rate { per_second, burst })
}

/// As the annotation has it.
pub fn annotation(rate: Rate) -> String {
    format!("{}:{}", rate.per_second, rate.burst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_bursts_and_units() {
        let own = |text: &str| Some(text.to_owned());
        let rate = |per_second, burst| Some(Rate { per_second, burst });
        let limit = disk_limit(&own("10m:1g"), &own("500")).unwrap();
        assert_eq!(limit.bandwidth, rate(10 << 20, 1 << 30));
        assert_eq!(limit.operations, rate(500, 500));
        assert_eq!(disk_limit(&None, &None).unwrap(), RateLimit::default());
        assert_eq!(annotation(limit.bandwidth.unwrap()), "10485760:1073741824");
    }

    #[test]
    fn what_is_out_of_range_is_told_with_the_range() {
        for bad in ["", "fast", "1k", "2t", "10m:", "10m:0", "10m:1m:1m", "-1", "10m:2t"] {
            let error = disk_limit(&Some(bad.to_owned()), &None).unwrap_err().to_string();
            assert!(error.contains(&format!("--disk-bandwidth {bad:?}")), "{error}");
            assert!(error.contains("4k to 1t"), "{error}");
        }
        for bad in ["", "0", "1k", "-1", "5:0", "1.5", "1000000001"] {
            let error = disk_limit(&None, &Some(bad.to_owned())).unwrap_err().to_string();
            assert!(error.contains(&format!("--disk-iops {bad:?}")), "{error}");
            assert!(error.contains("1 to 1000000000"), "{error}");
        }
    }
}
