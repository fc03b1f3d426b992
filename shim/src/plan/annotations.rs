//! The annotations that are an interface: `io.caisson.*`. A misspelt one is an error,
//! every other owner's is left alone.

use std::{collections::HashMap, ops::RangeInclusive};

use caisson_vmm::{
    config::{Rate, RateLimit},
    spec::limit::{BANDWIDTHS, BURSTS, OPERATIONS},
};

use super::{PlanError, invalid};

const PREFIX: &str = "io.caisson.";
const VCPUS: &str = "io.caisson.vcpus";
const MEMORY_MIB: &str = "io.caisson.memory-mib";
/// `RATE` or `RATE:BURST`: bytes a second and bytes, requests a second and requests.
const DISK_BANDWIDTH: &str = "io.caisson.disk-bandwidth";
const DISK_IOPS: &str = "io.caisson.disk-iops";

/// The largest VM that a vmm builds.
pub(super) const MAX_VCPUS: u8 = 32;
pub(super) const MAX_MEMORY_MIB: u32 = 65_536;
/// What the guest's kernel and agent need to reach a container at all.
const MIN_MEMORY_MIB: u32 = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    pub vcpus: Option<u8>,
    pub memory_mib: Option<u32>,
    pub disk_limit: RateLimit,
}

impl Annotations {
    pub fn parse(annotations: &Option<HashMap<String, String>>) -> Result<Self, PlanError> {
        let mut parsed = Self::default();
        for (name, value) in annotations.iter().flatten() {
            match name.as_str() {
                VCPUS => parsed.vcpus = Some(number(name, value, 1, MAX_VCPUS)?),
                MEMORY_MIB => {
                    parsed.memory_mib = Some(number(name, value, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?);
                }
                DISK_BANDWIDTH => {
                    parsed.disk_limit.bandwidth = Some(rate(name, value, BANDWIDTHS)?);
                }
                DISK_IOPS => parsed.disk_limit.operations = Some(rate(name, value, OPERATIONS)?),
                other if other.starts_with(PREFIX) => {
                    let known = format!(
                        "unknown; {VCPUS}, {MEMORY_MIB}, {DISK_BANDWIDTH} and {DISK_IOPS} are known"
                    );
                    return Err(invalid(format!("annotation {other}"), known));
                }
                _ => {}
            }
        }
        Ok(parsed)
    }
}

fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: &str,
    least: T,
    most: T,
) -> Result<T, PlanError> {
    match value.parse() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => {
            let problem = format!("{value:?} is no number from {least} to {most}");
            Err(invalid(format!("annotation {name}"), problem))
        }
    }
}

/// A burst that is not named is what comes in within a second.
fn rate(name: &str, value: &str, rates: RangeInclusive<u64>) -> Result<Rate, PlanError> {
    let (per_second, burst) = match value.split_once(':') {
        Some((per_second, burst)) => (per_second, Some(burst)),
        None => (value, None),
    };
    let per_second = number(name, per_second, *rates.start(), *rates.end())?;
    let burst =
        burst.map(|burst| number(name, burst, *BURSTS.start(), *BURSTS.end())).transpose()?;
    Ok(Rate { per_second, burst: burst.unwrap_or(per_second) })
}
