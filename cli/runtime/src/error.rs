//! What can go wrong, in the words that engines look for.

use std::{error::Error, io, path::PathBuf};

use caisson_cli::{
    attach::AttachError,
    engine::BundleError,
    options::{environment::EnvironmentError, signal::InvalidSignal},
    spec::SpecError,
};
use caisson_shim::{assets::AssetError, client::ClientError, kind::ErrorKind, vm::ReapError};

use crate::hooks::HookError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    #[error(
        "container ID {0:?} is invalid: letters, digits and _+-. are allowed, not . or .. alone"
    )]
    InvalidId(String),
    #[error("container with id exists: {0}")]
    Exists(String),
    #[error("container does not exist: {0}")]
    NotFound(String),
    #[error("container not running: {0}")]
    NotRunning(String),
    #[error("cannot start a container that is {status}: {id}")]
    NotCreated { id: String, status: &'static str },
    #[error("cannot delete container {id} that is not stopped: {status}; --force ends it first")]
    NotStopped { id: String, status: &'static str },
    #[error("{0}")]
    Usage(String),
    #[error("{action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no valid JSON of its kind", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{} has no {field}", path.display())]
    Incomplete { path: PathBuf, field: &'static str },
    #[error("start the process that stands for the container")]
    Keeper(#[source] io::Error),
    /// What the keeper says.
    #[error("{0}")]
    Kept(String),
    #[error("the process that stands for the container ended without a word")]
    KeeperSilent,
    #[error("make a network namespace for the hooks to fill")]
    NetworkNamespace(#[source] nix::Error),
    #[error("the terminal for the console socket {}", path.display())]
    Console { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error(transparent)]
    Spec(SpecError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Asset(#[from] AssetError),
    #[error(transparent)]
    Reap(#[from] ReapError),
    #[error(transparent)]
    Signal(#[from] InvalidSignal),
    #[error(transparent)]
    Environment(#[from] EnvironmentError),
}

impl RuntimeError {
    /// The whole chain in one line. Engines tell a missing or unusable command from other
    /// failures by runc's words.
    pub(crate) fn words(&self) -> String {
        let mut words = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // A cause that its error has said already is not said twice.
            if !words.ends_with(&text) {
                words.push_str(&format!(": {text}"));
            }
            cause = error.source();
        }
        let Self::Client(error) = self else { return words };
        let known = match error.kind() {
            ErrorKind::CommandNotFound => "executable file not found in $PATH",
            ErrorKind::CommandNotExecutable => "permission denied",
            _ => return words,
        };
        if words.contains(known) { words } else { format!("{words}: {known}") }
    }
}

pub(crate) fn io_error(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> RuntimeError {
    let path = path.into();
    move |source| RuntimeError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_command_is_told_in_the_words_that_engines_know() {
        let refused = |kind| {
            let message = "exec \"nope\"".to_owned();
            RuntimeError::from(ClientError::Refused { kind, message }).words()
        };
        let missing = refused(ErrorKind::CommandNotFound);
        assert_eq!(missing, "exec \"nope\": executable file not found in $PATH");
        assert_eq!(refused(ErrorKind::CommandNotExecutable), "exec \"nope\": permission denied");
        assert_eq!(refused(ErrorKind::Internal), "exec \"nope\"");
        let message = "exec: executable file not found in $PATH".to_owned();
        let kind = ErrorKind::CommandNotFound;
        let said = RuntimeError::from(ClientError::Refused { kind, message: message.clone() });
        assert_eq!(said.words(), message);
    }

    #[test]
    fn the_causes_follow() {
        let error = io_error("open", "/x")(io::Error::from_raw_os_error(nix::libc::ENOENT));
        assert_eq!(error.words(), "open /x: No such file or directory (os error 2)");
    }
}
