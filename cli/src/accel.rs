//! Where containers run: on this host's KVM, or in the machine.

use std::{fs, io};

use crate::globals::Accel;

const DEVICE: &str = "/dev/kvm";

/// Where a command that touches containers is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Here,
    Machine,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "KVM cannot run containers on this host: {lack}; leave `--accel kvm` away (or CAISSON_ACCEL) to \
     run them in the emulated machine; `caisson doctor` tells more"
)]
pub struct NoKvm {
    lack: Lack,
}

/// Why KVM here cannot run a guest's kernel.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lack {
    #[error("there is no {DEVICE}")]
    NoDevice,
    #[error("{DEVICE} cannot be opened: {0}")]
    NotOpenable(String),
    #[error("the processor shows neither vmx nor svm in /proc/cpuinfo")]
    NoVirtualization,
}

/// What this host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Why `/dev/kvm` cannot be used, if so.
    pub device: Option<Lack>,
    pub has_virtualization: bool,
}

impl Host {
    pub fn probe() -> Self {
        Self {
            device: device_lack(),
            has_virtualization: virtualization(
                &fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            )
            .is_some(),
        }
    }

    /// Why KVM here cannot run guests; `None` if it can.
    pub fn lack(&self) -> Option<Lack> {
        match &self.device {
            Some(lack) => Some(lack.clone()),
            None if !self.has_virtualization => Some(Lack::NoVirtualization),
            None => None,
        }
    }
}

/// The decision. `inside` is whether this already is the machine.
pub fn decide(accel: Accel, inside: bool, host: &Host) -> Result<Place, NoKvm> {
    if inside {
        return Ok(Place::Here);
    }
    match (accel, host.lack()) {
        (Accel::Machine, _) => Ok(Place::Machine),
        (Accel::Auto | Accel::Kvm, None) => Ok(Place::Here),
        (Accel::Auto, Some(_)) => Ok(Place::Machine),
        (Accel::Kvm, Some(lack)) => Err(NoKvm { lack }),
    }
}

/// `vmx` or `svm`, if the processor has it.
pub fn virtualization(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|name| flags.split_whitespace().any(|flag| flag == *name))
}

fn device_lack() -> Option<Lack> {
    match fs::OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Lack::NoDevice),
        Err(error) => Some(Lack::NotOpenable(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(device: Option<Lack>, has_virtualization: bool) -> Host {
        Host { device, has_virtualization }
    }

    #[test]
    fn auto_runs_where_it_can() {
        let cases = [
            (host(None, true), Place::Here),
            (host(None, false), Place::Machine),
            (host(Some(Lack::NoDevice), true), Place::Machine),
            (host(Some(Lack::NotOpenable("denied".into())), true), Place::Machine),
        ];
        for (host, place) in cases {
            assert_eq!(decide(Accel::Auto, false, &host), Ok(place), "{host:?}");
        }
    }

    #[test]
    fn kvm_never_falls_back_and_says_why() {
        let good = host(None, true);
        assert_eq!(decide(Accel::Kvm, false, &good), Ok(Place::Here));
        for lack in [Lack::NoDevice, Lack::NotOpenable("denied".into())] {
            let error = decide(Accel::Kvm, false, &host(Some(lack.clone()), true)).unwrap_err();
            assert!(error.to_string().contains(&lack.to_string()), "{error}");
        }
        let error = decide(Accel::Kvm, false, &host(None, false)).unwrap_err().to_string();
        assert!(error.contains("vmx") && error.contains("--accel kvm"), "{error}");
    }

    #[test]
    fn the_machine_can_be_forced_but_not_nested() {
        let good = host(None, true);
        assert_eq!(decide(Accel::Machine, false, &good), Ok(Place::Machine));
        for accel in [Accel::Auto, Accel::Kvm, Accel::Machine] {
            assert_eq!(decide(accel, true, &host(None, false)), Ok(Place::Here));
        }
    }

    #[test]
    fn flags_are_words() {
        let cpuinfo =
            |flags: &str| format!("processor\t: 0\nflags\t\t: fpu {flags} sse\nbugs\t: svm\n");
        assert_eq!(virtualization(&cpuinfo("vmx")), Some("vmx"));
        assert_eq!(virtualization(&cpuinfo("svm")), Some("svm"));
        assert_eq!(virtualization(&cpuinfo("svm_lock vmx_flags")), None);
        assert_eq!(virtualization(""), None);
    }
}
