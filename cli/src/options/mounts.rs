//! Values of `--volume` and `--mount`.

use std::{collections::HashSet, io};

use crate::config::{Mount, MountSource, Tmpfs};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(
        "invalid volume specification: {0:?}: expected HOST-DIR:CONTAINER-DIR[:ro], both absolute or the first \
         beginning with a dot"
    )]
    Volume(String),
    #[error("invalid volume specification: {text:?}: invalid mode: {mode}")]
    Mode { text: String, mode: String },
    #[error("invalid argument {text:?} for \"--mount\" flag: {problem}")]
    Mount { text: String, problem: String },
    #[error("invalid mount path: {0:?}: mount path must be absolute")]
    Relative(String),
    #[error("invalid mount path {0:?}: destination can't be '/'")]
    Root(String),
    #[error("Duplicate mount point: {0}")]
    Duplicate(String),
    #[error(
        "bind propagation {0}: what the host mounts later does not come into a running microVM; there are \
         private and rprivate"
    )]
    Propagation(String),
    #[error(
        "{0}: named and anonymous volumes are not part of this version; a directory of the host is"
    )]
    NoVolumes(String),
    #[error("find the working directory, from which {path:?} is meant")]
    WorkingDir { path: String, source: io::Error },
}

/// `HOST-DIR:CONTAINER-DIR[:OPTION,…]`.
pub fn volume(text: &str) -> Result<Mount, MountError> {
    let invalid = || MountError::Volume(text.to_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] if target.starts_with('/') => return Err(MountError::NoVolumes(text.to_owned())),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(invalid()),
    };
    if source.is_empty() {
        return Err(invalid());
    }
    let mut readonly = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            // Nothing of SELinux's reaches the guest, and nothing of macOS's this host.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            other if is_propagation(other) => propagation(other)?,
            other => {
                let (text, mode) = (text.to_owned(), other.to_owned());
                return Err(MountError::Mode { text, mode });
            }
        }
    }
    let target = destination(target)?;
    if !source.starts_with(['/', '.']) {
        return Err(MountError::NoVolumes(source.to_owned()));
    }
    let source = MountSource::Bind { path: absolute(source)?, recursive: true, create: true };
    Ok(Mount { source, target, readonly, mode: options.to_owned() })
}

/// What one `--mount` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mounted {
    Mount(Mount),
    Tmpfs(Tmpfs),
}

/// `type=bind,source=…,target=…[,readonly]`, comma-separated as in a CSV file.
pub fn mount(text: &str) -> Result<Mounted, MountError> {
    let invalid = |problem: String| MountError::Mount { text: text.to_owned(), problem };
    let mut fields = Fields { kind: "volume".to_owned(), recursive: true, ..Fields::default() };
    for field in csv_fields(text).ok_or_else(|| invalid("a quote is not closed".to_owned()))? {
        fields.set(&field, &invalid)?;
    }
    let Fields { kind, source, target, readonly, recursive, tmpfs } = fields;
    let target = target.ok_or_else(|| invalid("target is required".to_owned()))?;
    let target = destination(&target)?;
    if !tmpfs.is_empty() && kind != "tmpfs" {
        return Err(invalid(format!("cannot mix 'tmpfs-*' options with mount type '{kind}'")));
    }
    match kind.as_str() {
        "bind" => {
            let path = source.ok_or_else(|| invalid("source is required".to_owned()))?;
            let source = MountSource::Bind { path: absolute(&path)?, recursive, create: false };
            Ok(Mounted::Mount(Mount { source, target, readonly, mode: String::new() }))
        }
        "tmpfs" if source.is_some() => Err(invalid("a tmpfs has no source".to_owned())),
        "tmpfs" => {
            let read = readonly.then(|| "ro".to_owned());
            let options = tmpfs.into_iter().chain(read).collect();
            Ok(Mounted::Tmpfs(Tmpfs { path: target, options }))
        }
        "volume" => Err(MountError::NoVolumes(source.unwrap_or(target))),
        other => Err(invalid(format!("unknown type {other:?}; there are bind, volume and tmpfs"))),
    }
}

