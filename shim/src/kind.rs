//! What kind of failure an error is: the gRPC status that engines act on, and a
//! finer name in the status's details that the CLI turns into an exit code.

use containerd_shim::protos::ttrpc::{self, proto};

/// The type of the detail that carries [`ErrorKind::name`].
const DETAIL_TYPE: &str = "caisson.shim.v1.ErrorKind";

/// The kinds of failure that a caller may want to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    AlreadyExists,
    /// The call does not fit the state.
    FailedPrecondition,
    InvalidArgument,
    /// The executable does not exist in the container (exit code 127).
    CommandNotFound,
    /// The executable exists but cannot be executed (exit code 126).
    CommandNotExecutable,
    NoSpace,
    /// `/dev/kvm` is missing or cannot be used.
    NoKvm,
    /// The VM did not reach a serving agent.
    BootFailed,
    /// The VM or its agent ended or fell silent.
    SandboxLost,
    /// This version cannot do it.
    Unsupported,
    /// Another call ended the operation.
    Cancelled,
    Internal,
}

impl ErrorKind {
    const ALL: [(Self, &'static str, proto::Code); 13] = [
        (Self::NotFound, "not_found", proto::Code::NOT_FOUND),
        (Self::AlreadyExists, "already_exists", proto::Code::ALREADY_EXISTS),
        (Self::FailedPrecondition, "failed_precondition", proto::Code::FAILED_PRECONDITION),
        (Self::InvalidArgument, "invalid_argument", proto::Code::INVALID_ARGUMENT),
        (Self::CommandNotFound, "command_not_found", proto::Code::INVALID_ARGUMENT),
        (Self::CommandNotExecutable, "command_not_executable", proto::Code::INVALID_ARGUMENT),
        (Self::NoSpace, "no_space", proto::Code::RESOURCE_EXHAUSTED),
        (Self::NoKvm, "no_kvm", proto::Code::UNAVAILABLE),
        (Self::BootFailed, "boot_failed", proto::Code::INTERNAL),
        (Self::SandboxLost, "sandbox_lost", proto::Code::UNAVAILABLE),
        (Self::Unsupported, "unsupported", proto::Code::UNIMPLEMENTED),
        (Self::Cancelled, "cancelled", proto::Code::CANCELLED),
        (Self::Internal, "internal", proto::Code::INTERNAL),
    ];

    /// The kind's name on the wire.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The gRPC code that engines see.
    pub fn code(self) -> proto::Code {
        self.row().2
    }

    fn row(self) -> &'static (Self, &'static str, proto::Code) {
        Self::ALL.iter().find(|row| row.0 == self).expect("ALL lists every kind")
    }

    fn from_name(name: &[u8]) -> Option<Self> {
        Self::ALL.iter().find(|row| row.1.as_bytes() == name).map(|row| row.0)
    }
}

/// An RPC failure of this kind.
pub fn to_status(kind: ErrorKind, message: String) -> ttrpc::Error {
    let mut status = ttrpc::get_status(kind.code(), message);
    status.details.push(proto::Any {
        type_url: DETAIL_TYPE.to_owned(),
        value: kind.name().into(),
        ..Default::default()
    });
    ttrpc::Error::RpcStatus(status)
}

/// The kind that a status carries, or the nearest to its code.
pub fn of_status(status: &proto::Status) -> ErrorKind {
    let detail = status.details.iter().find(|detail| detail.type_url == DETAIL_TYPE);
    if let Some(kind) = detail.and_then(|detail| ErrorKind::from_name(&detail.value)) {
        return kind;
    }
    let code = status.code();
    // The last row of a code is its plainest kind, except for invalid arguments.
    match code {
        proto::Code::INVALID_ARGUMENT => ErrorKind::InvalidArgument,
        _ => ErrorKind::ALL
            .iter()
            .rev()
            .find(|row| row.2 == code)
            .map_or(ErrorKind::Internal, |row| row.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_survives_the_status() {
        for (kind, _, code) in ErrorKind::ALL {
            let ttrpc::Error::RpcStatus(status) = to_status(kind, "words".into()) else {
                panic!("no status");
            };
            assert_eq!(status.code(), code);
            assert_eq!(status.message(), "words");
            assert_eq!(of_status(&status), kind);
        }
    }

    #[test]
    fn a_status_without_detail_falls_back_to_its_code() {
        let status = |code| ttrpc::get_status(code, "");
        assert_eq!(of_status(&status(proto::Code::NOT_FOUND)), ErrorKind::NotFound);
        assert_eq!(of_status(&status(proto::Code::INVALID_ARGUMENT)), ErrorKind::InvalidArgument);
        assert_eq!(of_status(&status(proto::Code::INTERNAL)), ErrorKind::Internal);
        assert_eq!(of_status(&status(proto::Code::DATA_LOSS)), ErrorKind::Internal);
    }
}
