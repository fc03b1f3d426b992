//! Namespaces and the sysctls that live in them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use caisson_agent_protocol::plan::{Namespaces, PidNamespace};
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use super::{PlanError, invalid, unsupported};

/// Which namespaces the container gets of its own. One that the spec does not list is the
/// VM's, which no other container shares.
pub(super) fn translate(linux: &Linux) -> Result<Namespaces, PlanError> {
    let mut namespaces = Namespaces {
        pid: PidNamespace::Own,
        ipc: false,
        uts: false,
        cgroup: false,
        network: false,
    };
    let mut seen = Vec::new();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = namespace.typ();
        let field = format!("linux.namespaces, {kind}");
        if seen.contains(&kind) {
            return Err(invalid(field, "stands there twice"));
        }
        seen.push(kind);
        if let Some(path) =
            namespace.path().as_ref().filter(|_| kind != LinuxNamespaceType::Network)
        {
            let problem =
                format!("{} is a namespace of the host; a VM cannot join it", path.display());
            return Err(unsupported(field, problem));
        }
        match kind {
            LinuxNamespaceType::Pid | LinuxNamespaceType::Mount => {}
            LinuxNamespaceType::Ipc => namespaces.ipc = true,
            LinuxNamespaceType::Uts => namespaces.uts = true,
            LinuxNamespaceType::Cgroup => namespaces.cgroup = true,
            LinuxNamespaceType::Network => namespaces.network = true,
            LinuxNamespaceType::User => {
                return Err(unsupported(
                    field,
                    "not supported; the VM itself isolates the container's root",
                ));
            }
            LinuxNamespaceType::Time => return Err(unsupported(field, "not supported")),
        }
    }
    if !seen.contains(&LinuxNamespaceType::Pid) {
        // The container's own pid namespace hides the agent; the host's cannot be seen.
        log::info!("the spec wants the host's pid namespace; the container gets its own");
    }
    Ok(namespaces)
}

/// The network namespace on the host whose interfaces the container gets. Without one it has
/// the loopback interface and no other.
pub(super) fn network(linux: &Linux) -> Result<Option<PathBuf>, PlanError> {
    let namespaces = linux.namespaces().iter().flatten();
    let mut networks = namespaces.filter(|it| it.typ() == LinuxNamespaceType::Network);
    let path = networks.next().and_then(|network| network.path().clone());
    match path {
        Some(path) if !path.is_absolute() || path == Path::new("/") => {
            let problem = format!("{path:?} is no absolute path of a namespace");
            Err(invalid("linux.namespaces, network", problem))
        }
        path => Ok(path),
    }
}

/// The sysctls, each of which must belong to a namespace of the container's own.
pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &Namespaces,
) -> Result<BTreeMap<String, String>, PlanError> {
    let mut sysctls = BTreeMap::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl {name:?}");
        // Both separators are in use; a name has one of them.
        let key = if name.contains('.') { name.clone() } else { name.replace('/', ".") };
        let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-/:".contains(&byte);
        if key.is_empty() || !key.bytes().all(good) || key.split('.').any(str::is_empty) {
            return Err(invalid(field, "is no name of a sysctl"));
        }
        if value.contains(['\0', '\n']) {
            return Err(invalid(field, "its value has a NUL or a line break"));
        }
        match owner(&key) {
            Some(Owner::Ipc) if namespaces.ipc => {}
            Some(Owner::Network) if namespaces.network => {}
            Some(Owner::Uts) if namespaces.uts => {}
            Some(_) => {
                return Err(invalid(field, "needs the container's own namespace of its kind"));
            }
            None => return Err(invalid(field, "belongs to no namespace")),
        }
        sysctls.insert(key, value.clone());
    }
    Ok(sysctls)
}

enum Owner {
    Ipc,
    Network,
    Uts,
}

fn owner(key: &str) -> Option<Owner> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.auto_msgmni",
    ];
    match key {
        key if IPC.contains(&key) || key.starts_with("fs.mqueue.") => Some(Owner::Ipc),
        key if key.starts_with("net.") => Some(Owner::Network),
        "kernel.domainname" => Some(Owner::Uts),
        _ => None,
    }
}
