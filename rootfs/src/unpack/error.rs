//! What can go wrong with a confined process, told apart by who is to blame.

use std::fmt;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use thiserror::Error;

use crate::compress::CompressionError;

#[derive(Debug, Error)]
pub enum UnpackError {
    #[error(
        "the program {} is missing, without which nothing is unpacked; `cargo xtask build` \
         makes it, and it must lie beside this one",
        .path.display()
    )]
    Missing { path: PathBuf },
    #[error("cannot start {}", .path.display())]
    Start { path: PathBuf, source: io::Error },
    #[error("cannot {action} the confined process")]
    Exchange { action: &'static str, source: io::Error },
    /// The host does not let the process confine itself.
    #[error("the process that unpacks cannot confine itself: {message}")]
    Confine { message: String },

    #[error("cannot read the data")]
    Read(#[source] io::Error),
    #[error("cannot keep a copy of the data")]
    Copy(#[source] io::Error),
    #[error("cannot write the image")]
    Image(#[source] io::Error),

    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// The data is at fault, in the confined process's words.
    #[error("{message}")]
    Refused { message: String },
    #[error("the confined process {0}")]
    Died(End),
    #[error("the confined process did nothing for {seconds} s and was ended")]
    Hung { seconds: u64 },
    #[error("the confined process gave an answer that makes no sense")]
    Answer,
}

/// How a confined process ended before its work was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    signal: Option<i32>,
    code: Option<i32>,
    last_words: String,
}

impl End {
    pub(super) fn new(status: ExitStatus, last_words: String) -> End {
        End { signal: status.signal(), code: status.code(), last_words }
    }

    pub fn signal(&self) -> Option<i32> {
        self.signal
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.signal, self.code) {
            (Some(libc::SIGSYS), _) => write!(f, "made a forbidden system call (SIGSYS)")?,
            (Some(libc::SIGKILL), _) => {
                write!(f, "was killed (SIGKILL), by someone or for want of memory")?;
            }
            (Some(libc::SIGXCPU), _) => write!(f, "used more CPU time than it may (SIGXCPU)")?,
            (Some(libc::SIGXFSZ), _) => write!(f, "wrote a larger image than it may (SIGXFSZ)")?,
            (Some(libc::SIGABRT), _) => write!(f, "gave up (SIGABRT)")?,
            (Some(libc::SIGSEGV), _) => write!(f, "crashed (SIGSEGV)")?,
            (Some(signal), _) => write!(f, "was ended by signal {signal}")?,
            (None, Some(code)) => write!(f, "exited with code {code}")?,
            (None, None) => write!(f, "is gone")?,
        }
        match self.last_words.as_str() {
            "" => Ok(()),
            words => write!(f, ": {words}"),
        }
    }
}

impl UnpackError {
    /// The cause, if it is a disk of ours that is full.
    pub(crate) fn into_disk_full(self) -> Result<io::Error, UnpackError> {
        match self {
            // A blob is copied while it is read.
            UnpackError::Read(error) | UnpackError::Copy(error) | UnpackError::Image(error)
                if crate::store::is_disk_full(&error) =>
            {
                Ok(error)
            }
            other => Err(other),
        }
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            UnpackError::Read(error) | UnpackError::Copy(error) | UnpackError::Image(error) => {
                crate::store::is_disk_full(error)
            }
            _ => false,
        }
    }
}