#[derive(Default)]
struct Fields {
    kind: String,
    source: Option<String>,
    target: Option<String>,
    readonly: bool,
    recursive: bool,
    /// Mount options.
    tmpfs: Vec<String>,
}

impl Fields {
    fn set(
        &mut self,
        field: &str,
        invalid: &dyn Fn(String) -> MountError,
    ) -> Result<(), MountError> {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field, None),
        };
        let needed = || {
            value
                .ok_or_else(|| invalid(format!("invalid field '{field}' must be a key=value pair")))
        };
        let truth = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(invalid(format!("invalid value for {key}: {other}"))),
        };
        match key.to_ascii_lowercase().as_str() {
            "type" => self.kind = needed()?.to_ascii_lowercase(),
            "source" | "src" => self.source = Some(needed()?.to_owned()),
            "target" | "dst" | "destination" => self.target = Some(needed()?.to_owned()),
            "readonly" | "ro" => self.readonly = truth()?,
            "consistency" => drop(needed()?),
            "bind-propagation" => propagation(needed()?)?,
            "bind-nonrecursive" => self.recursive = !truth()?,
            "bind-recursive" => match needed()? {
                // What is read-only is so with all that is mounted below it.
                "enabled" | "writable" | "readonly" => self.recursive = true,
                "disabled" => self.recursive = false,
                other => return Err(invalid(format!("invalid value for {key}: {other}"))),
            },
            "tmpfs-size" => {
                let bytes = crate::format::units::parse_bytes(needed()?);
                let bytes =
                    bytes.map_err(|error| invalid(format!("invalid value for {key}: {error}")))?;
                self.tmpfs.push(format!("size={bytes}"));
            }
            "tmpfs-mode" => match u32::from_str_radix(needed()?, 8) {
                Ok(mode @ 0..=0o7777) => self.tmpfs.push(format!("mode={mode:o}")),
                _ => return Err(invalid(format!("invalid value for {key}: {field}"))),
            },
            other => return Err(invalid(format!("unexpected key '{other}' in '{field}'"))),
        }
        Ok(())
    }
}

/// The fields of one line of a CSV file (RFC 4180); `None` for a quote without its other.
fn csv_fields(text: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut().expect("there is always a field");
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    (!quoted).then_some(fields)
}

fn is_propagation(word: &str) -> bool {
    ["private", "rprivate", "shared", "rshared", "slave", "rslave"].contains(&word)
}

fn propagation(word: &str) -> Result<(), MountError> {
    match word {
        "private" | "rprivate" => Ok(()),
        other => Err(MountError::Propagation(other.to_owned())),
    }
}

