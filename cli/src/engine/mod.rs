//! The life of a container, as the commands make it: records, store and shims together.
//!
//! Each operation takes the container's lock, writes what it is about to do into the
//! record, does it, and undoes all of it if a step fails.

mod bundle;
mod create;
mod finish;
mod lost;
mod monitor;
mod mounts;
mod network;
mod pause;
mod process;
mod reap;
mod remove;
mod start;
mod update;
mod usage;
mod visit;
mod volumes;

use caisson_rootfs::{Store, StoreError};
use caisson_shim::{
    assets::{AssetError, Assets},
    client::{ClientError, ShimClient},
};

pub use bundle::{BundleError, make_fifo};
pub use create::{Created, NewContainer};
pub use monitor::{MONITOR_COMMAND, MonitorError, run_monitor};
pub use mounts::make_source;
pub use remove::Volumes as RemovedVolumes;
pub use start::{LogTarget, Started, Startup, StdioPlan};
pub use usage::Sample;
pub use visit::Visit;

use crate::{
    events::Event,
    globals::Globals,
    records::{Container, RecordError, Records},
    spec::SpecError,
};

/// Those of the parts are told as they are, and stay in the chain of causes, where the exit
/// code is read from.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Volume(#[from] crate::volumes::VolumeError),
    #[error("{0}")]
    Disk(#[from] caisson_rootfs::DiskError),
    #[error("{0}")]
    Asset(#[from] AssetError),
    #[error("{0}")]
    Shim(#[from] ClientError),
    #[error("{0}")]
    Spec(#[from] SpecError),
    #[error("{0}")]
    Bundle(#[from] BundleError),
    #[error("{0}")]
    Monitor(#[from] MonitorError),
    #[error("{0}")]
    Attach(#[from] crate::attach::AttachError),
    #[error("{action} {path}")]
    Io { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error(
        "invalid mount config for type \"bind\": bind source path does not exist: {path}; `-v` makes a \
         directory there"
    )]
    NoBindSource { path: String },
    #[error("get random bytes for an id")]
    Random(#[source] std::io::Error),
    #[error("container {name} is not running")]
    NotRunning { name: String },
    #[error("container {name} is paused; `caisson unpause {name}` lets it go on")]
    Paused { name: String },
    #[error("container {name} is already paused")]
    AlreadyPaused { name: String },
    #[error("container {name} is not paused")]
    NotPaused { name: String },
    #[error("container {name} is already running")]
    AlreadyRunning { name: String },
    #[error(
        "cannot remove container \"/{name}\": container is running: stop the container before removing \
         or force remove"
    )]
    RemoveRunning { name: String },
    #[error(
        "the record of container {name} is damaged, or was written by another version; it can only be \
         removed: `caisson rm -f {name}`"
    )]
    Damaged { name: String },
    #[error("interrupted")]
    Interrupted,
}

/// Everything an operation needs.
pub struct Engine {
    pub globals: Globals,
    pub store: Store,
    /// Dropped last: the last connection to close decides what becomes of the database's log.
    pub records: Records,
}

impl Engine {
    /// Opens the state, and finishes or undoes what dead processes left.
    pub fn open(globals: &Globals) -> Result<Self, EngineError> {
        let engine = Self::open_quietly(globals)?;
        // What stays for now takes space; it must not keep anything from being used.
        if let Err(error) = engine.remove_lost() {
            tracing::warn!(%error, "look for containers that a power loss has left");
        }
        engine.reap()?;
        Ok(engine)
    }

    /// As [`Engine::open`], without tidying up after others.
    pub fn open_quietly(globals: &Globals) -> Result<Self, EngineError> {
        let store = Store::open(&globals.root)?;
        let records = Records::open(store.open_database()?, &globals.root)?;
        Ok(Self { globals: globals.clone(), store, records })
    }

    /// The shim of a container.
    pub fn connect(&self, container: &Container) -> Result<ShimClient, EngineError> {
        let socket = self.globals.shim_socket(&container.id);
        Ok(ShimClient::connect(&socket, &container.id, &self.globals.bundle_dir(&container.id))?)
    }

    /// The shim of a container that must be running.
    pub fn connect_running(&self, container: &Container) -> Result<ShimClient, EngineError> {
        if container.state != crate::records::State::Running {
            return Err(EngineError::NotRunning { name: container.name.clone() });
        }
        self.connect(container)
    }

    /// Tells that `action` has happened to the container.
    pub fn tell(&self, container: &Container, action: &str) {
        Event::of_container(container, action).tell(&self.globals.root);
    }

    fn assets(&self) -> Result<Assets, EngineError> {
        Ok(Assets::locate()?)
    }
}

/// The owner of a container's lease in the image store.
pub fn lease_owner(id: &str) -> String {
    format!("container/{id}")
}

fn io_error<'a>(
    action: &'static str,
    path: &'a std::path::Path,
) -> impl FnOnce(std::io::Error) -> EngineError + use<'a> {
    move |source| EngineError::Io { action, path: path.to_owned(), source }
}
