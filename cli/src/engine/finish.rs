//! The end of a container's run: how it ended, recorded once, and nothing left of it.

use std::{sync::mpsc, thread, time::Duration};

use caisson_failpoints::{hit, steps};
use caisson_shim::{
    client::{ClientError, ShimClient},
    exit::Exit,
};

use super::{Engine, EngineError, bundle, io_error, process::Process, remove::Volumes};
use crate::{
    events::Event,
    format::units,
    records::{Container, Ended, RecordError, State},
};

/// The exit code of a container whose VM or shim was lost.
const LOST: u8 = 137;

/// It does nothing for that but to look at itself.
const SHIM_ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// It has nothing left to do but to end.
const SHIM_ENDS_WITHIN: Duration = Duration::from_secs(10);

impl Engine {
    /// How a container ended, from what the wait for it gave. The record is not touched.
    pub fn judge(&self, container: &Container, waited: Result<Exit, ClientError>) -> Ended {
        match waited {
            Ok(exit) => ended(exit),
            Err(error) => self.post_mortem(container, &error.to_string()),
        }
    }

    /// How a container ended whose shim cannot tell any more.
    pub fn post_mortem(&self, container: &Container, reason: &str) -> Ended {
        // Another command may have recorded the end already.
        if let Ok(now) = self.records.by_id(&container.id)
            && now.state == State::Exited
            && let Some(at) = now.finished
        {
            return Ended { code: now.exit_code, at, oom_killed: now.oom_killed, error: now.error };
        }
        match Exit::load(&self.globals.bundle_dir(&container.id)) {
            Ok(Some(exit)) => ended(exit),
            _ => {
                Ended { code: LOST, at: units::now(), oom_killed: false, error: reason.to_owned() }
            }
        }
    }

    /// Records the end of the run that `container` shows, ends its shim, and removes the
    /// container if it is to be. Any number of processes may do it; one does.
    pub fn finish(&self, container: &Container, ended: &Ended) -> Result<(), EngineError> {
        let (now, _lock) = match self.records.lock(container) {
            Err(RecordError::NotFound(_)) => return Ok(()),
            other => other?,
        };
        if now.state != State::Running || now.started != container.started {
            return Ok(());
        }
        self.tell_end(&now, ended);
        let goes = now.config.as_ref().is_some_and(|config| config.auto_remove);
        if goes && !now.restarting {
            self.records.set_state(&now.id, State::Removing)?;
            return self.discard(&now, Volumes::Remove);
        }
        self.end_shim(&now);
        self.remove_bundle(&now)?;
        hit(&steps::CLI_FINISH_RECORD)
            .map_err(io_error("record the end in", &self.globals.root))?;
        Ok(self.records.set_exited(&now.id, ended)?)
    }

    fn tell_end(&self, container: &Container, ended: &Ended) {
        if ended.oom_killed {
            self.tell(container, "oom");
        }
        let seconds = container.started.map(|started| ended.at.saturating_sub(started));
        let seconds = seconds.unwrap_or(0).max(0) / 1_000_000_000;
        Event::of_container(container, "die")
            .with("exitCode", ended.code)
            .with("execDuration", seconds)
            .tell(&self.globals.root);
    }

    /// Ends the container's shim and with it whatever runs, and waits until it is gone: it
    /// must not remove the socket of the next. One that is gone already is fine.
    pub(super) fn end_shim(&self, container: &Container) {
        let ended = match self.connect(container) {
            Ok(client) => self.end_politely(container, client),
            // Its socket may be gone while it is not, but only where one was to be.
            Err(error) => {
                tracing::debug!(%error, "no shim of {}", container.id);
                matches!(container.state, State::Created | State::Exited) && !container.visited
            }
        };
        if !ended && let Some(process) = Process::find_shim(&container.id) {
            tracing::warn!("the shim of {} does not answer and is killed", container.id);
            process.wait_or_kill(Duration::ZERO);
        }
        // A shim that was killed leaves its socket.
        let socket = self.globals.shim_socket(&container.id);
        if let Err(error) = std::fs::remove_file(&socket)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "remove {}", socket.display());
        }
    }

    /// Asks the shim to end; whether it did.
    fn end_politely(&self, container: &Container, client: ShimClient) -> bool {
        let id = container.id.clone();
        let answers = ask(&client, |client| client.host_pids());
        let Some(pids) = answers else { return false };
        let process = pids.ok().and_then(|(shim, _)| Process::open(shim));
        // Its own deadlines bound both calls.
        if let Err(error) = client.delete(None) {
            // What is to be deleted may never have been created.
            tracing::debug!(%error, "delete {id}");
        }
        if let Err(error) = client.shutdown(true) {
            tracing::warn!(%error, "shut down the shim of {id}");
        }
        if process.is_some_and(|process| !process.wait_or_kill(SHIM_ENDS_WITHIN)) {
            tracing::warn!("the shim of {id} did not end and was killed");
        }
        true
    }

    pub(super) fn remove_bundle(&self, container: &Container) -> Result<(), EngineError> {
        let directory = self.globals.bundle_dir(&container.id);
        hit(&steps::CLI_FINISH_BUNDLE).map_err(io_error("remove", &directory))?;
        // What a shim has left that was killed: its journal is in the bundle.
        if let Err(error) = caisson_shim::vm::reap(&directory) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "reap the VM of {}",
                container.id
            );
        }
        Ok(bundle::remove(&directory)?)
    }
}

fn ended(exit: Exit) -> Ended {
    Ended {
        code: exit.code,
        at: i64::try_from(exit.at_unix_nanos).unwrap_or(i64::MAX),
        oom_killed: exit.oom_killed,
        error: exit.reason.unwrap_or_default(),
    }
}

/// Makes a call that any shim which is alive answers at once; `None` if this one does not.
pub(super) fn ask<T: Send + 'static>(
    client: &ShimClient,
    call: impl FnOnce(&ShimClient) -> T + Send + 'static,
) -> Option<T> {
    let (sender, answer) = mpsc::channel();
    let client = client.clone();
    // The thread of a call that is not answered ends with the shim or with this process.
    let asking = thread::Builder::new().name("ask".into()).spawn(move || {
        let _ = sender.send(call(&client));
    });
    asking.ok()?;
    answer.recv_timeout(SHIM_ANSWERS_WITHIN).ok()
}
