//! Values of single flags: ulimits, tmpfs mounts, sysctls, security options.

use std::{fs, io, path::PathBuf};

use crate::config::{Seccomp, Tmpfs, Ulimit};

const MAX_PROFILE_BYTES: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    #[error("invalid ulimit {0:?}: expected name=soft[:hard]")]
    Ulimit(String),
    #[error("invalid ulimit type: {0:?}")]
    UlimitName(String),
    #[error("ulimit {0:?}: the soft limit must not exceed the hard limit")]
    UlimitOrder(String),
    #[error("invalid tmpfs {0:?}: expected /absolute/path[:option,option]")]
    Tmpfs(String),
    #[error("invalid sysctl {0:?}: expected name=value")]
    Sysctl(String),
    #[error(
        "sysctl {0:?} is not of the container: there are kernel.msg*, kernel.sem, kernel.shm*, \
         fs.mqueue.* and net.*"
    )]
    SysctlName(String),
    #[error(
        "invalid --security-opt {0:?}: there are no-new-privileges, seccomp=unconfined and \
         seccomp=FILE"
    )]
    Security(String),
    #[error("open the seccomp profile {path}")]
    Profile { path: PathBuf, source: io::Error },
    #[error("the seccomp profile {path} is longer than {MAX_PROFILE_BYTES} bytes")]
    ProfileTooLong { path: PathBuf },
    #[error("invalid --storage-opt {0:?}: there is size=BYTES")]
    Storage(String),
}

/// The names of `setrlimit`, as `--ulimit` has them.
pub const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `nofile=1024:2048`.
pub fn ulimit(text: &str) -> Result<Ulimit, ValueError> {
    let invalid = || ValueError::Ulimit(text.to_owned());
    let (name, values) = text.split_once('=').ok_or_else(invalid)?;
    if !ULIMITS.contains(&name) {
        return Err(ValueError::UlimitName(name.to_owned()));
    }
    let number = |text: &str| text.parse::<i64>().ok().filter(|&n| n >= -1).ok_or_else(invalid);
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(values)?, number(values)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(ValueError::UlimitOrder(text.to_owned()));
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// `/run:size=64m,noexec`.
pub fn tmpfs(text: &str) -> Result<Tmpfs, ValueError> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let is_confined = path.split('/').all(|part| part != "..");
    if !path.starts_with('/') || path == "/" || !is_confined {
        return Err(ValueError::Tmpfs(text.to_owned()));
    }
    let options = options.split(',').filter(|option| !option.is_empty());
    Ok(Tmpfs { path: path.to_owned(), options: options.map(str::to_owned).collect() })
}

/// `net.core.somaxconn=1024`. Only what belongs to a namespace of the container.
pub fn sysctl(text: &str) -> Result<(String, String), ValueError> {
    let (name, value) = text.split_once('=').ok_or_else(|| ValueError::Sysctl(text.to_owned()))?;
    let exact = ["kernel.sem", "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni"];
    let shm = ["kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"];
    let is_own = exact.contains(&name)
        || shm.contains(&name)
        || name.starts_with("fs.mqueue.")
        || name.starts_with("net.");
    let is_well_formed =
        name.split('.').all(|part| !part.is_empty()) && !name.contains(['/', '\0', '\n']);
    if is_own && is_well_formed {
        Ok((name.to_owned(), value.to_owned()))
    } else {
        Err(ValueError::SysctlName(name.to_owned()))
    }
}

/// What `--security-opt` says: no-new-privileges, and the seccomp profile.
pub fn security(options: &[String]) -> Result<(bool, Seccomp), ValueError> {
    let mut no_new_privileges = false;
    let mut seccomp = Seccomp::Default;
    for option in options {
        let invalid = || ValueError::Security(option.clone());
        let (name, value) = match option.split_once(['=', ':']) {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        match (name, value) {
            ("no-new-privileges", None) => no_new_privileges = true,
            ("no-new-privileges", Some(value)) => {
                no_new_privileges = value.parse().map_err(|_| invalid())?;
            }
            ("seccomp", Some("unconfined")) => seccomp = Seccomp::Unconfined,
            ("seccomp", Some("builtin")) => seccomp = Seccomp::Default,
            ("seccomp", Some(path)) => seccomp = Seccomp::Profile(read_profile(path)?),
            // There is no such layer here to switch off.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            ("systempaths", Some("unconfined")) => return Err(invalid()),
            _ => return Err(invalid()),
        }
    }
    Ok((no_new_privileges, seccomp))
}

fn read_profile(path: &str) -> Result<String, ValueError> {
    let failed = |source| ValueError::Profile { path: path.into(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_PROFILE_BYTES {
        return Err(ValueError::ProfileTooLong { path: path.into() });
    }
    fs::read_to_string(path).map_err(failed)
}

/// The size in `--storage-opt size=10g`.
pub fn storage(options: &[String]) -> Result<Option<u64>, ValueError> {
    let mut size = None;
    for option in options {
        let bytes = option
            .strip_prefix("size=")
            .and_then(|text| crate::format::units::parse_bytes(text).ok())
            .ok_or_else(|| ValueError::Storage(option.clone()))?;
        size = Some(bytes);
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        let limit = |soft, hard| Ulimit { name: "nofile".into(), soft, hard };
        assert_eq!(ulimit("nofile=10").unwrap(), limit(10, 10));
        assert_eq!(ulimit("nofile=10:20").unwrap(), limit(10, 20));
        assert_eq!(ulimit("nofile=10:-1").unwrap(), limit(10, -1));
        for bad in
            ["nofile", "nofile=", "nofile=a", "nofile=20:10", "nofile=-1:5", "files=1", "nofile=-2"]
        {
            ulimit(bad).unwrap_err();
        }
    }

    #[test]
    fn tmpfs_paths_are_absolute_and_confined() {
        let mount = tmpfs("/run:size=64m,,noexec").unwrap();
        assert_eq!((mount.path.as_str(), mount.options.len()), ("/run", 2));
        for bad in ["run", "/", "", "/a/../../etc", ":size=1"] {
            tmpfs(bad).unwrap_err();
        }
    }

    #[test]
    fn sysctls_of_the_container_alone() {
        assert_eq!(
            sysctl("net.core.somaxconn=1024").unwrap(),
            ("net.core.somaxconn".into(), "1024".into())
        );
        for bad in
            ["net.core.somaxconn", "kernel.panic=1", "net./x=1", "net..x=1", "vm.swappiness=1"]
        {
            sysctl(bad).unwrap_err();
        }
    }

    #[test]
    fn security_options() {
        let own = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(security(&[]).unwrap(), (false, Seccomp::Default));
        assert_eq!(
            security(&own(&["no-new-privileges", "seccomp=unconfined"])).unwrap(),
            (true, Seccomp::Unconfined)
        );
        assert!(!security(&own(&["no-new-privileges:false"])).unwrap().0);
        for bad in ["seccomp", "seccomp=/nonexistent", "magic", "no-new-privileges=x", "apparmor=x"]
        {
            security(&own(&[bad])).unwrap_err();
        }
    }

    #[test]
    fn storage_sizes() {
        assert_eq!(storage(&["size=1g".into()]).unwrap(), Some(1 << 30));
        storage(&["size=x".into()]).unwrap_err();
        storage(&["dm.basesize=1g".into()]).unwrap_err();
    }
}
