//! Working on a container's files and processes, whether or not it runs.
//!
//! A guest has written the disk, so no kernel but a guest's may mount it. A container that
//! does not run is booted for the visit as if it were to be started, its process is prepared
//! and never started, and the VM is shut down in the end. Its row is marked meanwhile: whoever
//! finds the mark and the container's lock free ends what a dead visitor has left.

use caisson_shim::client::ShimClient;

use super::{Engine, EngineError, Startup, StdioPlan};
use crate::{
    config::Network,
    records::{Container, State, lock::ContainerLock},
};

/// A container whose shim takes tools. It must be [left](Engine::leave).
pub struct Visit {
    pub client: ShimClient,
    /// For a container that was booted for the visit.
    booted: Option<(Container, ContainerLock)>,
}

impl Engine {
    /// Connects to the container, and boots it if it does not run. Nobody can start, remove
    /// or visit one that does not run at the same time.
    pub fn visit(
        &self,
        container: &Container,
        startup: &mut dyn Startup,
    ) -> Result<Visit, EngineError> {
        if container.state == State::Running {
            return Ok(Visit { client: self.connect(container)?, booted: None });
        }
        let (mut now, lock) = self.records.lock(container)?;
        match now.state {
            State::Running => return Ok(Visit { client: self.connect(&now)?, booted: None }),
            State::Created | State::Exited => {}
            _ => return Err(EngineError::Damaged { name: now.name }),
        }
        if now.visited {
            self.end_visit(&now)?;
        }
        let mut config =
            now.config.clone().ok_or_else(|| EngineError::Damaged { name: now.name.clone() })?;
        // Nobody is started who would use it, and its ports may be another's now.
        config.network = Network::None;
        self.records.set_visited(&now.id, true)?;
        now.visited = true;
        match self.boot(&now, &config, StdioPlan::Unused, None, startup) {
            Ok((client, _)) => Ok(Visit { client, booted: Some((now, lock)) }),
            Err(error) => {
                // The first error is the one to tell; what stays is ended by the next command.
                if let Err(clean_up) = self.end_visit(&now) {
                    tracing::warn!(%clean_up, "undo the visit of {}", now.id);
                }
                Err(error)
            }
        }
    }

    /// Ends a visit, and the VM if that was booted for it.
    pub fn leave(&self, visit: Visit) -> Result<(), EngineError> {
        match visit.booted {
            Some((container, _lock)) => self.end_visit(&container),
            None => Ok(()),
        }
    }

    /// Under the container's lock.
    pub(super) fn end_visit(&self, container: &Container) -> Result<(), EngineError> {
        self.end_shim(container);
        self.remove_bundle(container)?;
        Ok(self.records.set_visited(&container.id, false)?)
    }
}
