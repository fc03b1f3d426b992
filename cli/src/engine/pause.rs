//! Freezing the processes of a container, and letting them go on.

use caisson_shim::client::Status;

use super::{Engine, EngineError};
use crate::records::Container;

impl Engine {
    /// Freezes the container's processes. The VM goes on: it answers, and takes a signal.
    pub fn pause(&self, container: &Container) -> Result<(), EngineError> {
        self.set_paused(container, true)
    }

    /// The reverse of [`Engine::pause`].
    pub fn unpause(&self, container: &Container) -> Result<(), EngineError> {
        self.set_paused(container, false)
    }

    /// The shim knows whether they are frozen; the record only says so in lists, and may be
    /// behind if a command died between the two.
    fn set_paused(&self, container: &Container, paused: bool) -> Result<(), EngineError> {
        let (now, _lock) = self.records.lock(container)?;
        let client = self.connect_running(&now)?;
        let was_paused = client.state(None)?.status == Status::Paused;
        match (was_paused, paused) {
            (false, true) => client.pause()?,
            (true, false) => client.resume()?,
            _ => {}
        }
        self.records.set_paused(&now.id, paused)?;
        let name = now.name;
        match (was_paused, paused) {
            (true, true) => Err(EngineError::AlreadyPaused { name }),
            (false, false) => Err(EngineError::NotPaused { name }),
            _ => {
                self.tell(container, if paused { "pause" } else { "unpause" });
                Ok(())
            }
        }
    }
}
