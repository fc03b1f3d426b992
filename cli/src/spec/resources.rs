//! `linux.resources`: limits, and the devices that may be used.

use serde_json::{Map, Value, json};

use crate::config::ContainerConfig;

const CPU_PERIOD_USEC: u64 = 100_000;

/// `(type, major, minor)` of the devices that every container may use; `None` is any.
const DEFAULT_DEVICES: [(&str, u32, Option<u32>); 8] = [
    ("c", 1, Some(3)), // null
    ("c", 1, Some(5)), // zero
    ("c", 1, Some(7)), // full
    ("c", 1, Some(8)), // random
    ("c", 1, Some(9)), // urandom
    ("c", 5, Some(0)), // tty
    ("c", 5, Some(2)), // ptmx
    ("c", 136, None),  // pts/*
];

pub(super) fn build(config: &ContainerConfig) -> Value {
    let limits = &config.limits;
    let mut memory = Map::new();
    // No swap limit: the guest has no swap.
    let memory_fields =
        [("limit", limits.memory_bytes), ("reservation", limits.memory_reservation_bytes)];
    for (field, bytes) in memory_fields {
        if let Some(bytes) = bytes {
            memory.insert(field.into(), bytes.into());
        }
    }
    let mut cpu = Map::new();
    if let Some(nano) = limits.nano_cpus {
        let quota = nano / (1_000_000_000 / CPU_PERIOD_USEC);
        cpu.insert("quota".into(), quota.into());
        cpu.insert("period".into(), CPU_PERIOD_USEC.into());
    }
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".into(), shares.into());
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        cpu.insert("cpus".into(), cpus.clone().into());
    }
    let mut resources = json!({ "devices": devices(config.security.privileged) });
    for (name, fields) in [("memory", memory), ("cpu", cpu)] {
        if !fields.is_empty() {
            resources[name] = fields.into();
        }
    }
    if let Some(limit) = limits.pids {
        resources["pids"] = json!({ "limit": limit });
    }
    resources
}

fn devices(privileged: bool) -> Vec<Value> {
    if privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![
        json!({ "allow": false, "access": "rwm" }),
        json!({ "allow": true, "type": "c", "access": "m" }),
        json!({ "allow": true, "type": "b", "access": "m" }),
    ];
    rules.extend(DEFAULT_DEVICES.iter().map(|&(kind, major, minor)| {
        let mut rule = json!({ "allow": true, "type": kind, "major": major, "access": "rwm" });
        if let Some(minor) = minor {
            rule["minor"] = minor.into();
        }
        rule
    }));
    rules
}
