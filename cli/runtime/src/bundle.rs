//! An engine's bundle, and what the shim gets of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use caisson_cli::engine::make_fifo;
use caisson_shim::client::Stdio;
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::error::{RuntimeError, io_error};

const CONFIG: &str = "config.json";

/// A bundle as it was found.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Absolute.
    pub directory: PathBuf,
    pub rootfs: PathBuf,
    pub spec: Spec,
}

impl Bundle {
    pub(crate) fn load(directory: &Path) -> Result<Self, RuntimeError> {
        let directory = directory.canonicalize().map_err(io_error("open the bundle", directory))?;
        let path = directory.join(CONFIG);
        let text = fs::read(&path).map_err(io_error("read", &path))?;
        let spec: Spec = serde_json::from_slice(&text)
            .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
        let missing = |field| RuntimeError::Incomplete { path: path.clone(), field };
        let root = spec.root().as_ref().ok_or_else(|| missing("root"))?;
        if spec.process().is_none() {
            return Err(missing("process"));
        }
        let rootfs = directory.join(root.path());
        let rootfs =
            rootfs.canonicalize().map_err(io_error("open the root filesystem", &rootfs))?;
        Ok(Self { directory, rootfs, spec })
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.spec.process().as_ref().and_then(|process| process.terminal()).unwrap_or(false)
    }

    /// Whether the container gets a network namespace that is not made yet.
    pub(crate) fn wants_new_network(&self) -> bool {
        let linux = self.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        namespaces.into_iter().flatten().any(|namespace| {
            namespace.typ() == LinuxNamespaceType::Network && namespace.path().is_none()
        })
    }

    /// Lets the container have the network of this namespace.
    pub(crate) fn use_network(&mut self, path: &Path) {
        let linux = self.spec.linux_mut().as_mut();
        let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
        for namespace in namespaces.into_iter().flatten() {
            if namespace.typ() == LinuxNamespaceType::Network {
                namespace.set_path(Some(path.to_owned()));
            }
        }
    }

    /// Writes the spec into the shim's bundle: paths absolute, as that is another directory,
    /// and without the hooks, which are run here.
    pub(crate) fn write_for_shim(mut self, to: &Path) -> Result<(), RuntimeError> {
        if let Some(root) = self.spec.root_mut() {
            root.set_path(self.rootfs.clone());
        }
        for mount in self.spec.mounts_mut().iter_mut().flatten() {
            let is_bind = mount.typ().as_deref() == Some("bind")
                || mount.options().iter().flatten().any(|it| it == "bind" || it == "rbind");
            if let (true, Some(source)) = (is_bind, mount.source().clone()) {
                mount.set_source(Some(self.directory.join(source)));
            }
        }
        self.spec.set_hooks(None);
        let path = to.join(CONFIG);
        let text = serde_json::to_vec(&self.spec)
            .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
        fs::write(&path, text).map_err(io_error("write", path))
    }
}

/// Makes the FIFOs of a process's streams.
pub(crate) fn make_streams(directory: &Path, terminal: bool) -> Result<Stdio, RuntimeError> {
    let fifo = |name: &str| -> Result<String, RuntimeError> {
        let path = directory.join(name);
        make_fifo(&path)?;
        Ok(path.to_string_lossy().into_owned())
    };
    let stderr = if terminal { String::new() } else { fifo("stderr")? };
    Ok(Stdio { stdin: fifo("stdin")?, stdout: fifo("stdout")?, stderr, terminal })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bundle(spec: serde_json::Value) -> (tempfile::TempDir, Result<Bundle, RuntimeError>) {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("rootfs")).unwrap();
        fs::write(root.path().join(CONFIG), spec.to_string()).unwrap();
        let loaded = Bundle::load(root.path());
        (root, loaded)
    }

    #[test]
    fn the_shim_gets_absolute_paths_and_no_hooks() {
        let (root, loaded) = bundle(json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
            "mounts": [
                { "destination": "/etc/hosts", "source": "hosts", "options": ["rbind"] },
                { "destination": "/proc", "source": "proc", "type": "proc" },
            ],
            "hooks": { "prestart": [{ "path": "/x" }] },
            "linux": { "namespaces": [{ "type": "network" }, { "type": "pid" }] },
        }));
        let mut loaded = loaded.unwrap();
        assert!(loaded.wants_new_network() && !loaded.has_terminal());
        loaded.use_network(Path::new("/proc/1/ns/net"));
        assert!(!loaded.wants_new_network());
        let to = tempfile::tempdir().unwrap();
        loaded.write_for_shim(to.path()).unwrap();
        let text = fs::read_to_string(to.path().join(CONFIG)).unwrap();
        let spec: serde_json::Value = serde_json::from_str(&text).unwrap();
        let directory = root.path().canonicalize().unwrap();
        let inside = |name: &str| json!(directory.join(name));
        assert_eq!(spec["root"]["path"], inside("rootfs"));
        assert_eq!(spec["mounts"][0]["source"], inside("hosts"));
        assert_eq!(spec["mounts"][1]["source"], "proc");
        assert_eq!(spec["linux"]["namespaces"][0]["path"], "/proc/1/ns/net");
        assert!(spec.get("hooks").is_none());
    }

    #[test]
    fn what_is_missing_in_a_bundle_is_named() {
        let (_root, loaded) = bundle(json!({ "ociVersion": "1.0.2" }));
        let error = loaded.unwrap_err().words();
        assert!(error.ends_with("config.json has no root"), "{error}");
        let (_root, loaded) =
            bundle(json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" } }));
        let error = loaded.unwrap_err().words();
        assert!(error.ends_with("config.json has no process"), "{error}");
        let error = Bundle::load(Path::new("/no/such")).unwrap_err().words();
        assert!(error.starts_with("open the bundle /no/such: "), "{error}");
    }
}
