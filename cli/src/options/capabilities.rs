//! Linux capabilities by name, and Docker's default set.

/// The capabilities in the kernel's order: bit n is the n-th (`linux/capability.h`).
pub const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a container may do without flags.
const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid capability: {0:?}")]
pub struct UnknownCapability(pub String);

/// The set after `--cap-add` and `--cap-drop`: adds `ALL` or names to the default, drops
/// `ALL` or names from it; `--privileged` is all.
pub fn resolve(
    add: &[String],
    drop: &[String],
    privileged: bool,
) -> Result<Vec<String>, UnknownCapability> {
    let add = names(add)?;
    let drop = names(drop)?;
    let is_all = |list: &[Name]| list.contains(&Name::All);
    let is_named = |list: &[Name], name| list.contains(&Name::One(name));
    let keep = |name: &'static str| {
        if privileged {
            return true;
        }
        let inherited = match (is_all(&add), is_all(&drop)) {
            // Docker: `--cap-add ALL --cap-drop X` is all but X, `--cap-drop ALL
            // --cap-add X` is X alone.
            (true, _) => !is_named(&drop, name),
            (false, true) => false,
            (false, false) => DEFAULT.contains(&name) && !is_named(&drop, name),
        };
        inherited || is_named(&add, name)
    };
    Ok(ALL.iter().filter(|&&name| keep(name)).map(|&name| name.to_owned()).collect())
}

#[derive(PartialEq)]
enum Name {
    All,
    One(&'static str),
}

fn names(list: &[String]) -> Result<Vec<Name>, UnknownCapability> {
    list.iter()
        .map(|text| {
            let upper = text.to_ascii_uppercase();
            if upper == "ALL" || upper == "CAP_ALL" {
                return Ok(Name::All);
            }
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            ALL.iter()
                .find(|&&name| name == full)
                .map(|&name| Name::One(name))
                .ok_or_else(|| UnknownCapability(text.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        resolve(&own(add), &own(drop), false).expect("known names")
    }

    #[test]
    fn as_docker_merges_them() {
        assert_eq!(set(&[], &[]).len(), 14);
        assert_eq!(set(&["ALL"], &[]).len(), 41);
        assert_eq!(set(&["ALL"], &["sys_admin"]).len(), 40);
        assert_eq!(set(&["net_admin"], &["ALL"]), ["CAP_NET_ADMIN"]);
        assert_eq!(set(&[], &["ALL"]), [""; 0]);
        assert!(!set(&[], &["MKNOD"]).contains(&"CAP_MKNOD".to_owned()));
        assert!(set(&["CAP_SYS_PTRACE"], &[]).contains(&"CAP_SYS_PTRACE".to_owned()));
    }

    #[test]
    fn unknown_names_are_refused_and_privileged_is_all() {
        assert_eq!(resolve(&["FLY".into()], &[], false), Err(UnknownCapability("FLY".into())));
        assert_eq!(resolve(&[], &[], true).map(|set| set.len()), Ok(41));
    }
}
