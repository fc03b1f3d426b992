//! Device nodes and the rules of their use.
//!
//! A number in the spec means a device of the *host*. In the guest the same number may be
//! another device (`vda` is the container's own disk), so only numbers that mean the same
//! in every Linux are taken.

use caisson_agent_protocol::plan::{DeviceKind, DevicePlan, DeviceRule};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::{PlanError, check_container_path, invalid, unsupported};

/// Device numbers are 12 and 20 bits wide.
const MAX_MAJOR: i64 = (1 << 12) - 1;
const MAX_MINOR: i64 = (1 << 20) - 1;

const DEFAULT_MODE: u32 = 0o666;

pub(super) fn nodes(linux: &Linux) -> Result<Vec<DevicePlan>, PlanError> {
    linux.devices().iter().flatten().map(node).collect()
}

fn node(device: &LinuxDevice) -> Result<DevicePlan, PlanError> {
    let path = device.path().to_string_lossy().into_owned();
    let field = format!("linux.devices {path:?}");
    check_container_path(&field, &path)?;
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::P => DeviceKind::Fifo,
        LinuxDeviceType::A => return Err(invalid(field, "type \"a\" is no type of a node")),
    };
    let (major, minor) = match kind {
        DeviceKind::Fifo => (0, 0),
        _ => {
            (narrow(&field, device.major(), MAX_MAJOR)?, narrow(&field, device.minor(), MAX_MINOR)?)
        }
    };
    if !exists_in_a_guest(kind, major, minor) {
        let problem =
            format!("{major}:{minor} is a device of the host, which a microVM does not have");
        return Err(unsupported(field, problem));
    }
    Ok(DevicePlan {
        path,
        kind,
        major,
        minor,
        mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn exists_in_a_guest(kind: DeviceKind, major: u32, minor: u32) -> bool {
    match (kind, major) {
        (DeviceKind::Fifo, _) => true,
        (DeviceKind::Block, _) => false,
        // null, zero, full, random, urandom, kmsg
        (DeviceKind::Char, 1) => [3, 5, 7, 8, 9, 11].contains(&minor),
        // tty, console, ptmx
        (DeviceKind::Char, 5) => minor <= 2,
        // net/tun, fuse
        (DeviceKind::Char, 10) => [200, 229].contains(&minor),
        (DeviceKind::Char, _) => false,
    }
}

fn narrow(field: &str, number: i64, most: i64) -> Result<u32, PlanError> {
    u32::try_from(number)
        .ok()
        .filter(|_| number <= most)
        .ok_or_else(|| invalid(field, format!("{number} is no device number")))
}

pub(super) fn rules(rules: &Option<Vec<LinuxDeviceCgroup>>) -> Result<Vec<DeviceRule>, PlanError> {
    rules.iter().flatten().map(rule).collect()
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, PlanError> {
    const FIELD: &str = "linux.resources.devices";
    // -1 and absence both mean every number.
    let number = |number: Option<i64>, most| match number {
        None | Some(-1) => Ok(None),
        Some(number) => narrow(FIELD, number, most).map(Some),
    };
    let access = match rule.access().as_deref() {
        None | Some("") => "rwm",
        Some(access) => access,
    };
    if let Some(odd) = access.chars().find(|c| !"rwm".contains(*c)) {
        return Err(invalid(FIELD, format!("access {odd:?} is none of r, w and m")));
    }
    Ok(DeviceRule {
        allow: rule.allow(),
        kind: match rule.typ() {
            None | Some(LinuxDeviceType::A) => None,
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Char),
            Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
            Some(LinuxDeviceType::P) => Some(DeviceKind::Fifo),
        },
        major: number(rule.major(), MAX_MAJOR)?,
        minor: number(rule.minor(), MAX_MINOR)?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    })
}
