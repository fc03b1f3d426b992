//! `linux.cgroupsPath` into directories below a hierarchy's root.

use std::path::PathBuf;

/// A cgroup's name, as any file's.
const MAX_NAME_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 2048;

/// The directory that `cgroups_path` means, relative to the root of every hierarchy; none for
/// an empty path. Systemd's form `slice:prefix:name` means the directories that systemd would
/// make for the scope `prefix-name.scope`.
pub(super) fn directory(cgroups_path: &str) -> Result<Option<PathBuf>, String> {
    let fields: Vec<&str> = cgroups_path.split(':').collect();
    let path = match fields[..] {
        [slice, prefix, name] if !cgroups_path.contains('/') => {
            format!("{}/{}", slice_directory(slice)?, scope(prefix, name)?)
        }
        _ => cgroups_path.to_owned(),
    };
    if path.len() > MAX_PATH_BYTES {
        return Err(format!("is over {MAX_PATH_BYTES} bytes long"));
    }
    let mut directory = PathBuf::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        check_name(name)?;
        directory.push(name);
    }
    // The root is everybody's.
    if directory.as_os_str().is_empty() && !cgroups_path.is_empty() {
        return Err(format!("{cgroups_path:?} is the root of all cgroups"));
    }
    Ok(Some(directory).filter(|directory| !directory.as_os_str().is_empty()))
}

fn check_name(name: &str) -> Result<(), String> {
    if name == "." || name == ".." {
        return Err(format!("has a component {name:?}"));
    }
    if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let shown: String = name.chars().take(40).collect();
        return Err(format!("has a component {shown:?} that is no name of a cgroup"));
    }
    // The kernel's own files, one beside the other with the directories.
    let controllers = ["cgroup.", "cpu.", "cpuset.", "io.", "memory.", "pids.", "blkio."];
    if controllers.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(format!("has a component {name:?}, which is named as the kernel's own files"));
    }
    Ok(())
}

/// `a-b.slice` lies in `a.slice` (systemd.slice(5)); an empty name is `system.slice`, and
/// `-.slice` the root.
fn slice_directory(slice: &str) -> Result<String, String> {
    let bad = || format!("names a slice {slice:?}; it must be as in a-b.slice");
    let stem = match slice {
        "" => "system",
        "-.slice" => return Ok(String::new()),
        _ => slice.strip_suffix(".slice").ok_or_else(bad)?,
    };
    if stem.split('-').any(str::is_empty) {
        return Err(bad());
    }
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    let slices: Vec<String> = ends.map(|end| format!("{}.slice", &stem[..end])).collect();
    Ok(slices.join("/"))
}

fn scope(prefix: &str, name: &str) -> Result<String, String> {
    if name.is_empty() {
        return Err("names no unit behind its second colon".to_owned());
    }
    Ok(match prefix {
        _ if name.ends_with(".slice") => name.to_owned(),
        "" => format!("{name}.scope"),
        _ => format!("{prefix}-{name}.scope"),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> String {
        directory(text).unwrap().unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn plain_paths_are_below_the_root() {
        assert_eq!(directory("").unwrap(), None);
        assert_eq!(path("/default/c1"), "default/c1");
        assert_eq!(path("pod//c1/"), "pod/c1");
        // A colon alone makes no unit.
        assert_eq!(path("/a/b:c:d"), "a/b:c:d");
    }

    #[test]
    fn systemds_form_becomes_its_directories() {
        assert_eq!(
            path("kubepods-burstable-pod7.slice:cri-containerd:c1"),
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/\
             cri-containerd-c1.scope"
        );
        assert_eq!(path(":docker:c1"), "system.slice/docker-c1.scope");
        assert_eq!(path("-.slice::c1"), "c1.scope");
        assert_eq!(path("a.slice:x:b.slice"), "a.slice/b.slice");
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for text in [
            "/",
            "..",
            "/a/../../b",
            "/a/./b",
            "/a/b\n",
            "/memory.max",
            "/a/cgroup.procs/b",
            "a.slice:x:",
            "a:x:y",
            "-a.slice:x:y",
            "a--b.slice:x:y",
            &format!("/{}", "x".repeat(256)),
            &"/x".repeat(2000),
        ] {
            assert!(directory(text).is_err(), "{text:?}: {:?}", directory(text));
        }
    }

    proptest! {
        #[test]
        fn no_path_leaves_the_root(text in "[a-c./:\\-]{0,24}|\\PC{0,40}") {
            if let Ok(Some(directory)) = directory(&text) {
                prop_assert!(directory.is_relative());
                let normal = |part| matches!(part, std::path::Component::Normal(_));
                prop_assert!(directory.components().all(normal));
                prop_assert!(directory.components().count() > 0);
            }
        }
    }
}
