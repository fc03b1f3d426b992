//! Removing a container and everything of it.

use std::{fs, io};

use caisson_failpoints::{hit, pass, steps};

use super::{Engine, EngineError, io_error, lease_owner};
use crate::records::{Container, State};

/// What becomes of a removed container's volumes that nobody has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volumes {
    Keep,
    Remove,
}

impl Engine {
    /// Removes a container; a running one only with `force`.
    pub fn remove(
        &self,
        container: &Container,
        force: bool,
        volumes: Volumes,
    ) -> Result<(), EngineError> {
        let (container, _lock) = self.records.lock(container)?;
        if container.state == State::Running && !force {
            return Err(EngineError::RemoveRunning { name: container.name });
        }
        let root = &self.globals.root;
        hit(&steps::CLI_REMOVE_STATE).map_err(io_error("record the removal in", root))?;
        self.records.set_state(&container.id, State::Removing)?;
        pass(&steps::CLI_REMOVE_ANNOUNCED);
        self.discard(&container, volumes)
    }

    /// Removes whatever there is of the container, the record last: as long as it is there
    /// the rest can be found. Under the container's lock.
    pub(super) fn discard(
        &self,
        container: &Container,
        volumes: Volumes,
    ) -> Result<(), EngineError> {
        self.end_shim(container);
        self.remove_bundle(container)?;
        let directory = self.globals.container_dir(&container.id);
        match hit(&steps::CLI_REMOVE_DIRECTORY).and_then(|()| fs::remove_dir_all(&directory)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &directory)(error));
            }
            _ => {}
        }
        if volumes == Volumes::Remove {
            self.remove_anonymous_volumes(container)?;
        }
        self.store.release(&lease_owner(&container.id))?;
        hit(&steps::CLI_REMOVE_ROW)
            .map_err(io_error("record the removal in", &self.globals.root))?;
        self.records.delete(&container.id)?;
        self.tell(container, "destroy");
        Ok(())
    }
}
