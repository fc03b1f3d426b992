//! Finishing or undoing what processes left that died half-way.

use caisson_shim::client::Status;

use super::{Engine, EngineError, finish, remove::Volumes};
use crate::records::{
    Container, RecordError, State,
    lock::{ContainerLock, Purpose},
};

impl Engine {
    /// Looks at every container that a process should be tending, and takes over those
    /// that nobody does. Cheap: without any, one query.
    pub fn reap(&self) -> Result<(), EngineError> {
        for container in self.records.tended()? {
            let reaped = match container.state {
                State::Running => self.reap_running(&container),
                _ => self.reap_transient(&container),
            };
            // One that cannot be tidied must not keep the others from being used.
            if let Err(error) = reaped {
                tracing::warn!(%error, "tidy up after container {}", container.id);
            }
        }
        Ok(())
    }

    /// Nobody waits for its end: it has ended meanwhile, or gets a monitor.
    fn reap_running(&self, container: &Container) -> Result<(), EngineError> {
        let Some(watch) = self.records.try_lock(container, Purpose::Watch)? else {
            return Ok(());
        };
        let answer = match self.connect(container) {
            Ok(client) => finish::ask(&client, |client| client.state(None)),
            Err(error) => return self.reap_lost(container, watch, &error),
        };
        let Some(state) = answer else {
            // It may be slow, or stopped: whoever removes the container kills it.
            tracing::warn!("the shim of container {} does not answer", container.id);
            return Ok(());
        };
        drop(watch);
        match state {
            Ok(state) if state.status != Status::Stopped => self.spawn_monitor(container).map(drop),
            Ok(state) => {
                let mut ended = self.post_mortem(container, "");
                ended.code = state.exit_code;
                self.finish(container, &ended)
            }
            Err(error) => {
                let ended = self.post_mortem(container, &error.to_string());
                self.finish(container, &ended)
            }
        }
    }

    /// There is no shim: how its container ended is what it has left behind.
    fn reap_lost(
        &self,
        container: &Container,
        watch: ContainerLock,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        drop(watch);
        self.finish(container, &self.post_mortem(container, &error.to_string()))
    }

    /// Its owner died between intent and deed.
    fn reap_transient(&self, container: &Container) -> Result<(), EngineError> {
        let Some(_lock) = self.records.try_lock(container, Purpose::Change)? else {
            return Ok(());
        };
        let container = match self.records.by_id(&container.id) {
            Err(RecordError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        let goes_anyway = container.config.as_ref().is_none_or(|config| config.auto_remove);
        match container.state {
            State::Creating => self.discard(&container, Volumes::Remove),
            State::Starting if goes_anyway => self.discard(&container, Volumes::Remove),
            State::Removing if goes_anyway => self.discard(&container, Volumes::Remove),
            // Whether they were to go with it died with who knew it; `volume prune` takes them.
            State::Removing => self.discard(&container, Volumes::Keep),
            State::Starting => {
                self.undo_start(&container, &EngineError::Interrupted);
                Ok(())
            }
            _ if container.visited => self.end_visit(&container),
            _ => Ok(()),
        }
    }
}
