//! How a failure inside the agent becomes the error that the shim reads.

use std::{error::Error, fmt, io};

use caisson_agent_protocol::{AgentError, ErrorKind};

/// A system call that failed, with what it was meant to do.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct OsError {
    pub action: String,
    #[source]
    pub source: io::Error,
}

impl OsError {
    pub fn new(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { action: action.into(), source: source.into() }
    }
}

/// Says what a result was about: `mkdir(…).at(|| format!("make {path}"))?`.
pub trait At<T> {
    fn at<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, OsError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at<S: Into<String>>(self, action: impl FnOnce() -> S) -> Result<T, OsError> {
        self.map_err(|source| OsError::new(action(), source))
    }
}

/// What the caller may do about an error.
pub trait Kind {
    fn kind(&self) -> ErrorKind;
}

impl Kind for io::Error {
    fn kind(&self) -> ErrorKind {
        match self.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
            _ => ErrorKind::Internal,
        }
    }
}

impl Kind for OsError {
    fn kind(&self) -> ErrorKind {
        Kind::kind(&self.source)
    }
}

/// The error as it goes over the wire: its kind, and the whole chain of causes in words.
pub fn to_wire(error: &(impl Error + Kind + 'static)) -> AgentError {
    AgentError { kind: error.kind(), message: chain(error) }
}

/// Lets `?` turn errors into what goes over the wire.
macro_rules! goes_over_the_wire {
    ($($error:ty),* $(,)?) => {
        $(impl From<$error> for AgentError {
            fn from(error: $error) -> Self {
                to_wire(&error)
            }
        })*
    };
}

goes_over_the_wire!(
    OsError,
    crate::cgroup::CgroupError,
    crate::command::CommandError,
    crate::disk::DiskError,
    crate::mounts::MountError,
    crate::path::PathError,
    crate::user::UserError,
);

/// An error of `kind` without a cause.
pub fn wire(kind: ErrorKind, message: impl fmt::Display) -> AgentError {
    AgentError { kind, message: bounded(message.to_string()) }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        message.push_str(": ");
        message.push_str(&describe(inner));
        cause = inner.source();
    }
    bounded(message)
}

/// An `io::Error` in words without Rust's "(os error 2)".
fn describe(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<io::Error>() {
        Some(os) => os_message(os),
        None => error.to_string(),
    }
}

/// The kernel's words for `error`, as C programs print them, first letter lower.
pub fn os_message(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else { return error.to_string() };
    let text = nix::errno::Errno::from_raw(code).desc();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        let keep = text.chars().nth(1).is_some_and(char::is_uppercase);
        let first = if keep { first } else { first.to_ascii_lowercase() };
        first.to_string() + letters.as_str()
    })
}

/// Plans are hostile as far as the image wrote them: a name of a megabyte must not make
/// a message of a megabyte.
const MAX_MESSAGE_BYTES: usize = 4096;

fn bounded(mut message: String) -> String {
    if message.len() > MAX_MESSAGE_BYTES {
        let end = message.floor_char_boundary(MAX_MESSAGE_BYTES);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_the_action_and_the_cause() {
        let error = OsError::new("mount proc on /proc", io::Error::from_raw_os_error(libc::EBUSY));
        assert_eq!(to_wire(&error).message, "mount proc on /proc: device or resource busy");
    }

    #[test]
    fn a_full_disk_has_its_own_kind() {
        let error = OsError::new("write x", io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(to_wire(&error).kind, ErrorKind::NoSpace);
    }

    #[test]
    fn messages_are_bounded() {
        let error = wire(ErrorKind::Internal, "é".repeat(10_000));
        assert!(error.message.len() <= MAX_MESSAGE_BYTES + 4);
    }
}
