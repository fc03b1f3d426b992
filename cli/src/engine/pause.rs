//! Freezing the processes of a container, and letting them go on.

use super::{Engine, EngineError};
use crate::records::{Container, State};

impl Engine {
    /// Freezes the container's processes. The VM goes on: it answers, and takes a signal.
    pub fn pause(&self, container: &Container) -> Result<(), EngineError> {
        self.set_paused(container, true)
    }

    /// The reverse of [`Engine::pause`].
    pub fn unpause(&self, container: &Container) -> Result<(), EngineError> {
        self.set_paused(container, false)
    }

    fn set_paused(&self, container: &Container, paused: bool) -> Result<(), EngineError> {
        let (now, _lock) = self.records.lock(container)?;
        let name = now.name.clone();
        match (now.state, now.paused) {
            (State::Running, true) if paused => return Err(EngineError::AlreadyPaused { name }),
            (State::Running, false) if !paused => return Err(EngineError::NotPaused { name }),
            (State::Running, _) => {}
            _ => return Err(EngineError::NotRunning { name }),
        }
        let client = self.connect(&now)?;
        if paused {
            client.pause()?;
        } else {
            client.resume()?;
        }
        Ok(self.records.set_paused(&now.id, paused)?)
    }
}
