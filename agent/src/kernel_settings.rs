//! Settings of the container's namespaces: host name, network, sysctls.

use std::{collections::BTreeMap, fs, path::PathBuf};

use caisson_agent_protocol::{AgentError, ErrorKind, plan::ContainerPlan};
use caisson_netlink::Netlink;

use crate::{
    error::{At, OsError, os_message, wire},
    network, sys,
};

/// Docker's defaults for a network namespace of its own: any user may ping and bind low
/// ports, as nothing else lives there.
const NETWORK_DEFAULTS: [(&str, &str); 2] =
    [("net.ipv4.ping_group_range", "0 2147483647"), ("net.ipv4.ip_unprivileged_port_start", "0")];

/// Applies the plan's, in the namespaces of the calling process and through the `/proc`
/// of the agent's, where sysctls are writable. `outside` is where the plan's interfaces are.
pub fn apply(plan: &ContainerPlan, outside: Option<&Netlink>) -> Result<(), AgentError> {
    if let Some(name) = &plan.hostname {
        nix::unistd::sethostname(name).at(|| format!("set the host name to {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        set_domainname(name).at(|| format!("set the domain name to {name:?}"))?;
    }
    if plan.namespaces.network {
        sys::loopback_up().at(|| "bring the loopback interface up")?;
        for (name, value) in NETWORK_DEFAULTS {
            // A kernel without them has nothing to open up.
            let _ = fs::write(sysctl_path(name)?, value);
        }
    }
    if let Some(outside) = outside {
        // Before the sysctls, of which each interface has its own.
        network::apply(&plan.interfaces, outside)?;
    }
    sysctls(&plan.sysctls)
}

fn sysctls(values: &BTreeMap<String, String>) -> Result<(), AgentError> {
    for (name, value) in values {
        fs::write(sysctl_path(name)?, value).map_err(|error| {
            let reason = os_message(&error);
            let message = format!("set sysctl {name:?} to {value:?}: {reason}");
            wire(ErrorKind::InvalidArgument, message)
        })?;
    }
    Ok(())
}

/// The file of a sysctl; a slash in a name stands for itself, as an interface's dot.
fn sysctl_path(name: &str) -> Result<PathBuf, AgentError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    let relative = name.replace('.', "/");
    let parts_are_named = relative.split('/').all(|part| !part.is_empty());
    if name.len() > 255 || !name.bytes().all(plain) || !parts_are_named {
        let message = format!("sysctl {name:?} is no name of a kernel setting");
        return Err(wire(ErrorKind::InvalidArgument, message));
    }
    Ok(PathBuf::from("/proc/sys").join(relative))
}

fn set_domainname(name: &str) -> std::io::Result<()> {
    // SAFETY: the name is as long as stated and outlives the call.
    sys::check(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// The agent's own kernel settings: what no container should see or do.
pub fn harden_guest() -> Result<(), OsError> {
    fs::write("/proc/sys/kernel/dmesg_restrict", "1").at(|| "restrict the kernel's log")
}

/// Lets a process reserve more memory than the VM has, as on a large host: what it uses is
/// bounded by its cgroup, and more than that is an OOM kill, not a failed allocation.
pub fn allow_overcommit() -> Result<(), OsError> {
    fs::write("/proc/sys/vm/overcommit_memory", "1").at(|| "allow overcommitted memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctls_stay_below_proc_sys() {
        let path = sysctl_path("net.core.somaxconn").unwrap();
        assert_eq!(path, PathBuf::from("/proc/sys/net/core/somaxconn"));
        for bad in ["", "..", "a..b", "/etc/passwd", "net/../../x", "a.b\n", "kernel."] {
            assert_eq!(sysctl_path(bad).unwrap_err().kind, ErrorKind::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn an_unknown_sysctl_is_named() {
        let values = BTreeMap::from([("kernel.no_such_thing".to_owned(), "1".to_owned())]);
        let error = sysctls(&values).unwrap_err();
        assert!(error.message.starts_with("set sysctl \"kernel.no_such_thing\" to \"1\": "));
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
    }
}
