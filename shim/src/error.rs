//! Why an operation on a container failed.

use std::io;

use caisson_agent_protocol::{AgentError, message};

use crate::{
    agent_client::CallError, cgroup::CgroupError, kind::ErrorKind, network::NetworkError,
    plan::PlanError, rootfs::RootfsError, sandbox::LaunchError, stdio::StdioError,
};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no {what} {id:?}")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id:?} already exists")]
    AlreadyExists { what: &'static str, id: String },
    #[error("cannot {action} {id:?}: {state}")]
    State { action: &'static str, id: String, state: &'static str },
    /// As engines know it from runc.
    #[error("process already finished")]
    AlreadyFinished,
    #[error("{0}")]
    InvalidArgument(&'static str),
    #[error("{0}")]
    Unsupported(&'static str),
    #[error(
        "{what} is more than the container's VM has ({has}), which cannot grow while it runs: stop the \
         container, change it, and start it again"
    )]
    BeyondVm { what: String, has: String },
    #[error("the creation of {id:?} was cancelled")]
    Cancelled { id: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Stdio(#[from] StdioError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error("{action} {id:?}")]
    Agent { action: &'static str, id: String, source: CallError },
    #[error("{action} {id:?}: {reason}")]
    SandboxLost { action: &'static str, id: String, reason: String },
    #[error("{action}")]
    Cgroup { action: &'static str, source: CgroupError },
    #[error("{action}")]
    Io { action: &'static str, source: io::Error },
}

impl Error {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } | Self::AlreadyFinished => ErrorKind::NotFound,
            Self::AlreadyExists { .. } => ErrorKind::AlreadyExists,
            Self::State { .. } | Self::BeyondVm { .. } => ErrorKind::FailedPrecondition,
            Self::InvalidArgument(_) => ErrorKind::InvalidArgument,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::Plan(PlanError::Unsupported { .. }) => ErrorKind::Unsupported,
            Self::Plan(_) => ErrorKind::InvalidArgument,
            Self::Network(error) => error.kind(),
            Self::Rootfs(error) => error.kind(),
            Self::Stdio(StdioError::Invalid { .. }) => ErrorKind::InvalidArgument,
            Self::Stdio(StdioError::Connect { .. }) => ErrorKind::SandboxLost,
            Self::Stdio(StdioError::Open { source, .. }) | Self::Io { source, .. } => {
                match source.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
                    _ => ErrorKind::Internal,
                }
            }
            Self::Launch(error) => error.kind,
            Self::Cgroup { .. } => ErrorKind::Internal,
            Self::Agent { source: CallError::Agent(error), .. } => of_agent(error),
            Self::Agent { source: CallError::Request(_), .. } => ErrorKind::InvalidArgument,
            Self::Agent { .. } | Self::SandboxLost { .. } => ErrorKind::SandboxLost,
        }
    }

    /// The message with every cause behind it, as one line of reasoning.
    pub fn report(&self) -> String {
        chain(self)
    }
}

/// The message of an error with every cause behind it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut report = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !report.ends_with(&text) {
            report.push_str(": ");
            report.push_str(&text);
        }
        source = cause.source();
    }
    report
}

fn of_agent(error: &AgentError) -> ErrorKind {
    match error.kind {
        message::ErrorKind::NotFound => ErrorKind::NotFound,
        message::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
        message::ErrorKind::FailedPrecondition => ErrorKind::FailedPrecondition,
        message::ErrorKind::InvalidArgument => ErrorKind::InvalidArgument,
        message::ErrorKind::CommandNotFound => ErrorKind::CommandNotFound,
        message::ErrorKind::CommandNotExecutable => ErrorKind::CommandNotExecutable,
        message::ErrorKind::NoSpace => ErrorKind::NoSpace,
        message::ErrorKind::Internal => ErrorKind::Internal,
    }
}
