//! Values of `--volume` and `--mount`.

use std::{collections::HashSet, io};

use crate::{
    config::{Mount, MountSource, Tmpfs},
    volumes::{self, VolumeError},
};

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error(
        "invalid volume specification: {0:?}: expected [HOST-DIR:|VOLUME:]CONTAINER-DIR[:ro]; a directory of \
         the host is absolute or begins with a dot"
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
    #[error(transparent)]
    VolumeName(#[from] VolumeError),
    #[error("{0}: there are volumes of the driver \"local\" only")]
    Driver(String),
    #[error("find the working directory, from which {path:?} is meant")]
    WorkingDir { path: String, source: io::Error },
}

/// `HOST-DIR:CONTAINER-DIR[:OPTION,…]`, `VOLUME:CONTAINER-DIR[:OPTION,…]` or `CONTAINER-DIR`.
pub fn volume(text: &str) -> Result<Mount, MountError> {
    let invalid = || MountError::Volume(text.to_owned());
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts.as_slice() {
        [target] => return anonymous(target, Some(String::new())),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(invalid()),
    };
    if source.is_empty() {
        return Err(invalid());
    }
    let (mut readonly, mut copy) = (false, true);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => readonly = true,
            "nocopy" => copy = false,
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
    let source = match source.starts_with(['/', '.']) {
        true => MountSource::Bind { path: absolute(source)?, recursive: true, create: true },
        false => named(source, copy)?,
    };
    Ok(Mount { source, target, readonly, mode: Some(options.to_owned()) })
}

/// A volume that gets its name when its container is created.
pub fn anonymous(target: &str, mode: Option<String>) -> Result<Mount, MountError> {
    let source = MountSource::Volume { name: String::new(), anonymous: true, copy: true };
    Ok(Mount { source, target: destination(target)?, readonly: false, mode })
}

fn named(name: &str, copy: bool) -> Result<MountSource, MountError> {
    volumes::check_name(name)?;
    Ok(MountSource::Volume { name: name.to_owned(), anonymous: false, copy })
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
    let mut fields =
        Fields { kind: "volume".to_owned(), recursive: true, copy: true, ..Fields::default() };
    for field in csv_fields(text).ok_or_else(|| invalid("a quote is not closed".to_owned()))? {
        fields.set(&field, &invalid)?;
    }
    let Fields { kind, source, target, readonly, recursive, copy, tmpfs } = fields;
    let target = target.ok_or_else(|| invalid("target is required".to_owned()))?;
    let target = destination(&target)?;
    if !tmpfs.is_empty() && kind != "tmpfs" {
        return Err(invalid(format!("cannot mix 'tmpfs-*' options with mount type '{kind}'")));
    }
    if !copy && kind != "volume" {
        return Err(invalid(format!("cannot mix 'volume-*' options with mount type '{kind}'")));
    }
    match kind.as_str() {
        "bind" => {
            let path = source.ok_or_else(|| invalid("source is required".to_owned()))?;
            let source = MountSource::Bind { path: absolute(&path)?, recursive, create: false };
            Ok(Mounted::Mount(Mount { source, target, readonly, mode: None }))
        }
        "tmpfs" if source.is_some() => Err(invalid("a tmpfs has no source".to_owned())),
        "tmpfs" => {
            let read = readonly.then(|| "ro".to_owned());
            let options = tmpfs.into_iter().chain(read).collect();
            Ok(Mounted::Tmpfs(Tmpfs { path: target, options }))
        }
        "volume" => {
            let source = match source.as_deref().unwrap_or_default() {
                "" => MountSource::Volume { name: String::new(), anonymous: true, copy },
                name => named(name, copy)?,
            };
            Ok(Mounted::Mount(Mount { source, target, readonly, mode: None }))
        }
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
    copy: bool,
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
            "volume-nocopy" => self.copy = !truth()?,
            "volume-driver" if needed()? == "local" => {}
            "volume-driver" => return Err(MountError::Driver(needed()?.to_owned())),
            "volume-label" | "volume-opt" => {
                let way = "`caisson volume create --label` makes a volume with labels";
                return Err(invalid(format!("{key} is not part of this version; {way}")));
            }
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

/// `CONTAINER[:ro]`: the container, and whether what it mounts is read-only here.
pub fn volumes_from(text: &str) -> Result<(&str, bool), MountError> {
    match text.split_once(':') {
        None => Ok((text, false)),
        Some((name, "rw")) => Ok((name, false)),
        Some((name, "ro")) => Ok((name, true)),
        Some((_, mode)) => Err(MountError::Mode { text: text.to_owned(), mode: mode.to_owned() }),
    }
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
        Mount { source, target: target.into(), readonly, mode: Some(mode.into()) }
    }

    fn volume_of(name: &str, copy: bool) -> MountSource {
        MountSource::Volume { name: name.into(), anonymous: name.is_empty(), copy }
    }

    #[test]
    fn a_volume_has_a_name_or_gets_one() {
        let data = volume("data:/b:nocopy,ro").unwrap();
        assert_eq!((&data.source, data.readonly), (&volume_of("data", false), true));
        assert_eq!(volume("/b/").unwrap().source, volume_of("", true));
        for (text, expected) in [
            ("type=volume,src=data,dst=/b", volume_of("data", true)),
            ("source=data,target=/b,volume-nocopy", volume_of("data", false)),
            ("dst=/b,volume-driver=local", volume_of("", true)),
        ] {
            let Mounted::Mount(mount) = mount(text).unwrap() else { panic!("{text}") };
            assert_eq!((mount.source, mount.target.as_str()), (expected, "/b"), "{text}");
        }
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
            ("", "must be absolute"),
            ("data", "must be absolute"),
            ("x:/b", "invalid characters for a local volume name"),
            ("a/b:/b", "use absolute path"),
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
        assert_eq!(mount_, Mount { source, target: "/b".into(), readonly: true, mode: None });
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
            ("type=bind,source=/a,target=/b,volume-nocopy", "cannot mix"),
            ("source=a/b,target=/b", "use absolute path"),
            ("source=data,target=/b,volume-driver=nfs", "nfs"),
            ("source=data,target=/b,volume-label=a=b", "volume create --label"),
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
    fn volumes_come_from_containers() {
        assert_eq!(volumes_from("web").unwrap(), ("web", false));
        assert_eq!(volumes_from("web:rw").unwrap(), ("web", false));
        assert_eq!(volumes_from("web:ro").unwrap(), ("web", true));
        assert!(volumes_from("web:rx").unwrap_err().to_string().contains("invalid mode: rx"));
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
