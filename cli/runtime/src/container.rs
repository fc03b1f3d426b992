//! A container's directory below `--root`: its record and the bundle that the shim works on.
//!
//! ```text
//!   <root>/<id>/state.json   the record: made first, whole or not at all
//!   <root>/<id>/shim.sock    the shim's Task API
//!   <root>/<id>/bundle/      config.json as the shim gets it, FIFOs, the shim's own files
//! ```

use std::{
    collections::HashMap,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use caisson_shim::{
    client::{ClientError, ShimClient, Status},
    exit::Exit,
    host_process::HostProcess,
};
use oci_spec::runtime::Hook;
use serde::{Deserialize, Serialize};

use crate::error::{RuntimeError, io_error};

const RECORD: &str = "state.json";
const MAX_ID_BYTES: usize = 1024;

/// What is known of a container whether or not its shim lives.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub oci_version: String,
    pub id: String,
    /// The engine's.
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    #[serde(default)]
    pub annotations: HashMap<String, String>,
    /// The process that stands for the container on the host.
    pub keeper: Option<HostProcess>,
    /// To be run after the start and after the deletion.
    #[serde(default)]
    pub poststart: Vec<Hook>,
    #[serde(default)]
    pub poststop: Vec<Hook>,
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    directory: PathBuf,
    pub record: Record,
}

/// As the runtime-spec's state names it, and `paused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContainerStatus {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl ContainerStatus {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Container {
    /// Takes the id: makes the directory, which must not be there, and the record.
    pub(crate) fn reserve(root: &Path, record: Record) -> Result<Self, RuntimeError> {
        check_id(&record.id)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(root)
            .map_err(io_error("make", root))?;
        let directory = root.join(&record.id);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(RuntimeError::Exists(record.id));
            }
            made => made.map_err(io_error("make", &directory))?,
        }
        let container = Self { directory, record };
        let made = container.save().and_then(|()| {
            let bundle = container.bundle();
            DirBuilder::new().mode(0o700).create(&bundle).map_err(io_error("make", bundle))
        });
        if made.is_err() {
            container.remove()?;
        }
        made.map(|()| container)
    }

    pub(crate) fn load(root: &Path, id: &str) -> Result<Self, RuntimeError> {
        check_id(id)?;
        let directory = root.join(id);
        let path = directory.join(RECORD);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuntimeError::NotFound(id.to_owned()));
            }
            text => text.map_err(io_error("read", &path))?,
        };
        let record =
            serde_json::from_slice(&text).map_err(|source| RuntimeError::Json { path, source })?;
        Ok(Self { directory, record })
    }

    /// All of them; one that is made or removed meanwhile may be left out.
    pub(crate) fn list(root: &Path) -> Result<Vec<Self>, RuntimeError> {
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("list", root))?,
        };
        let mut containers = Vec::new();
        for entry in entries {
            let name = entry.map_err(io_error("list", root))?.file_name();
            let Some(id) = name.to_str() else { continue };
            match Self::load(root, id) {
                Ok(container) => containers.push(container),
                Err(RuntimeError::NotFound(_) | RuntimeError::InvalidId(_)) => {}
                Err(error) => return Err(error),
            }
        }
        containers.sort_by(|one, other| one.record.id.cmp(&other.record.id));
        Ok(containers)
    }

    /// Writes the record, whole or not at all.
    pub(crate) fn save(&self) -> Result<(), RuntimeError> {
        let (path, new) = (self.directory.join(RECORD), self.directory.join(".state.json.new"));
        let text = serde_json::to_vec(&self.record)
            .map_err(|source| RuntimeError::Json { path: path.clone(), source })?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(io_error("write", path))
    }

    /// Removes the directory; the VM must be gone.
    pub(crate) fn remove(&self) -> Result<(), RuntimeError> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &self.directory)(error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.record.id
    }

    /// The bundle that the shim works on.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("shim.sock")
    }

    /// The files of one further process.
    pub(crate) fn exec_directory(&self, exec: &str) -> PathBuf {
        self.bundle().join(format!("exec-{exec}"))
    }

    pub(crate) fn connect(&self) -> Result<ShimClient, ClientError> {
        ShimClient::connect(&self.socket(), self.id(), &self.bundle())
    }

    pub(crate) fn status(&self) -> ContainerStatus {
        if let Ok(Some(_)) = Exit::load(&self.bundle()) {
            return ContainerStatus::Stopped;
        }
        let Some(keeper) = self.record.keeper else { return ContainerStatus::Creating };
        match self.connect().and_then(|client| client.state(None)) {
            Ok(state) if keeper.lives() => match state.status {
                Status::Created => ContainerStatus::Created,
                Status::Running => ContainerStatus::Running,
                Status::Paused => ContainerStatus::Paused,
                Status::Stopped | Status::Unknown => ContainerStatus::Stopped,
            },
            // Without its keeper nobody sees how it ends; without its shim it has ended.
            _ => ContainerStatus::Stopped,
        }
    }

    /// A connection to a container that runs or waits to.
    pub(crate) fn connect_alive(&self) -> Result<ShimClient, RuntimeError> {
        match self.status() {
            ContainerStatus::Stopped | ContainerStatus::Creating => {
                Err(RuntimeError::NotRunning(self.id().to_owned()))
            }
            _ => Ok(self.connect()?),
        }
    }

    /// The keeper's number while it stands for a process, else 0.
    pub(crate) fn pid(&self, status: ContainerStatus) -> u32 {
        match (status, self.record.keeper) {
            (ContainerStatus::Stopped, _) | (_, None) => 0,
            (_, Some(keeper)) => keeper.pid,
        }
    }
}

