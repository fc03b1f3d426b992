//! The annotations that are an interface: `io.caisson.*`. A misspelt one is an error,
//! every other owner's is left alone.

use std::collections::HashMap;

use super::{PlanError, invalid};

const PREFIX: &str = "io.caisson.";
const VCPUS: &str = "io.caisson.vcpus";
const MEMORY_MIB: &str = "io.caisson.memory-mib";

/// The largest VM that a vmm builds.
pub(super) const MAX_VCPUS: u8 = 32;
pub(super) const MAX_MEMORY_MIB: u32 = 65_536;
/// What the guest's kernel and agent need to reach a container at all.
const MIN_MEMORY_MIB: u32 = 64;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    pub vcpus: Option<u8>,
    pub memory_mib: Option<u32>,
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
                other if other.starts_with(PREFIX) => {
                    let known = format!("unknown; {VCPUS} and {MEMORY_MIB} are known");
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