/// Where it goes in the container, without empty, `.` and `..` components.
fn destination(text: &str) -> Result<String, MountError> {
    if !text.starts_with('/') || text.contains('\0') {
        return Err(MountError::Relative(text.to_owned()));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(MountError::Root(text.to_owned()));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn absolute(path: &str) -> Result<String, MountError> {
    let absolute = std::path::absolute(path)
        .map_err(|source| MountError::WorkingDir { path: path.to_owned(), source })?;
    // UTF-8 as both of its parts are: `path` is, and a working directory that is not is told.
    absolute.into_os_string().into_string().map_err(|_| {
        let source = io::Error::from(io::ErrorKind::InvalidFilename);
        MountError::WorkingDir { path: path.to_owned(), source }
    })
}

/// Refuses two mounts in one place.
pub fn refuse_duplicates(mounts: &[Mount], tmpfs: &[Tmpfs]) -> Result<(), MountError> {
    let mut seen = HashSet::new();
    let targets = mounts.iter().map(|mount| mount.target.as_str());
    let tmpfs = tmpfs.iter().map(|tmpfs| tmpfs.path.trim_end_matches('/'));
    match targets.chain(tmpfs).find(|target| !seen.insert(*target)) {
        Some(twice) => Err(MountError::Duplicate(twice.to_owned())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(path: &str, target: &str, readonly: bool, mode: &str) -> Mount {
        let source = MountSource::Bind { path: path.into(), recursive: true, create: true };
        Mount { source, target: target.into(), readonly, mode: mode.into() }
    }

    #[test]
    fn a_volume_is_a_directory_of_the_host() {
        assert_eq!(volume("/a:/b").unwrap(), bind("/a", "/b", false, ""));
        assert_eq!(volume("/a:/x/../b/:ro,z").unwrap(), bind("/a", "/b", true, "ro,z"));
        let here = std::env::current_dir().unwrap();
        let here = here.to_str().unwrap();
        assert_eq!(volume("./x:/b").unwrap(), bind(&format!("{here}/x"), "/b", false, ""));
        assert_eq!(volume(".:/b:rprivate").unwrap(), bind(here, "/b", false, "rprivate"));
    }

    #[test]
    fn a_bad_volume_is_named_with_what_is_wrong() {
        for (text, words) in [
            ("", "invalid volume specification"),
            (":/b", "invalid volume specification"),
            ("/a:/b:ro:rw", "invalid volume specification"),
            ("/a:b", "must be absolute"),
            ("/a:", "must be absolute"),
            ("/a:/", "destination can't be '/'"),
            ("/a:/..", "destination can't be '/'"),
            ("/a:/b:rx", "invalid mode: rx"),
            ("/a:/b:rshared", "rprivate"),
        ] {
            let error = volume(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_mount_is_read_as_docker_reads_it() {
        let Mounted::Mount(mount_) = mount("type=bind,src=/a,dst=/b,readonly").unwrap() else {
            panic!("a bind mount");
        };
        let source = MountSource::Bind { path: "/a".into(), recursive: true, create: false };
        assert_eq!(
            mount_,
            Mount { source, target: "/b".into(), readonly: true, mode: String::new() }
        );
        let Mounted::Mount(odd) =
            mount("type=bind,\"source=/a,\"\"b\"\"\",target=/b,ro=false,bind-recursive=disabled")
                .unwrap()
        else {
            panic!("a bind mount");
        };
        let source = MountSource::Bind { path: "/a,\"b\"".into(), recursive: false, create: false };
        assert_eq!((odd.source, odd.readonly), (source, false));
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1777").unwrap();
        let options = vec!["size=1048576".into(), "mode=1777".into()];
        assert_eq!(tmpfs, Mounted::Tmpfs(Tmpfs { path: "/t".into(), options }));
    }

    #[test]
    fn a_bad_mount_is_named_with_what_is_wrong() {
        for (text, words) in [
            ("type=bind,source=/a", "target is required"),
            ("type=bind,target=/b", "source is required"),
            ("type=bind,source=/a,target=b", "must be absolute"),
            ("type=npipe,source=/a,target=/b", "unknown type"),
            ("type=bind,source", "key=value"),
            ("type=bind,source=/a,target=/b,readonly=maybe", "readonly: maybe"),
            ("type=bind,source=/a,target=/b,colour=red", "unexpected key 'colour'"),
            ("type=bind,source=/a,target=/b,tmpfs-size=1m", "cannot mix"),
            ("type=bind,source=/a,target=/b,bind-propagation=rslave", "rprivate"),
            ("type=tmpfs,target=/t,tmpfs-mode=99999", "tmpfs-mode"),
            ("type=tmpfs,target=/t,source=/a", "no source"),
            ("type=bind,\"source=/a", "quote"),
        ] {
            let error = mount(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn one_place_holds_one_mount() {
        let mounts = [bind("/a", "/b", false, ""), bind("/a", "/c", false, "")];
        let tmpfs = |path: &str| Tmpfs { path: path.into(), options: Vec::new() };
        refuse_duplicates(&mounts, &[tmpfs("/t")]).unwrap();
        for twice in ["/b", "/c/"] {
            let error = refuse_duplicates(&mounts, &[tmpfs(twice)]).unwrap_err();
            assert!(error.to_string().starts_with("Duplicate mount point: /"), "{error}");
        }
    }
}