/// runc's rule.
fn check_id(id: &str) -> Result<(), RuntimeError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    let valid = !id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(good);
    match valid && id != "." && id != ".." {
        true => Ok(()),
        false => Err(RuntimeError::InvalidId(id.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Record {
        Record {
            oci_version: "1.0.2".into(),
            id: id.into(),
            bundle: "/bundle".into(),
            rootfs: "/bundle/rootfs".into(),
            created: "2026-01-01T00:00:00Z".into(),
            annotations: HashMap::from([("a".into(), "b".into())]),
            keeper: None,
            poststart: Vec::new(),
            poststop: Vec::new(),
        }
    }

    #[test]
    fn an_id_is_taken_once_and_free_after_its_removal() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().join("run");
        let container = Container::reserve(&root, record("one")).unwrap();
        assert!(matches!(
            Container::reserve(&root, record("one")),
            Err(RuntimeError::Exists(id)) if id == "one"
        ));
        let loaded = Container::load(&root, "one").unwrap();
        assert_eq!(loaded.record.annotations["a"], "b");
        assert_eq!(loaded.status(), ContainerStatus::Creating);
        assert_eq!(Container::list(&root).unwrap().len(), 1);
        container.remove().unwrap();
        container.remove().unwrap();
        assert!(matches!(Container::load(&root, "one"), Err(RuntimeError::NotFound(_))));
        assert!(Container::list(&root).unwrap().is_empty());
    }

    #[test]
    fn an_id_is_no_path() {
        let long = "x".repeat(MAX_ID_BYTES + 1);
        for id in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\0", long.as_str()] {
            assert!(matches!(check_id(id), Err(RuntimeError::InvalidId(_))), "{id:?}");
        }
        check_id("a_B+c-d.9").unwrap();
    }

    #[test]
    fn a_damaged_record_is_named() {
        let root = tempfile::tempdir().unwrap();
        Container::reserve(root.path(), record("one")).unwrap();
        fs::write(root.path().join("one/state.json"), "{").unwrap();
        let error = Container::load(root.path(), "one").unwrap_err();
        assert!(error.words().contains("one/state.json"), "{}", error.words());
    }

    #[test]
    fn a_container_whose_keeper_and_shim_are_gone_is_stopped() {
        let root = tempfile::tempdir().unwrap();
        let mut container = Container::reserve(root.path(), record("one")).unwrap();
        container.record.keeper = Some(HostProcess { pid: u32::MAX, start_time: 1 });
        assert_eq!(container.status(), ContainerStatus::Stopped);
        assert_eq!(container.pid(ContainerStatus::Stopped), 0);
        assert!(matches!(container.connect_alive(), Err(RuntimeError::NotRunning(_))));
    }
}
